"""Simulated people in front of the same HTTP API as real ones: they join by an invite, read the guidelines,
and label until nothing waits. For tests, benchmarks, and for a run without people.

A person of kind `honest` perceives each response's quality with errors, as the world's simulated labelers do;
the careless kinds are `random`, `first` (prefers what is shown first) and `longest`.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from common.errors import UserError
from common.random_streams import Stream, derived_seed

Behaviour = Literal["honest", "random", "first", "longest"]
Quality = Callable[[Any, str], float]
"""(prompt, response) -> quality in [0, 1]. The people never see it; it says what they would like."""
RETRY_S = 0.2


def text_quality(prompt: Any, response: str) -> float:
    """A quality that everybody agrees on and that means nothing: from a hash of the text."""
    sha = hashlib.sha256(f"{prompt}\0{response}".encode()).digest()
    return int.from_bytes(sha[:4], "big") / 2**32


@dataclass
class SimulatedPerson:
    """One person at work."""

    url: str
    name: str
    seed: int
    behaviour: Behaviour = "honest"
    error_rate: float = 0.22
    """Share of the responses that an honest person misjudges."""
    tie: float = 0.05
    """Perceived qualities closer than this are equal."""
    abandons: float = 0.0
    """Share of the items that are opened and not submitted before the lease runs out."""
    abandon_s: float = 0.0
    """How long such an item is left alone."""
    quality: Quality = text_quality
    patience_s: float = 30.0
    """How long a server that does not answer is asked again, with the same key."""
    acknowledged: list[str] = field(default_factory=list)
    """Ids of labels that the server has confirmed."""
    durations_s: list[float] = field(default_factory=list)
    """Of each answered request of `next` and `submit`."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def join(self, code: str) -> str:
        """Joins and reads the guidelines; returns the person's id."""
        consent = self.post_or_get("/api/consent")
        body = {"code": code, "name": self.name, "consent_version": consent["version"]}
        person: str = self.post_or_get("/api/join", body, key=f"join-{self.name}")["person"]
        for kind in ("rank", "pair", "demonstrate"):
            version = self.post_or_get(f"/api/guidelines?kind={kind}")["version"]
            self.post_or_get("/api/guidelines/ack", {"version": version})
        return person

    def work(self, limit: int | None = None) -> None:
        """Labels until nothing waits, or `limit` labels are given."""
        number = 0
        while limit is None or len(self.acknowledged) < limit:
            started = time.monotonic()
            task = self.post_or_get("/api/next", {"kinds": ["rank", "pair"]})
            self.durations_s.append(time.monotonic() - started)
            if task is None:
                return
            if self.rng.random() < self.abandons:
                time.sleep(self.abandon_s)
                continue
            number += 1
            started = time.monotonic()
            path = f"/api/assignments/{task['assignment']}/submit"
            answer = self.post_or_get(
                path, self.label(task), key=f"{self.name}-{number}-{self.seed}", lost=(409,)
            )
            self.durations_s.append(time.monotonic() - started)
            if answer is not None:
                self.acknowledged.append(answer["label"])

    def label(self, task: dict[str, Any]) -> dict[str, Any]:
        """What this person says of an item."""
        responses = task["responses"]
        perceived = [self.perceive(task["prompt"], one["text"], place) for place, one in enumerate(responses)]
        ranks = self.ranks(perceived)
        ids = [one["id"] for one in responses]
        likert = [max(1, min(7, 1 + round(6 * value))) for value in perceived]
        ratings = {one: {"likert": value, "flags": []} for one, value in zip(ids, likert, strict=True)}
        if task["kind"] == "pair":
            ratings = {}
        return {"ratings": ratings, "ranks": dict(zip(ids, ranks, strict=True)), "active_ms": 1000}

    def perceive(self, prompt: Any, text: str, place: int) -> float:
        """Quality in [0, 1] as this person takes it to be."""
        if self.behaviour == "first":
            return 1 - place / 20
        if self.behaviour == "longest":
            return min(1.0, len(text) / 10_000)
        if self.behaviour == "random" or self.rng.random() < self.error_rate:
            return self.rng.random()
        return self.quality(prompt, text)

    def ranks(self, perceived: Sequence[float]) -> list[int]:
        """1 is best; near values are ties. The careless kinds see no ties."""
        tie = self.tie if self.behaviour == "honest" else 0.0
        places: dict[float, int] = {}
        place, best = 0, float("inf")
        for value in sorted(set(perceived), reverse=True):
            if value < best - tie:
                place, best = place + 1, value
            places[value] = place
        return [places[value] for value in perceived]

    def post_or_get(self, path: str, body: Any = None, key: str = "", lost: Sequence[int] = ()) -> Any:
        """The answer to a GET, or to a POST with a body; asked again while the server does not answer. None
        for 204 and for the statuses `lost`. Raises UserError for any other refusal."""
        deadline = time.monotonic() + self.patience_s
        headers = {"idempotency-key": key} if key else {}
        while True:
            try:
                if body is None:
                    answer = self.client.get(path)
                else:
                    answer = self.client.post(path, json=body, headers=headers)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise UserError(f"{self.url} does not answer; start it with `hero label serve`") from None
                time.sleep(RETRY_S)
                continue
            if answer.status_code == 204 or answer.status_code in lost:
                return None
            if answer.status_code != 200:
                raise UserError(f"{self.url}{path}: {answer.status_code} {answer.text[:300]}")
            return answer.json()


def make_people(url: str, count: int, seed: int, **settings: Any) -> list[SimulatedPerson]:
    """`count` people; those of one seed always behave alike."""
    people = []
    for i in range(count):
        own_seed = derived_seed(seed, Stream.LABELER_ERRORS, i)
        people.append(SimulatedPerson(url, f"simulated-{seed}-{i + 1}", own_seed, **settings))
    return people


def work_together(people: Sequence[SimulatedPerson], limit: int | None = None) -> None:
    """All of them at once, each in a thread. Raises the first error of any."""
    errors: list[BaseException] = []

    def work(one: SimulatedPerson) -> None:
        try:
            one.work(limit)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
