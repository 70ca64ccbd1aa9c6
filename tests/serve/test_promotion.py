"""Promotion under load: no stream fails, bad versions are rolled back, dead replicas replaced."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import httpx
import psutil
import pytest

from common.errors import FleetError, UserError
from serve import promotion
from serve.versions import current_policy, list_promotions
from tests.serve.conftest import wait_for

LONG = {
    "model": "hero",
    "messages": [{"role": "user", "content": "Tell me all."}],
    "max_tokens": 200,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


class Clients:
    """Clients that stream one answer after another until stopped; gaps between chunks, versions, errors."""

    started: ClassVar[list["Clients"]] = []

    def __init__(self, endpoint, count: int) -> None:
        self.started.append(self)
        self.client, self.stopped = endpoint.client(), threading.Event()
        self.streams, self.errors, self.gaps, self.versions = 0, [], [], set()
        self.failed_began: list[float] = []
        self.pool = ThreadPoolExecutor(count)
        self.work = [self.pool.submit(self._run) for _ in range(count)]

    def _run(self) -> None:
        while not self.stopped.is_set():
            began = time.monotonic()
            try:
                last, length, end = began, 0, None
                for chunk in self.client.chat.completions.create(**LONG):
                    now = time.monotonic()
                    self.gaps.append(now - last)
                    last, length = now, length + 1
                    end = chunk
                assert end is not None, "no chunk"
                assert end.choices[0].finish_reason == "length", f"cut after {length} chunks"
                self.versions.add(end.system_fingerprint)
                self.streams += 1
            except Exception as error:
                self.errors.append(repr(error))
                self.failed_began.append(began)

    def stop(self) -> "Clients":
        self.stopped.set()
        for done in self.work:
            done.result()
        return self


@pytest.fixture(autouse=True)
def no_client_outlives_its_test():
    yield
    for clients in Clients.started:
        clients.stopped.set()


def served(endpoint) -> set[str]:
    return {r["models"]["hero"]["version"] for r in endpoint.status()["replicas"]}


@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_promotions_under_load_drop_nothing(endpoint, count):
    quiet = Clients(endpoint, 16)
    time.sleep(5)
    quiet.stop()
    busy, took = Clients(endpoint, 16), []
    for i in range(count):
        row = promotion.promote(endpoint.root, f"ppo-{1 + i % 2}", f"number {i}", who="test")
        assert (row["outcome"], row["stale"], row["replicas"]) == ("promoted", 0, 2)
        took.append(row["seconds"])
    busy.stop()
    print(
        f"\nwithout promotions: {quiet.streams} streams, longest gap {max(quiet.gaps):.2f} s; "
        f"with {count}: {busy.streams} streams, "
        f"{len(busy.errors)} failed, longest gap {max(busy.gaps):.2f} s; "
        f"a promotion took {sum(took) / count:.2f} s "
        f"(longest {max(took):.2f} s)"
    )
    assert not quiet.errors + busy.errors
    assert served(endpoint) == {"ppo-2"}
    assert any("," in v for v in busy.versions)  # written by several versions, and it says so


def test_after_a_promotion_answers_come_from_the_new_weights(endpoint):
    ask = {
        "model": "hero",
        "messages": [{"role": "user", "content": "Who?"}],
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 5,
        "temperature": 0,
    }
    client = endpoint.client()

    def top_logprob(model="hero"):
        answers = [client.chat.completions.create(**{**ask, "model": model}) for _ in range(6)]
        logprobs = {a.choices[0].logprobs.content[0].logprob for a in answers}
        assert max(logprobs) - min(logprobs) < 1e-5  # all replicas agree
        return logprobs.pop()

    sft = top_logprob("sft")
    assert abs(top_logprob() - sft) > 1e-4
    promotion.promote(endpoint.root, "sft-0", "the weights of `sft`", who="test")
    assert top_logprob() == pytest.approx(sft, abs=1e-5)


def test_hero_promote_and_rollback_log_who_and_why(endpoint):
    def hero(*arguments):
        command = [sys.executable, "-m", "cluster.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    run = hero("promote", str(endpoint.root), "ppo-1", "--why", "it is kinder")
    assert run.returncode == 0, run.stderr
    assert "ppo-1, 2 replicas" in run.stdout
    row = list_promotions(endpoint.root)[-1]
    assert (row["to"], row["why"], bool(row["who"])) == ("ppo-1", "it is kinder", True)
    assert row["metrics"]["after"]["logprob_error"] < 1e-5
    assert {"reward", "rude", "refusal"} <= row["metrics"]["before"].keys()
    run = hero("rollback", str(endpoint.root))
    assert run.returncode == 0, run.stderr
    assert served(endpoint) == {row["from"]}


def test_a_version_that_gives_nan_is_rolled_back_by_itself(endpoint):
    before = current_policy(endpoint.root).name
    expected = short_answers(endpoint)
    row = promotion.promote(endpoint.root, "nan-1", "try", who="test")
    assert row["outcome"] == "rolled back"
    assert current_policy(endpoint.root).name == before
    assert served(endpoint) == {before}
    assert short_answers(endpoint) == expected  # nothing is left of its keys and values
    assert (
        endpoint.client()
        .chat.completions.create(**{**LONG, "stream": False, "max_tokens": 4})
        .system_fingerprint
        == before
    )


def short_answers(endpoint) -> list[str]:
    """Greedy answers of both replicas to questions of several lengths."""
    client, answers = endpoint.client(), []
    for length in range(24):
        message = {"role": "user", "content": "What is the capital of Peru?" + " Please." * length}
        answer = client.chat.completions.create(
            model="hero", messages=[message], max_tokens=12, temperature=0
        )
        answers.append(answer.choices[0].message.content)
    return answers


def test_an_unsuitable_version_is_refused_before_any_swap(endpoint):
    before = served(endpoint)
    with pytest.raises(UserError, match="another architecture"):
        promotion.promote(endpoint.root, "wide-1", "try")
    with pytest.raises(UserError, match="served already"):
        promotion.promote(endpoint.root, before.copy().pop(), "try")
    assert served(endpoint) == before
    assert endpoint.get("/health").status_code == 200


def good_replicas(endpoint, count: int, version: str, without: int):
    """The replicas, once `count` of them hold the version and the one with process id `without` is gone."""
    try:
        replicas = endpoint.status()["replicas"]
    except httpx.HTTPError:  # this request went to the replica that died
        return None
    good = [r for r in replicas if r["pid"] != without and r["models"]["hero"]["version"] == version]
    return good if len(good) == count == len(replicas) else None


def test_a_killed_replica_loses_only_its_streams_and_returns(endpoint):
    promotion.promote(endpoint.root, "ppo-1", "not what `hero serve` was started with", who="test")
    pids = [replica["pid"] for replica in endpoint.status()["replicas"]]
    engines_of = {pid: psutil.Process(pid).children(recursive=True) for pid in pids}
    busy = Clients(endpoint, 16)
    time.sleep(3)
    victim = max(endpoint.status()["replicas"], key=lambda r: r["ongoing"])
    os.kill(victim["pid"], signal.SIGKILL)
    killed, short = time.monotonic(), endpoint.client()
    answered, failed = 0, []
    while not good_replicas(endpoint, 2, "ppo-1", victim["pid"]):
        assert time.monotonic() - killed < 300, "no new replica"
        if time.monotonic() - killed > 15:
            busy.stop()  # frees the cores for the new replica
        try:
            short.chat.completions.create(**{**LONG, "stream": False, "max_tokens": 2})
            answered += 1
        except Exception as error:
            failed.append((time.monotonic() - killed, repr(error)))
    recovered = time.monotonic() - killed
    busy.stop()
    print(
        f"\nkilled with {victim['ongoing']} streams in flight: "
        f"{len(busy.errors)} of {busy.streams + len(busy.errors)} streams "
        f"failed, {answered} short requests answered meanwhile, {len(failed)} failed, "
        f"two replicas again after {recovered:.1f} s"
    )
    assert len(busy.errors) <= victim["ongoing"] + 2  # two may have begun since the status was read
    assert (
        sum(began > killed for began in busy.failed_began) <= 1
    )  # the other replica answers, but for a rare race
    assert not failed
    assert answered > 5
    engines = engines_of[victim["pid"]]
    assert not [e for e in engines if e.is_running() and e.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_an_engine_whose_update_failed_is_replaced(endpoint):
    before = current_policy(endpoint.root).name
    pids = {r["pid"] for r in endpoint.status()["replicas"]}
    with pytest.raises(FleetError, match="failed half-way; this engine must be replaced"):
        promotion.promote(endpoint.root, "half-1", "try", who="test")
    assert (list_promotions(endpoint.root)[-1]["outcome"], current_policy(endpoint.root).name) == (
        "failed",
        before,
    )
    victim = wait_for(
        lambda: pids - {r["pid"] for r in endpoint.status()["replicas"]}, 60, "end of the broken replica"
    ).pop()
    assert (
        endpoint.client()
        .chat.completions.create(**{**LONG, "stream": False, "max_tokens": 4})
        .system_fingerprint
        == before
    )
    wait_for(lambda: good_replicas(endpoint, 2, before, victim), 300, "two good replicas")
