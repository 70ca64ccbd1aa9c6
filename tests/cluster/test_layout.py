"""Which actor is on which GPU, for hosts that this machine does not have: pure arithmetic."""

from collections import Counter

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cluster import layout_checks, layout_memory
from cluster.config_loader import load_config
from cluster.gpu_memory import CONTEXT_GIB, learner_gpu_memory
from cluster.layout import LEARNERS, Bundle, Group, Seat, executor, groups, own_group, place
from cluster.layout_checks import check_gpus, check_room, check_sharing
from cluster.layout_fit import Host, NoRoomError, describe, fit
from cluster.layout_memory import check_gpu_memory, memory_table, needs
from cluster.layout_picture import layout_tables
from cluster.memory_estimate import GIB, training_task
from cluster.precision import resolve
from common.errors import UserError

KINDS = ("learner", "rollout", "scoring")


def config(*overrides):
    return load_config("configs/tiny.yaml", ["cluster.device=cuda", *overrides])


def hosts(count, gpus=8):
    return [Host(f"10.0.0.{number}", 64, gpus) for number in range(count)]


def check_all(layout):
    for check in (check_gpus, check_sharing, check_room):
        check(layout)


def gpus_of(uses):
    """(host, GPU) of every actor or worker, in the order of the workers: {name: [(host, gpu), ...]}."""
    places = {}
    for use in uses:
        for gpu, who in enumerate(use.who[:-1]):
            for name in who:
                places.setdefault(name, []).append((use.host.name, gpu))
    return places


@pytest.mark.parametrize(
    ("overrides", "hosts_", "expected"),
    [
        # One GPU: three fractions of it.
        (
            ["learners={ranks: 1, gpus: 0.5}", "rollout.gpus=0.3", "scoring.gpus=0.2"],
            hosts(1, gpus=1),
            {"learner-0": 1, "rollout-0": 1, "scoring-0": 1},
        ),
        (
            ["cluster.layout=colocated", "learners.ranks=1"],
            hosts(1, gpus=1),
            {"learner-0": 1, "rollout-0": 1},
        ),
        # Eight: 4 learners, an engine of 2, a scoring actor.
        (
            ["learners.ranks=4", "rollout={actors: 1, tensor_parallel: 2}"],
            hosts(1),
            {"learner-3": 1, "rollout-0": 2, "scoring-0": 1},
        ),
        # 4 x 8: 16 learners, 3 engines of 4 GPUs, 4 scoring actors fill them.
        (
            ["learners.ranks=16", "rollout={actors: 3, tensor_parallel: 4}", "scoring.actors=4"],
            hosts(4),
            {"learner-15": 1, "rollout-2": 4, "scoring-3": 1},
        ),
        (
            ["cluster.layout=colocated", "learners.ranks=32", "rollout={actors: 8, tensor_parallel: 4}"],
            hosts(4),
            {"learner-31": 1, "rollout-7": 4, "scoring-0": 1},
        ),
    ],
)
def test_fleets_fill_1_8_and_32_gpus(overrides, hosts_, expected):
    places = gpus_of(fit(groups(config(*overrides), KINDS), hosts_))
    for name, count in expected.items():
        assert len(places[name]) == count


@settings(max_examples=60)
@given(
    ranks=st.integers(1, 16),
    engines=st.integers(1, 4),
    workers=st.sampled_from([1, 2, 4, 8]),
    scorers=st.integers(1, 4),
)
def test_apart_no_gpu_has_two_actors_and_engines_are_on_one_host(ranks, engines, workers, scorers):
    layout = config(
        f"learners.ranks={ranks}",
        f"rollout={{actors: {engines}, tensor_parallel: {workers}}}",
        f"scoring.actors={scorers}",
    )
    uses = fit(groups(layout, KINDS), hosts(7))
    taken = [place for places in gpus_of(uses).values() for place in places]
    assert max(Counter(taken).values()) == 1
    assert len(taken) == ranks + engines * workers + scorers
    for name, places in gpus_of(uses).items():
        assert len({host for host, _ in places}) == 1, name


@settings(max_examples=60)
@given(
    ranks=st.integers(1, 32), workers=st.sampled_from([1, 2, 4]), scorers=st.integers(1, 6), more=st.data()
)
def test_colocated_worker_shares_the_gpu_of_its_learner(ranks, workers, scorers, more):
    engines = more.draw(st.integers(1, max(1, ranks // workers)))
    layout = config(
        "cluster.layout=colocated",
        f"learners.ranks={ranks}",
        f"rollout={{actors: {engines}, tensor_parallel: {workers}}}",
        f"scoring.actors={scorers}",
    )
    (group,) = groups(layout, KINDS)
    assert group.name == LEARNERS
    for bundle in group.bundles:
        assert bundle.gpus == 1
        assert sum(seat.gpus for seat in bundle.seats) <= 1 + 1e-9
    if engines * workers > ranks:
        with pytest.raises(UserError, match="but the learners whose GPUs they share have"):
            check_sharing(layout)
        return
    for engine in range(engines):
        where = place(layout, "rollout", engine)
        assert where.bundles == tuple(range(engine * workers, (engine + 1) * workers))
        assert where.gpus == 0.4
        assert place(layout, "learner", engine * workers).bundles == (engine * workers,)
    # Spread over the ranks, none left out.
    beside = Counter(place(layout, "scoring", index).bundles[0] for index in range(scorers))
    assert sum(beside.values()) == scorers
    assert max(beside.values()) == -(-scorers // ranks)


def test_executor_follows_the_layout():
    assert executor(config()) == "uni"
    assert executor(config("rollout.tensor_parallel=4")) == "mp"
    assert executor(config("rollout.tensor_parallel=4", "cluster.device=cpu")) == "mp"
    over_hosts = config("rollout={tensor_parallel: 8, pipeline_parallel: 2}")
    assert executor(over_hosts) == "ray"
    group = own_group(over_hosts, "rollout", 0)
    assert group.strategy == "PACK"
    assert [bundle.gpus for bundle in group.bundles] == [1] * 16
    assert place(over_hosts, "rollout", 0).bundles == tuple(range(16))
    assert {host for host, _ in gpus_of(fit([group], hosts(2)))["rollout-0"]} == {"10.0.0.0", "10.0.0.1"}
    on_one_host = config("rollout={tensor_parallel: 2, pipeline_parallel: 2, executor: mp}")
    assert [bundle.gpus for bundle in own_group(on_one_host, "rollout", 0).bundles] == [4]
    assert place(on_one_host, "rollout", 0).gpus == 4
    assert executor(config("cluster.layout=colocated", "rollout.tensor_parallel=2")) == "ray"


def test_on_cpu_learners_reserve_cores_and_the_others_nothing():
    cpu = config("cluster.device=cpu", "learners.threads=2")
    (group,) = groups(cpu, KINDS)
    assert [bundle.resources for bundle in group.bundles] == [{"CPU": 2}, {"CPU": 2}]
    assert place(cpu, "rollout", 0) is None
    assert place(cpu, "scoring", 0) is None
    assert groups(cpu, ("rollout",)) == []
    # Colocated they are on the learners' hosts.
    beside = place(config("cluster.device=cpu", "cluster.layout=colocated", "rollout.actors=2"), "rollout", 1)
    assert (beside.group, beside.bundles, beside.gpus, beside.cpus) == (LEARNERS, (1,), 0, 0)


def test_hosts_of_a_fleet_are_taken_in_order():
    spread = config(
        "learners.ranks=4",
        "rollout.actors=3",
        "cluster.layout={learners: {hosts: [a, b]}, rollout: {hosts: [c, d]}, scoring: {share: learners}}",
    )
    learners, *engines = groups(spread, KINDS)
    assert [bundle.host for bundle in learners.bundles] == ["a", "a", "b", "b"]
    assert [group.bundles[0].host for group in engines] == ["c", "c", "d"]
    assert own_group(spread, "rollout", 3).bundles[0].host == "d"  # one that is added
    # While the first of them is not in the cluster.
    assert [group.bundles[0].others for group in engines] == [("d",), ("d",), ("c",)]
    assert [seat.name for seat in learners.bundles[0].seats] == ["learner-0", "scoring-0"]
    # Also where nothing but the host is asked for.
    on_cpu = config("cluster.device=cpu", "cluster.layout={rollout: {hosts: [c]}}")
    assert place(on_cpu, "rollout", 0).group == "rollout-0"


def test_scoring_without_models_needs_no_gpu():
    functions = ["rewards.sources=[{kind: function, path: 'cluster.quickstart.oracle:judge'}]"]
    assert place(config(*functions, "ppo.kl_coef=0"), "scoring", 0) is None
    assert place(config(*functions), "scoring", 0).gpus == 1  # the reference
    assert place(config("scoring.gpus=0"), "scoring", 0) is None


def test_what_does_not_fit_is_explained_with_the_arithmetic():
    engine = Group("rollout-1", "STRICT_PACK", (Bundle((Seat("rollout", 1),), gpus=4),))
    with pytest.raises(NoRoomError) as error:
        fit([engine], hosts(4, gpus=1))
    assert str(error.value).startswith(
        "rollout-1 needs {GPU: 4} on one host; the hosts have: 10.0.0.0 {GPU: 1,"
    )
    # Fragmented: 8 GPUs are left, but not 6 on one host.
    rest = [Group(f"scoring-{i}", "STRICT_PACK", (Bundle((Seat("scoring", i),), gpus=4),)) for i in range(2)]
    with pytest.raises(NoRoomError, match=r"\(\{GPU: 2, CPU: 64\} left by the rest of the run\)"):
        fit([Group("rollout-0", "STRICT_PACK", (Bundle((), gpus=6),)), *rest, engine], hosts(2))
    learners = groups(config("learners.ranks=4"), ("learner",))[0]
    assert describe(learners) == "4 x {GPU: 1, CPU: 1}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learners.gpus=0.5"], "NCCL refuses them"),
        (["rollout={gpus: 2, tensor_parallel: 2}"], "rollout.gpus=2 with rollout.tensor_parallel=2: it is"),
        (["rollout={gpus: 0.5, tensor_parallel: 2}"], "number for each worker"),
        (["rollout.gpus=0"], "cluster.device is cuda but rollout.gpus is 0"),
        (["cluster.layout=colocated", "learners.gpus=1"], "shares the learners' GPUs"),
        (["cluster.layout=colocated", "ppo.staleness=1"], "rollouts cannot go on while the learners use"),
        (["cluster.layout=colocated", "rollout.actors=3"], r"3 engines x 1 GPUs = 3, .* have 2"),
        (
            ["cluster.layout=colocated", "rollout={tensor_parallel: 2, executor: mp}"],
            "workers on the learners' GPUs are Ray actors",
        ),
        (["cluster.device=cpu", "rollout={executor: ray, tensor_parallel: 2}"], "works on GPUs only"),
        (
            ["learners.ranks=4"],
            r"rollout-0 needs \{GPU: 1\} on one host; .*\(\{GPU: 0, CPU: 4\} left by the rest",
        ),
    ],
)
def test_layout_that_cannot_work_is_refused(monkeypatch, overrides, message):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 8)
    monkeypatch.setattr(layout_checks, "count_gpus", lambda: 4)
    with pytest.raises(UserError, match=message):
        check_all(config(*overrides))
    check_all(config())


@pytest.mark.parametrize("layout", ["shared", "{learners: {share: learners}}", "{rollout: {share: scoring}}"])
def test_unknown_layout_is_refused(layout):
    with pytest.raises(UserError, match=r"cluster\.layout"):
        config(f"cluster.layout={layout}")


def test_picture_shows_hosts_gpus_and_actors(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    big = config(
        "learners.ranks=16",
        "rollout={actors: 3, tensor_parallel: 4}",
        "scoring.actors=4",
        "learners.threads=4",
    )
    for table in layout_tables(big):
        console.print(table)
    text = console.export_text()
    assert "learners              │ PACK        │ 16 x {GPU: 1, CPU: 4}" in text
    assert "rollout-0 … rollout-2 │ STRICT_PACK │ {GPU: 4} on one host" in text
    assert "host 4 │" in text
    assert "host 5" not in text
    assert "free" not in text
    console.print(layout_tables(config("cluster.layout=colocated", "learners.ranks=8"))[1])
    assert "learner-0, rollout-0, scoring-0" in console.export_text()


BILLIONS = [
    "model={layers: 32, width: 4096, heads: 32, kv_heads: 32, vocab_size: 32000}",
    "ppo.dtype=bfloat16",
]
"""About 7 billion parameters: 2 bytes each are 13 GiB."""


def test_each_phase_needs_what_is_awake_in_it():
    apart = {need.what: need.gib for need in needs(resolve(config(*BILLIONS))[0], 80 * GIB)}
    assert list(apart) == ["learner", "rollout", "scoring"]
    shared = resolve(config(*BILLIONS, "cluster.layout=colocated"))[0]
    phases = {need.what: need.gib for need in needs(shared, 80 * GIB)}
    for kind, gib in apart.items():
        # The contexts of the other two processes stay.
        assert phases[f"phase {kind}"] == pytest.approx(gib + 2 * CONTEXT_GIB)
    learner = learner_gpu_memory(shared, training_task(shared, "ppo"))
    # Policy and critic of the learner, and the policy in the engine.
    assert learner.weights / GIB > 25
    assert phases["phase sync"] == pytest.approx(learner.weights * 1.5 / GIB + 3 * CONTEXT_GIB, rel=0.02)
    assert phases["phase learner"] > 80 > phases["phase rollout"]
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(memory_table(shared))
    lines = [line for line in console.export_text().splitlines() if "phase" in line]
    assert [("yes" in line, "no " in line) for line in lines] == [
        (False, True),
        (True, False),
        (True, False),
        (True, False),
    ]
    assert memory_table(config("cluster.device=cpu")) is None


def test_what_does_not_fit_the_gpus_of_this_host_is_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(layout_checks, "count_gpus", lambda: 8)
    monkeypatch.setattr(layout_memory, "gpu_memory_bytes", lambda: 80 * GIB)
    with pytest.raises(UserError, match=r"learner needs about \d+\.\d GiB of a GPU \(optimizer .*have 80\.0"):
        check_gpu_memory(resolve(config(*BILLIONS))[0])
    check_gpu_memory(resolve(config())[0])
