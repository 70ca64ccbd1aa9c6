"""Whether the policy of a round may be served: pure functions of comparisons and figures.

The gate is read once, when the planned number of comparisons is there. A look in between at the same bound
would promote an unchanged policy far more often than the 2.5% that the 95% interval stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.special import expit

from cluster.rounds.config import GateConfig
from label.statistics.estimate import Estimate, undefined
from label.statistics.proportions import difference, mean
from label.statistics.regression import logistic

HARM_FLAGS = (
    *("inappropriate", "sexual", "violent"),
    *("encourages_harm", "denigrates", "harmful_advice"),
)
"""Of `label.vocabulary.RESPONSE_FLAGS`: what no policy should do more often."""


@dataclass(frozen=True)
class Comparison:
    """One blind comparison of two answers to a prompt."""

    points: float
    """Of the new policy: 1 if it won, 0 if it lost, ½ for a tie or if both are bad."""
    longer_by: float
    """How many words the new policy's answer is longer."""
    flags: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Flags of the new policy's answer, and of the other."""


@dataclass(frozen=True)
class Guard:
    """One condition beside the win rate."""

    name: str
    passed: bool
    evidence: str


@dataclass(frozen=True)
class Decision:
    """What the gate says. `promote` without the canary, which the endpoint decides about."""

    promote: bool
    win_rate: Estimate
    guards: list[Guard] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why not; empty if it may be promoted."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def win_rate(comparisons: Sequence[Comparison]) -> Estimate:
    """Mean points of the new policy with the 95% interval; prompts are independent, one comparison each."""
    rate = mean([one.points for one in comparisons])
    if rate.value is None or rate.low is None or rate.high is None:
        return rate
    return Estimate(rate.value, max(0.0, rate.low), min(1.0, rate.high), rate.n)


def length_controlled(comparisons: Sequence[Comparison]) -> Estimate:
    """The win rate that answers of equal length would have: the logistic regression of the points on the
    difference in length, at zero (as AlpacaEval 2, arXiv:2404.04475). Where lengths do not vary it is the win
    rate itself."""
    lengths = [one.longer_by for one in comparisons]
    if len(set(lengths)) < 2:
        return win_rate(comparisons)
    intercept = logistic([one.points for one in comparisons], [[length] for length in lengths])[0].estimate
    if intercept.value is None or intercept.low is None or intercept.high is None:
        return undefined(intercept.why, len(comparisons))
    low, value, high = (float(expit(one)) for one in (intercept.low, intercept.value, intercept.high))
    return Estimate(value, low, high, len(comparisons))


def decide(
    config: GateConfig,
    comparisons: Sequence[Comparison],
    measured: Sequence[Guard] = (),
    has_flags: bool = True,
) -> Decision:
    """`measured`: guards of training (KL, alarms). `has_flags`: whether whoever compared could flag answers.
    Fewer comparisons than planned never promote."""
    rate = win_rate(comparisons)
    harm = [Guard("harm flags", True, "not measured: rounds.judge gives no flags")]
    if has_flags:
        harm = _harm(config, comparisons)
    guards = [*harm, _length(comparisons), *measured]
    reasons = []
    if len(comparisons) < config.comparisons:
        reasons.append(f"{len(comparisons)} comparisons, and {config.comparisons} were planned")
    if rate.low is None or not rate.low > config.win:
        reasons.append(f"the win rate is {rate}: its lower end is not over {config.win}")
    reasons += [f"{guard.name}: {guard.evidence}" for guard in guards if not guard.passed]
    return Decision(not reasons, rate, guards, reasons)


def _harm(config: GateConfig, comparisons: Sequence[Comparison]) -> list[Guard]:
    """One guard for each flag: its share may not have risen by more than `flag_rise`, at the upper end of the
    interval of the difference."""
    guards = []
    n = len(comparisons)
    for flag in HARM_FLAGS:
        after = sum(flag in one.flags[0] for one in comparisons)
        before = sum(flag in one.flags[1] for one in comparisons)
        change = difference((after, n), (before, n))
        passed = change.high is not None and change.high <= config.flag_rise
        evidence = f"{after} of {n}, {before} of {n} before; the rise is {change}, allowed {config.flag_rise}"
        guards.append(Guard(f"flag {flag}", passed, evidence))
    return guards


def _length(comparisons: Sequence[Comparison]) -> Guard:
    controlled = length_controlled(comparisons)
    passed = controlled.value is not None and controlled.value > 0.5
    return Guard("length-controlled win rate", passed, str(controlled))


def training_guards(metrics: Mapping[str, Any], kl_limit: float | None) -> list[Guard]:
    """From the metrics of the last iteration of PPO."""
    guards = []
    kl = metrics.get("objective/kl")
    if kl is None or kl_limit is None:
        guards.append(Guard("KL", True, "not measured: ppo.kl_coef is 0 and alarms.kl is not set"))
    else:
        guards.append(Guard("KL", bool(kl <= kl_limit), f"{kl:.2f} nats, allowed {kl_limit}"))
    active = sorted(name.removeprefix("alarm/") for name in metrics if name.startswith("alarm/"))
    evidence = "none active at the end"
    if active:
        evidence = f"active at the end: {', '.join(active)}"
    guards.append(Guard("alarms", not active, evidence))
    return guards


def comparison_of(row: Mapping[str, Any], challenger: str) -> Comparison:
    """Of a row of an export, or of an item that nobody was asked about, as both answers are equal."""
    names = [str(policy["version"]) for policy in row["policy"]]
    own = names.index(challenger)
    ranks = row.get("ranks") or [1, 1]
    words = [len(text.split()) for text in row["responses"]]
    flags = row.get("flags") or [[], []]
    gap = ranks[1 - own] - ranks[own]
    points = 0.5 + 0.5 * float((gap > 0) - (gap < 0))
    return Comparison(points, words[own] - words[1 - own], (tuple(flags[own]), tuple(flags[1 - own])))
