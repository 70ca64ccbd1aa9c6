"""Simulated people in front of the same HTTP API as real ones: they join by an invite, read the guidelines,
answer the questionnaire, and label until nothing waits or the workplace pauses them. For tests, benchmarks,
and for a run without people.

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
from label.questionnaire import Question, Questionnaire

Behaviour = Literal["honest", "random", "first", "longest"]
Quality = Callable[[Any, str], float]
"""(prompt, response) -> quality in [0, 1]. The people never see it; it says what they would like."""
RETRY_S = 0.2
WORDS_PER_MINUTE = 250
FLAG_ERROR, READING_ERROR = 0.07, 0.02
"""Share of the questionnaire's texts that an honest person flags wrongly, and of its other questions."""
CAREFUL = "I would listen first, say that I am glad to be asked, and then answer calmly and to the point."
CARELESS = "ok"
"""Demonstrations of honest and of careless people."""


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
    stopped: str = ""
    """What the workplace said when it gave no more work."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def join(self, code: str) -> str:
        """Joins and reads the guidelines; returns the person's id."""
        consent = self.post_or_get("/api/consent")
        body = {"code": code, "name": self.name, "consent_version": consent["version"]}
        person: str = self.post_or_get("/api/join", body, key=f"join-{self.name}")["person"]
        self.read_guidelines()
        return person

    def read_guidelines(self) -> None:
        """Acknowledges the newest version of each."""
        for kind in ("rank", "pair", "demonstrate"):
            version = self.post_or_get(f"/api/guidelines?kind={kind}")["version"]
            self.post_or_get("/api/guidelines/ack", {"version": version})

    def answer_questions(self, questionnaire: Questionnaire) -> None:
        """Answers all questions that the API gives; `questionnaire` has what is right."""
        shown = self.post_or_get("/api/screen")
        while shown["next"] is not None:
            question = questionnaire.questions[shown["next"]["id"]]
            body = {"question": question.id, "value": self.answer(question, shown["next"])}
            shown = self.post_or_get("/api/screen/answers", body)

    def answer(self, question: Question, shown: dict[str, Any]) -> Any:
        is_honest = self.behaviour == "honest"
        if question.section == "topic":
            return self.rng.randint(1, 5)
        if question.section == "write":
            return CAREFUL if is_honest else CARELESS
        if question.section == "rank":
            texts = shown["responses"]
            rank = dict(zip(question.content["responses"], question.right, strict=True))
            worth = {text: 1 - (rank[text] - 1) / max(1, len(rank) - 1) for text in texts}
            return self.ranks([self.sees(worth[text], text, place) for place, text in enumerate(texts)])
        if question.section == "flag":
            if is_honest:
                return question.right != (self.rng.random() < FLAG_ERROR)
            return self.rng.random() < 0.5
        if is_honest and self.rng.random() >= READING_ERROR:
            return question.right
        return self.rng.randint(1, len(shown["options"]))

    def rate_demonstrations(self) -> None:
        """What a simulated reviewer thinks of demonstrations: 7 of long ones, 1 of short ones."""
        for one in self.post_or_get("/api/demonstrations")["demonstrations"]:
            score = 7 if len(one["text"]) > 40 else 1
            self.post_or_get("/api/demonstrations", {"id": one["id"], "score": score})

    def work(self, limit: int | None = None) -> None:
        """Labels until nothing waits, or `limit` labels are given."""
        number = 0
        while limit is None or len(self.acknowledged) < limit:
            started = time.monotonic()
            task = self.post_or_get("/api/next", {"kinds": ["rank", "pair"]}, stops=True)
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
                path, self.label(task), key=f"{self.name}-{number}-{self.seed}", lost=(409,), stops=True
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
        # As long as reading takes; nobody sleeps.
        words = sum(len(one["text"].split()) for one in responses) + len(str(task["prompt"]).split())
        minutes = words / WORDS_PER_MINUTE * self.rng.lognormvariate(0, 0.25)
        active_ms = 1000 + int(60_000 * minutes)
        return {"ratings": ratings, "ranks": dict(zip(ids, ranks, strict=True)), "active_ms": active_ms}

    def perceive(self, prompt: Any, text: str, place: int) -> float:
        """Quality in [0, 1] as this person takes it to be."""
        return self.sees(self.quality(prompt, text), text, place)

    def sees(self, worth: float, text: str, place: int) -> float:
        """What a response that is worth `worth` looks like to this person."""
        if self.behaviour == "first":
            return 1 - place / 20
        if self.behaviour == "longest":
            return min(1.0, len(text) / 10_000)
        if self.behaviour == "random" or self.rng.random() < self.error_rate:
            return self.rng.random()
        return worth

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

    def post_or_get(
        self, path: str, body: Any = None, key: str = "", lost: Sequence[int] = (), stops: bool = False
    ) -> Any:
        """The answer to a GET, or to a POST with a body; asked again while the server does not answer. None
        for 204, for the statuses `lost`, and if the person may not work any more and `stops`. Raises
        UserError for any other refusal."""
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
            if stops and answer.status_code == 403:
                self.stopped = answer.json()["error"]["message"]
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
