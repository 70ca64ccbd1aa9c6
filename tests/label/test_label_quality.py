"""Who is admitted, who is paused and why, with simulated people."""

import json

import numpy as np
import pytest

from label.quality.config import PauseConfig
from label.quality.gold import gold_accuracy
from label.quality.judgment import Judgment
from label.quality.monitor import next_gold_share, person_quality
from label.quality.screening import screen
from label.quality.team import team_quality
from tests.label.simulated_people import Items, always_first, at_random, honest, judge, longest

CARELESS = {"random": at_random, "first": always_first, "longest": longest}


def screened(rank, rng, flag_error, demonstration):
    """The questionnaire as one simulated person answers it."""
    items = Items(40, rng)
    # A prompt whose responses are all equally good asks nothing.
    asked = [i for i in range(40) if len(set(items.gold(i))) > 1][:20]
    sensitive = np.arange(30) < 15
    said = sensitive ^ (rng.random(30) < flag_error)
    rankings = []
    for i in asked:
        rankings.append((judge("p", rank, items, i, rng).ranks, items.gold(i)))
    ratings = np.clip(np.rint(rng.normal(demonstration, 0.5, (3, 2))), 1, 7)
    return screen(zip(said.tolist(), sensitive.tolist(), strict=True), rankings, ratings.tolist(), [True] * 5)


def test_screening_admits_honest_people_and_nobody_who_clicks():
    """150 honest people, 25 who click at random, 25 who keep the order shown."""
    rng = np.random.default_rng(16)
    proposals = [screened(honest, rng, 0.07, 6.7).proposal for _ in range(150)]
    assert proposals.count("admit") / 150 >= 0.97
    careless = []
    for rank in (at_random, always_first):
        # Even with demonstrations that somebody else wrote, the rankings give them away.
        careless += [screened(rank, rng, 0.07, 6.7).proposal for _ in range(25)]
    assert careless.count("admit") / 50 <= 0.01
    assert careless.count("reject") >= 48


def test_screening_says_what_is_missing():
    perfect = [((1, 2, 3), (1, 2, 3))] * 20
    flags = [(True, True)] * 15 + [(False, False)] * 15
    demonstrations = [[6, 7], [7, 7], [6, 6]]
    result = screen(flags, perfect, demonstrations, [True] * 5, {"law": 5})
    assert result.proposal == "admit"
    assert result.reasons == []
    assert result.self_assessment == {"law": 5}
    short = screen(flags, perfect[:12], demonstrations, [])
    assert short.proposal == "second look"
    assert short.reasons == ["rankings: 12 of 20 answers"]
    # 22 of 30 misses 75% by less than chance, half of the sensitive ones missed by more.
    missed = screen([(True, True)] * 11 + [(False, True)] * 4 + [(True, False)] * 4 + [(False, False)] * 11,
                    perfect, demonstrations, [])  # fmt: skip
    assert missed.proposal == "second look"
    assert missed.reasons[0].startswith("flags: 0.733 [")
    blind = screen([(False, True)] * 15 + [(False, False)] * 15, perfect, demonstrations, [])
    assert blind.proposal == "reject"
    once = screen(flags, perfect, [[7], [7], [7]], [])
    assert once.proposal == "second look"
    assert once.reasons == ["demonstrations: 0 of 3 answers"]
    weak = screen(flags, perfect, [[5, 5], [5, 6], [5, 5]], [])
    assert weak.proposal == "reject"
    assert json.loads(json.dumps(weak.to_json()))["scores"][3]["failed"] is True


def test_gold_accuracy_counts_ties_half():
    assert gold_accuracy([((1, 1, 1), (1, 2, 3))] * 3).value == 0.5
    assert gold_accuracy([((1, 2), (1, 2))] * 8 + [((2, 1), (1, 2))] * 2).high == pytest.approx(
        0.9433, abs=5e-5
    )
    assert gold_accuracy([((1, 2), (1, 1))]).value is None, "gold without an order asks nothing"
    assert gold_accuracy([]).value is None


def in_work(seed, every, items_each=400, gold_share=0.05):
    """Eight people, three of them careless, each judging until a look at the figures pauses them.
    Returns name -> reasons of the pause."""
    rng = np.random.default_rng(seed)
    people = {f"honest {i}": honest for i in range(5)} | CARELESS
    items = Items(items_each, rng)
    paused = {}
    for name, rank in people.items():
        judgments, share = [], gold_share
        for i in range(items_each):
            judgments.append(judge(name, rank, items, i, rng, is_gold=rng.random() < share))
            if len(judgments) % every:
                continue
            quality = person_quality(judgments)
            share = next_gold_share(quality, gold_share)
            if quality.pause:
                paused[name] = [finding.code for finding in quality.findings if finding.pauses]
                break
    return paused


def test_careless_people_are_paused_within_400_items_and_honest_ones_are_not():
    honest_pauses, reasons = 0, {name: [] for name in CARELESS}
    for seed in range(20):
        paused = in_work(seed, every=100)
        assert set(CARELESS) <= set(paused), f"seed {seed}"
        honest_pauses += len(set(paused) - set(CARELESS))
        for name in CARELESS:
            reasons[name] += paused[name]
    assert honest_pauses <= 1
    assert reasons["random"].count("gold") >= 19
    assert reasons["longest"].count("gold") >= 19
    assert {"position", "straight_lining"} <= set(reasons["first"])


@pytest.mark.slow
def test_pauses_of_100_teams_looked_at_after_every_20_items():
    """Many looks are many chances to pause an honest person; all of them together stay below 1%."""
    honest_pauses = missed = 0
    for seed in range(100, 200):
        paused = in_work(seed, every=20)
        missed += len(set(CARELESS) - set(paused))
        honest_pauses += len(set(paused) - set(CARELESS))
    print(f"{honest_pauses} of 500 honest people paused, {missed} of 300 careless ones not")
    assert honest_pauses <= 5
    assert missed <= 3


def judgments_of(name, rank, count, seed=3, **how):
    rng = np.random.default_rng(seed)
    items = Items(count, rng)
    return [judge(name, rank, items, i, rng, **how) for i in range(count)]


def test_reasons_are_told_in_words():
    quality = person_quality(judgments_of("x", always_first, 40, is_gold=True))
    reasons = {finding.code: finding.reason for finding in quality.findings}
    assert "the response shown earlier is preferred in 100% of pairs" in reasons["position"]
    assert reasons["straight_lining"] == "the same ratings in 100% of items: (7, 6, 5, 4, 3, 2)"
    first = next(finding for finding in quality.findings if finding.code == "straight_lining")
    assert first.reason == "the same ranking in 100% of items: ranks in the order shown"
    assert "of 40 gold items as expected, at most" in reasons["gold"]
    assert quality.pause
    assert json.loads(json.dumps(quality.to_json()))["pause"] is True
    with pytest.raises(ValueError, match="2 people"):
        person_quality([*judgments_of("x", honest, 2), *judgments_of("y", honest, 2)])


def test_fast_readers_are_paused_and_slow_clocks_are_not():
    fast = person_quality(judgments_of("x", honest, 40, words_per_minute=2000))
    assert [finding.code for finding in fast.findings] == ["speed"]
    assert fast.pause
    assert "faster than 900 words a minute" in fast.findings[0].reason
    unknown = [Judgment("x", str(i), (1, 2), words=(9, 9)) for i in range(40)]
    quality = person_quality(unknown)
    assert (quality.findings, quality.reading.words_per_minute.value) == ((), None)
    assert person_quality([]).pause is False


def test_a_decision_of_the_owner_starts_the_figures_anew():
    bad, good = judgments_of("x", always_first, 40), judgments_of("x", honest, 80, seed=4)
    later = [Judgment(**{**vars(one), "time": one.time + 1000}) for one in good]
    assert [one.code for one in person_quality(bad + later).findings if one.pauses] == ["position"]
    assert person_quality(bad + later[:1], since=1000.0).pause is False
    assert person_quality(bad + later, PauseConfig(window=80)).items == 80


def test_drift_and_self_agreement_warn_without_pausing():
    good = judgments_of("x", honest, 40, is_gold=True)
    worse = judgments_of("x", at_random, 14, seed=9, is_gold=True)
    later = [Judgment(**{**vars(one), "time": one.time + 1000}) for one in worse]
    quality = person_quality(good[:14] + later, PauseConfig(gold_accuracy=0.55))
    assert "drift" in [finding.code for finding in quality.findings]
    assert not quality.pause
    rng = np.random.default_rng(0)
    repeats = []
    for one in judgments_of("x", at_random, 60):
        repeats.append(Judgment(**{**vars(one), "earlier": tuple((rng.permutation(6) + 1).tolist())}))
    codes = [finding.code for finding in person_quality(repeats).findings]
    assert "self_agreement" in codes


def test_team_figures_of_simulated_labelers():
    """Of eight labelers with the quickstart's error rate, near the 74% and τ_b of .43 that its own
    labelers have on its SFT samples."""
    rng = np.random.default_rng(8)
    items = Items(60, rng)
    judgments = []
    for w in range(8):
        judgments += [judge(f"labeler {w}", honest, items, i, rng) for i in range(60)]
    figures = team_quality(judgments, rng, draws=200)
    assert figures["agreement"]["value"] == pytest.approx(0.74, abs=0.04)
    assert figures["tau_b"]["value"] == pytest.approx(0.43, abs=0.08)
    assert figures["agreement"]["n"] == 60
    assert 0.3 < figures["alpha_nominal"]["value"] < figures["alpha_ordinal"]["value"] < 0.6
    assert figures["alpha_nominal"]["n"] == 60, "items, not pairs"
    assert len(figures["agreement_with_others"]) == 8
    assert figures["policies"] is None
    assert json.loads(json.dumps(figures)) == figures


def test_team_figures_of_an_export():
    """Rows as training reads them; the second labeler is alone with one of the items."""
    row = {
        "prompt": [{"role": "user", "content": "name a fruit"}],
        "responses": ["an apple", "a stone", "a pear"],
        "ranks": [1, 3, 1],
        "likert": [7, 1, None],
        "order": [2, 0, 1],
        "labeler": "blue",
        "item": "i1",
        "active_ms": 9000,
        "time": 5.0,
        "policy": [{"model": "ppo", "version": "ppo-20"}, {"model": "sft", "version": "sft"}] * 1
        + [{"model": "ppo", "version": "ppo-20"}],
    }
    judgment = Judgment.from_row(row, gold=[1, 2, 1])
    assert judgment.shown_ranks() == (1, 1, 3)
    assert judgment.shown_likert() == (None, 7, 1)
    assert (judgment.words, judgment.prompt_words) == ((2, 2, 2), 3)
    others = [Judgment.from_row({**row, "labeler": "red", "item": item}) for item in ("i1", "i2")]
    figures = team_quality([judgment, *others], np.random.default_rng(0), draws=50)
    assert figures["agreement"]["value"] == 1
    assert figures["agreement_with_others"]["red"]["n"] == 1
    policies = figures["policies"]
    assert list(policies["bradley_terry"]["strengths"]) == ["ppo ppo-20", "sft sft"]
    assert policies["votes_to_swap"] is None
    assert Judgment.from_row({"responses": ["a", "b"], "ranks": [1, 2]}).order == ()
    empty = team_quality([], np.random.default_rng(0), draws=5)
    assert empty["alpha_nominal"]["why"] == "no item has two labels"
