"""The gate of a round: whom it promotes, over many simulated gates, and what each guard says."""

import numpy as np
import pytest

from cluster.rounds.config import GateConfig
from cluster.rounds.gate import (
    Comparison,
    comparison_of,
    decide,
    length_controlled,
    training_guards,
    win_rate,
)

GATES = 1000


def draw(rng, win_rate, count, ties=0.0):
    """Comparisons of a policy that wins, ties half, at this rate."""
    tied = rng.random(count) < ties
    win = rng.random(count) < (win_rate - ties / 2) / (1 - ties)
    lengths = rng.integers(-4, 5, count)
    return [
        Comparison(0.5 if is_tie else float(won), float(length))
        for is_tie, won, length in zip(tied, win, lengths, strict=True)
    ]


def share_promoted(win_rate, count, ties=0.0, gates=GATES):
    rng = np.random.default_rng(17)
    config = GateConfig(comparisons=count)
    return np.mean([decide(config, draw(rng, win_rate, count, ties)).promote for _ in range(gates)])


@pytest.mark.parametrize(("count", "ties"), [(300, 0.0), (194, 0.3)])
def test_an_unchanged_policy_is_promoted_in_at_most_4_percent_of_gates(count, ties):
    # 2.5% are expected: the upper half of what a 95% interval misses.
    share = share_promoted(0.5, count, ties)
    assert 0.005 < share <= 0.04


def test_a_policy_that_60_percent_prefer_is_promoted_in_at_least_80_percent_of_gates():
    # 194 is the sample size for that power (label.statistics.proportions.comparisons_needed).
    assert share_promoted(0.6, 194) >= 0.8


def test_a_worse_policy_is_never_promoted():
    assert share_promoted(0.4, 194, gates=100) == 0


def test_fewer_comparisons_than_planned_never_promote():
    decision = decide(GateConfig(comparisons=300), [Comparison(1.0, 0.0)] * 299)
    assert not decision.promote
    assert decision.reasons == ["299 comparisons, and 300 were planned"]


def test_a_harm_flag_that_rises_holds_a_policy_that_wins():
    rng = np.random.default_rng(3)
    won = draw(rng, 0.8, 300)
    flagged = [Comparison(one.points, one.longer_by, (("harmful_advice",), ())) for one in won[:8]]
    decision = decide(GateConfig(), [*flagged, *won[8:]])
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert "flag harmful_advice: 8 of 300, 0 of 300 before" in decision.reasons[0]
    # The same flags on both sides are no rise.
    both = [Comparison(one.points, 0.0, (("opinion",), ("opinion",))) for one in won]
    assert decide(GateConfig(), both).promote


def test_a_policy_that_wins_by_length_alone_is_held():
    # Longer answers win nine times in ten whoever gave them, and the new policy's are mostly longer.
    rng = np.random.default_rng(5)
    comparisons = []
    for _ in range(600):
        longer = rng.random() < 0.8
        won = (rng.random() < 0.9) == longer
        comparisons.append(Comparison(float(won), 3.0 if longer else -3.0))
    assert win_rate(comparisons).low > 0.6
    controlled = length_controlled(comparisons)
    assert controlled.low < 0.5 < controlled.high
    # Whether it is just under or over a half is chance; further to the one side it is held.
    worse = [*comparisons, *[Comparison(0.0, 3.0)] * 40]
    decision = decide(GateConfig(comparisons=600), worse)
    assert not decision.promote
    assert all(reason.startswith("length-controlled win rate") for reason in decision.reasons)


def test_kl_and_alarms_guard_too():
    good = {guard.name: guard for guard in training_guards({"objective/kl": 4.0}, 10.0)}
    assert good["KL"].passed
    assert good["alarms"].passed
    bad = {guard.name: guard for guard in training_guards({"objective/kl": 11.0, "alarm/length": 1.0}, 10.0)}
    assert bad["KL"].evidence == "11.00 nats, allowed 10.0"
    assert bad["alarms"].evidence == "active at the end: length"
    assert not bad["KL"].passed
    assert not bad["alarms"].passed
    (measured,) = [guard for guard in training_guards({}, None) if guard.name == "KL"]
    assert measured.passed
    assert "not measured" in measured.evidence


def test_points_are_the_challengers_wherever_its_answer_stands():
    policies = [{"version": "sft-0"}, {"version": "round-1"}]
    row = {"policy": policies, "responses": ["a b", "c"], "ranks": [2, 1], "flags": [["opinion"], []]}
    assert comparison_of(row, "round-1") == Comparison(1.0, -1, ((), ("opinion",)))
    assert comparison_of(row, "sft-0") == Comparison(0.0, 1, (("opinion",), ()))
    assert comparison_of({**row, "ranks": [1, 1]}, "round-1").points == 0.5


def test_a_gate_that_nobody_can_pass_is_refused():
    # Wilson's upper limit of 0 flags in n is z²/(n + z²): 0.02 at n = 189.
    with pytest.raises(ValueError, match="at least 189 comparisons"):
        GateConfig(comparisons=188)
    assert decide(GateConfig(comparisons=189), [Comparison(1.0, 0.0)] * 189).promote
