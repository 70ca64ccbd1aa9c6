"""Fleets that share GPUs: nobody works out of turn, and nothing that a call needs is away."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.turns import ALL, NOTHING, PHASES, Move, Turns, moves

NEEDS = {
    # What must be on the GPU for a call, by (kind, method).
    ("learner", "ppo_update"): {"learner": ALL["learner"]},
    ("learner", "save"): {"learner": ALL["learner"]},
    ("learner", "send_bucket"): {"learner": frozenset({"weights"}), "rollout": frozenset({"weights"})},
    ("rollout", "update_weights"): {"rollout": frozenset({"weights"})},
    ("rollout", "run_groups"): {"rollout": ALL["rollout"]},
    ("rollout", "prompt_logprobs"): {"rollout": ALL["rollout"]},
    ("scoring", "score"): {"scoring": ALL["scoring"]},
}
CALLS = [*NEEDS, ("learner", "flops_per_token"), ("rollout", "cancel_groups"), ("scoring", "select")]


class GPUs:
    """Fleets that record what is on the GPUs, and refuse whatever the real ones would refuse."""

    def __init__(self, takers=frozenset(ALL), sleep_level=1):
        self.fleets = {kind: RecordedFleet(kind, self) for kind in ALL}
        self.turns = Turns(self.fleets, frozenset(takers), sleep_level)
        self.log = []
        for kind, fleet in self.fleets.items():
            fleet.before_call = self.turns.before(kind)

    def start(self, kind):
        self.turns.vacate()
        assert not any(self.on.values())
        self.fleets[kind].on = ALL[kind]
        self.turns.started(kind)

    @property
    def on(self):
        return {kind: fleet.on for kind, fleet in self.fleets.items() if kind in self.turns.takers}


class RecordedFleet:
    def __init__(self, kind, gpus):
        self.kind, self.gpus, self.on, self.dropped = kind, gpus, NOTHING, False

    def __len__(self):
        return 2

    def submit(self, method):
        """As `Fleet.submit`: the turn, then the call."""
        if self.before_call:
            self.before_call(method)
        for kind, parts in NEEDS.get((self.kind, method), {}).items():
            assert parts <= self.gpus.fleets[kind].on, f"{self.kind}.{method} without {kind} {parts}"
        if method == "update_weights":
            self.dropped = False
        assert not (method in ("run_groups", "prompt_logprobs") and self.dropped)
        self.gpus.log.append((self.kind, method))

    def call_some(self, indexes, method, *arguments):
        assert indexes is None
        self.gpus.log.append((self.kind, method, *arguments))
        parts = ALL[self.kind]
        if arguments and method != "sleep" and arguments != ("all",):
            (parts,) = [frozenset(part if isinstance(part, list) else [part]) for part in arguments]
        if method in ("sleep", "offload"):
            self.dropped = self.dropped or arguments == (2,)
            self.on -= parts
        else:
            assert not parts & self.on
            self.on |= parts
        # Never more than what one phase needs.
        assert any(
            all(present <= phase.get(kind, NOTHING) for kind, present in self.gpus.on.items())
            for phase in PHASES.values()
        ), self.gpus.on


def iteration(gpus):
    """The calls of one PPO iteration."""
    for kind, method in (
        ("rollout", "run_groups"),
        ("scoring", "score"),
        ("learner", "ppo_update"),
        ("learner", "send_bucket"),
        ("rollout", "update_weights"),
        ("rollout", "prompt_logprobs"),
    ):
        gpus.fleets[kind].submit(method)


def test_an_iteration_moves_everything_once():
    gpus = GPUs()
    for kind in ("learner", "rollout", "scoring"):
        gpus.start(kind)
    iteration(gpus)
    gpus.log.clear()
    gpus.turns.weights_follow = True
    iteration(gpus)
    assert gpus.log == [
        ("rollout", "run_groups"),
        ("rollout", "sleep", 1),
        ("scoring", "reload"),
        ("scoring", "score"),
        ("scoring", "offload"),
        ("learner", "reload", "all"),
        ("learner", "ppo_update"),
        ("learner", "offload", "states"),
        ("rollout", "wake", ["weights"]),
        ("learner", "send_bucket"),
        ("rollout", "update_weights"),
        ("learner", "offload", "weights"),
        ("rollout", "wake", ["kv_cache"]),
        ("rollout", "prompt_logprobs"),
    ]


@given(st.lists(st.sampled_from(CALLS), max_size=12), st.sampled_from([1, 2]))
def test_nobody_works_out_of_turn_in_any_order_of_calls(calls, level):
    gpus = GPUs(sleep_level=level)
    for kind in ("learner", "rollout", "scoring"):
        gpus.start(kind)
    for kind, method in calls:
        gpus.fleets[kind].submit(method)  # which asserts


def test_weights_are_dropped_only_where_others_follow():
    gpus = GPUs(sleep_level=2)
    for kind in ("learner", "scoring", "rollout"):
        gpus.start(kind)
    gpus.fleets["scoring"].submit("score")
    assert ("rollout", "sleep", 1) in gpus.log
    gpus.fleets["rollout"].submit("run_groups")
    gpus.turns.weights_follow = True
    iteration(gpus)
    assert ("rollout", "sleep", 2) in gpus.log


def test_fleets_with_gpus_of_their_own_take_no_turns():
    apart = GPUs(takers=())
    assert [fleet.before_call for fleet in apart.fleets.values()] == [None] * 3
    apart.turns.started("learner")
    apart.turns.vacate()
    apart.turns.take("rollout")
    assert apart.log == []
    hybrid = GPUs(takers=("learner", "scoring"))
    for kind in ("learner", "scoring"):
        hybrid.start(kind)
    hybrid.fleets["rollout"].on = ALL["rollout"]
    hybrid.fleets["rollout"].submit("run_groups")
    hybrid.fleets["scoring"].submit("score")
    hybrid.log.clear()
    hybrid.turns.take("learner")
    assert hybrid.log == [("scoring", "offload"), ("learner", "reload", "all")]
    hybrid.turns.before("learner")("send_bucket")
    hybrid.fleets["rollout"].submit("update_weights")
    assert hybrid.log[2:] == [("rollout", "update_weights")]


def test_those_that_are_left_leave_before_lost_ones_are_replaced():
    gpus, called = GPUs(), []
    for kind in ("learner", "rollout"):
        gpus.start(kind)
    gpus.fleets["learner"].submit("ppo_update")
    for kind, fleet in gpus.fleets.items():
        fleet.call_some = lambda indexes, method, *rest, kind=kind: called.append((kind, indexes, method))
    gpus.turns.vacate({"rollout": [1]})
    # Also the engine that lives: what was on the GPUs is not known after a failure.
    assert called == [("learner", None, "offload"), ("rollout", [0], "sleep")]
    gpus.turns.ended("learner")
    gpus.turns.vacate()
    assert called[2:] == [("rollout", None, "sleep")]


def test_moves_leave_before_they_come():
    for (_, before), (_, after) in pairwise([*PHASES.items(), *reversed(PHASES.items())]):
        on = {kind: before.get(kind, NOTHING) for kind in ALL}
        made = moves(on, after)
        kinds = [move.method in ("sleep", "offload") for move in made]
        assert kinds == sorted(kinds, reverse=True)
    sync = {"learner": frozenset({"weights"}), "rollout": frozenset({"weights"})}
    awake = {"learner": NOTHING, "rollout": ALL["rollout"]}
    # An engine that is awake sleeps as a whole, to get its weights back without a cache.
    assert moves(awake, sync) == [
        Move("rollout", "sleep"),
        Move("learner", "reload", "weights"),
        Move("rollout", "wake", "weights"),
    ]
    assert moves({"rollout": NOTHING}, PHASES["rollout"]) == [
        Move("rollout", "wake", "weights"),
        Move("rollout", "wake", "kv_cache"),
    ]
    assert moves({"scoring": ALL["scoring"]}, PHASES["scoring"]) == []


@pytest.mark.parametrize("kind", ALL)
def test_every_fleet_has_a_phase_of_its_own(kind):
    assert PHASES[kind] == {kind: ALL[kind]}
