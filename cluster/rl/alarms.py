"""Alarms of the PPO stage: signs that the policy moves to where its reward means little.

`cluster.stages.ppo` passes each iteration's metrics to `Alarms.check` and the alarms that fire to
`emit`, which writes them to the run, to W&B and to the terminal with their evidence, and stops
the run if `alarms.stop` names one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cluster.config import AlarmName, AlarmsConfig
from cluster.run.monitor import Monitor
from cluster.run.progress import Bar
from common.errors import RunStoppedError

Metrics = dict[str, float]

DISAGREEMENT = "rewards/disagreement"
DEFAULT_KL = 10.0
"""Of `alarms.kl`, nats."""


class Alarm(NamedTuple):
    name: AlarmName
    evidence: str


class Alarms:
    """An alarm fires once when its condition begins to hold, and again only after the condition
    was absent."""

    def __init__(self, config: AlarmsConfig, earlier: Iterable[Metrics] = ()) -> None:
        """`earlier` are the metrics of all iterations before a restart: they restore the state."""
        self.config = config
        self.active: set[AlarmName] = set()
        """Alarms whose condition held in the last iteration."""
        self._first: Metrics | None = None
        self._evaluations: list[Metrics] = []
        for metrics in earlier:
            self.check(metrics)

    def check(self, metrics: Metrics) -> list[Alarm]:
        """The alarms that fire on one iteration's metrics (with its "step")."""
        # Entropy and length depend on the task: only their change since the start means something.
        if self._first is None:
            self._first = metrics
        conditions = self._conditions(metrics, self._first)
        if "eval/score" in metrics:
            self._evaluations.append(metrics)
            conditions += self._overoptimization(metrics)
        elif "overoptimization" in self.active:
            # Between two evaluations there is nothing new to decide on: the condition stays.
            conditions.append(Alarm("overoptimization", ""))
        fired = [alarm for alarm in conditions if alarm.name not in self.active]
        self.active = {alarm.name for alarm in conditions}
        return fired

    def _conditions(self, metrics: Metrics, first: Metrics) -> list[Alarm]:
        """Alarms whose condition holds on the metrics of one iteration and the first."""
        config, at = self.config, f"at iteration {metrics['step']:g}"
        alarms = []
        kl, kl_limit = metrics.get("objective/kl"), config.kl or DEFAULT_KL
        # Without the reference policy there is no KL.
        if kl is not None and kl > kl_limit:
            limit = f"over alarms.kl={kl_limit:g}"
            evidence = f"mean KL to the SFT policy {kl:.2f} nats {at}, {limit}"
            alarms.append(Alarm("kl", evidence))
        entropy, entropy_first = metrics["objective/entropy"], first["objective/entropy"]
        if entropy < config.entropy * entropy_first:
            then = f"{entropy_first:.3f} in the first iteration"
            limit = f"under alarms.entropy={config.entropy:g} of it"
            evidence = f"entropy {entropy:.4f} nats a token {at}, {then}, {limit}"
            alarms.append(Alarm("entropy", evidence))
        ended = metrics["response/ended"]
        if ended < config.ended:
            limit = f"under {config.ended:.0%}"
            evidence = f"{ended:.1%} of the responses end by themselves {at}, {limit}"
            alarms.append(Alarm("ended", evidence))
        length, length_first = metrics["response/length"], first["response/length"]
        if length > config.length * length_first:
            then = f"{length_first:.1f} in the first iteration"
            limit = f"over alarms.length={config.length:g} times that"
            evidence = f"responses of {length:.1f} tokens {at}, {then}, {limit}"
            alarms.append(Alarm("length", evidence))
        now, at_first = metrics.get(DISAGREEMENT), first.get(DISAGREEMENT)
        if now is not None and at_first is not None and now > config.disagreement * at_first:
            limit = f"over alarms.disagreement={config.disagreement:g} times that"
            evidence = (
                f"the reward models' scores of a response differ by {now:.3f} (standard deviation) {at}, "
                f"{at_first:.3f} in the first iteration, {limit}"
            )
            alarms.append(Alarm("disagreement", evidence))
        return alarms

    def _overoptimization(self, metrics: Metrics) -> list[Alarm]:
        """Gao et al. 2022 (arXiv:2210.10760): the proxy reward goes on rising after the gold
        score has turned."""
        best = max(self._evaluations, key=lambda evaluation: evaluation["eval/score"])
        error = (metrics["eval/score_error"] ** 2 + best["eval/score_error"] ** 2) ** 0.5
        fall = best["eval/score"] - metrics["eval/score"]
        score_falls = fall > self.config.overoptimization * error
        reward_rises = metrics["eval/reward"] > best["eval/reward"]
        if not (score_falls and reward_rises):
            return []
        # An evaluation of one prompt has error 0.
        errors = fall / max(error, 1e-12)
        score = f"from {best['eval/score']:.3f} at iteration {best['step']:g} to "
        score += f"{metrics['eval/score']:.3f} at {metrics['step']:g} ({errors:.1f} standard errors)"
        reward = f"from {best['eval/reward']:.3f} to {metrics['eval/reward']:.3f}"
        evidence = f"the judge's score fell {score} while the reward rose {reward}"
        if "eval/kl" in metrics:
            evidence += f" and the KL from {best['eval/kl']:.2f} to {metrics['eval/kl']:.2f} nats"
        return [Alarm("overoptimization", evidence)]


def emit(fired: Sequence[Alarm], step: int, config: AlarmsConfig, monitor: Monitor, bar: Bar) -> None:
    """Writes alarms to the run, W&B and the terminal. Raises RunStoppedError for one that
    `alarms.stop` names."""
    for name, evidence in fired:
        monitor.alarm(step, name, evidence)
        bar.print_line(f"alarm {name}: {evidence}")
    # All are written before one stops the run: the others may be what explains it.
    for name, evidence in fired:
        if name in config.stop:
            raise RunStoppedError(
                f"the run stops at iteration {step}, since alarms.stop has {name}: {evidence}"
            )
