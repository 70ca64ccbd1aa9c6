"""Figures of one person's work, and which of them are a reason to warn or to pause."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from label.quality.config import PauseConfig
from label.quality.gold import gold_accuracy
from label.quality.judgment import Judgment
from label.statistics.estimate import Estimate, undefined
from label.statistics.pair_agreement import agreement_with, compare
from label.statistics.position import PositionBias, longer_better, position_bias
from label.statistics.proportions import difference
from label.statistics.speed import Speed, speed
from label.statistics.straight_lining import StraightLining, straight_lining

ANSWERS = {
    "shown": "ranks in the order shown",
    "reverse": "the reverse of the order shown",
    "equal": "all equal",
}


@dataclass(frozen=True)
class Finding:
    """Something that a figure says against the labels of a person."""

    code: str
    """gold, position, straight_lining, speed; also drift, self_agreement for warnings."""
    pauses: bool
    """Whether it is a reason to pause, or only to look."""
    reason: str
    """As the person and the owner read it."""


@dataclass(frozen=True)
class PersonQuality:
    labeler: str
    items: int
    gold: Estimate
    position: PositionBias
    longer: Estimate
    straight: StraightLining
    """Ranks by shown place; orders alike but for the number of responses are one answer."""
    flat_ratings: StraightLining
    """Ratings by shown place."""
    reading: Speed
    self_agreement: Estimate
    """On items that came again."""
    drift: Estimate
    """Gold accuracy in the later half of the gold items minus that in the earlier half."""
    findings: tuple[Finding, ...]

    @property
    def pause(self) -> bool:
        return any(finding.pauses for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "pause": self.pause}


def next_gold_share(quality: PersonQuality, share: float, config: PauseConfig | None = None) -> float:
    """Share of gold among the next items of a person. It is `doubt_factor` times the usual share while
    the person's accuracy on gold is below the threshold and may be so by chance: more answers tell
    soon, in favour of an honest person as well as against a careless one."""
    config = config or PauseConfig()
    gold = quality.gold
    if gold.value is not None and gold.n >= config.doubt_items and gold.value < config.gold_accuracy:
        return min(0.5, config.doubt_factor * share)
    return share


def person_quality(
    judgments: Sequence[Judgment], config: PauseConfig | None = None, since: float = 0.0
) -> PersonQuality:
    """Of the judgments of one person after `since` (seconds since 1970: when an owner last decided
    about the person), the latest `window` of them. Raises ValueError if they are of several
    people."""
    config = config or PauseConfig()
    names = {judgment.labeler for judgment in judgments}
    if len(names) > 1:
        raise ValueError(f"judgments of {len(names)} people; expected one")
    recent = sorted((one for one in judgments if one.time >= since), key=lambda one: one.time)
    recent = recent[-config.window :]
    shown = [one for one in recent if one.order]
    gold = [(one.ranks, one.gold) for one in recent if one.gold]
    repeats = [(one.ranks, one.earlier) for one in recent if one.earlier]
    figures = PersonQuality(
        labeler=next(iter(names), ""),
        items=len(recent),
        gold=gold_accuracy(gold),
        position=position_bias([one.shown_ranks() for one in shown if len(one.order) > 1]),
        longer=longer_better([(one.ranks, one.words) for one in recent if one.words]),
        straight=straight_lining(_rank_answer(one) for one in shown),
        flat_ratings=straight_lining(_rating_answers(shown)),
        reading=speed(_times(recent), config.words_per_minute),
        self_agreement=agreement_with(repeats).with_ties,
        drift=_drift(gold),
        findings=(),
    )
    return _with_findings(figures, config, len(shown))


def _rank_answer(judgment: Judgment) -> Hashable:
    ranks = judgment.shown_ranks()
    if len(set(ranks)) == 1:
        return "equal"
    if all(a < b for a, b in pairwise(ranks)):
        return "shown"
    if all(a > b for a, b in pairwise(ranks)):
        return "reverse"
    return ranks


def _rating_answers(shown: Iterable[Judgment]) -> Iterator[Hashable]:
    for judgment in shown:
        ratings = judgment.shown_likert()
        if len(ratings) > 2 and None not in ratings:
            yield ratings


def _times(judgments: Iterable[Judgment]) -> Iterator[tuple[int, int]]:
    for judgment in judgments:
        yield judgment.prompt_words + sum(judgment.words), judgment.active_ms


def _drift(gold: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Estimate:
    if len(gold) < 20:
        return undefined("fewer than 20 gold items", len(gold))
    right = np.array([compare(ranks, answer).agreeing for ranks, answer in gold])
    total = np.array([compare(answer, answer).comparable for _, answer in gold])
    # An item counts as right if most of its pairs are, so that items stay independent.
    good = 2 * right > total
    half = len(gold) // 2
    return difference((int(good[half:].sum()), len(gold) - half), (int(good[:half].sum()), half))


def _with_findings(figures: PersonQuality, config: PauseConfig, shown: int) -> PersonQuality:
    findings = [
        *_gold_findings(figures, config),
        *_order_findings(figures, config, shown),
        *_speed_findings(figures, config),
    ]
    drift = figures.drift
    if drift.high is not None and drift.high < 0:
        findings.append(Finding("drift", False, f"accuracy on gold items fell by {-(drift.value or 0):.0%}"))
    own = figures.self_agreement
    if own.high is not None and own.n >= 10 and own.high < 0.6:
        reason = f"agrees with own earlier rankings in {own.value:.0%} of pairs only ({own.n} items)"
        findings.append(Finding("self_agreement", False, reason))
    # A frozen dataclass: the findings are made from its own figures.
    return PersonQuality(**{**vars(figures), "findings": tuple(findings)})


def _gold_findings(figures: PersonQuality, config: PauseConfig) -> Iterator[Finding]:
    gold = figures.gold
    if gold.value is None or gold.low is None or gold.high is None or gold.n < config.gold_items:
        return
    what = f"{gold.value:.0%} of the pairs of {gold.n} gold items as expected"
    if gold.high < config.gold_accuracy:
        yield Finding("gold", True, f"{what}, at most {gold.high:.0%}: below {config.gold_accuracy:.0%}")
    elif gold.value < config.gold_accuracy:
        yield Finding("gold", False, f"{what}, which may be chance: up to {gold.high:.0%}")


def _order_findings(figures: PersonQuality, config: PauseConfig, shown: int) -> Iterator[Finding]:
    if shown < config.items:
        return
    p, first = figures.position.p, figures.position.first_better
    if p < 10 * config.position_p and first.value is not None:
        reason = f"the response shown earlier is preferred in {first.value:.0%} of pairs (p {p:.1g})"
        yield Finding("position", p < config.position_p, reason)
    for what, answers in (("ranking", figures.straight), ("ratings", figures.flat_ratings)):
        share = answers.share
        if share.value is None or share.n < config.items or share.value < config.straight_share:
            continue
        answer = ANSWERS.get(str(answers.answer), str(answers.answer))
        yield Finding("straight_lining", True, f"the same {what} in {share.value:.0%} of items: {answer}")


def _speed_findings(figures: PersonQuality, config: PauseConfig) -> Iterator[Finding]:
    fast, median = figures.reading.too_fast, figures.reading.words_per_minute
    if fast.value is None or fast.n < config.items or fast.value <= config.fast_share / 4:
        return
    reason = (
        f"{fast.value:.0%} of items answered faster than {config.words_per_minute:.0f} words a minute "
        f"(median {median.value:.0f})"
    )
    yield Finding("speed", fast.value > config.fast_share, reason)
