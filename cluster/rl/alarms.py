"""Alarms of the PPO stage: signs that the policy is leaving the ground on which its reward means something.

`cluster.stages.ppo` shows each iteration's metrics to an `Alarms`; what rings is written to the run, to W&B and to
the terminal with its evidence, and stops the run if `alarms.stop` names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cluster.config import AlarmName, AlarmsConfig


class Alarm(NamedTuple):
    name: AlarmName
    evidence: str


class Alarms:
    """Remembers what it has seen. An alarm rings once, and again only after its sign has been gone."""

    def __init__(self, config: AlarmsConfig, seen: Iterable[dict[str, float]] = ()) -> None:
        self.config = config
        self.ringing: set[AlarmName] = set()
        self._first: dict[str, float] | None = None
        self._evaluations: list[dict[str, float]] = []
        for metrics in seen:
            self.check(metrics)

    def check(self, metrics: dict[str, float]) -> list[Alarm]:
        """What rings anew in an iteration's metrics (with its "step")."""
        self._first = self._first or metrics
        signs = self._signs(metrics, self._first)
        if "eval/score" in metrics:
            self._evaluations.append(metrics)
            signs += self._overoptimized(metrics)
        elif "overoptimization" in self.ringing:
            signs.append(Alarm("overoptimization", ""))  # nothing new is known before the next evaluation
        new = [alarm for alarm in signs if alarm.name not in self.ringing]
        self.ringing = {alarm.name for alarm in signs}
        return new

    def _signs(self, now: dict[str, float], first: dict[str, float]) -> list[Alarm]:
        config, at = self.config, f"at iteration {now['step']:g}"
        kl, ended = now["objective/kl"], now["response/ended"]
        entropy, entropy_then = now["objective/entropy"], first["objective/entropy"]
        length, length_then = now["response/length"], first["response/length"]
        found = []
        if kl > config.kl:
            found.append(
                Alarm("kl", f"mean KL to the SFT policy {kl:.2f} nats {at}, over alarms.kl={config.kl:g}")
            )
        if entropy < config.entropy * entropy_then:
            was = f"{entropy_then:.3f} in the first iteration, under alarms.entropy={config.entropy:g} of it"
            found.append(Alarm("entropy", f"entropy {entropy:.4f} nats a token {at}, {was}"))
        if ended < config.ended:
            found.append(
                Alarm(
                    "ended", f"{ended:.1%} of the responses end by themselves {at}, under {config.ended:.0%}"
                )
            )
        if length > config.length * length_then:
            was = f"{length_then:.1f} in the first iteration, over alarms.length={config.length:g} times that"
            found.append(Alarm("length", f"responses of {length:.1f} tokens {at}, {was}"))
        return found

    def _overoptimized(self, now: dict[str, float]) -> list[Alarm]:
        """Gao et al. 2022 (arXiv:2210.10760): the proxy goes on rising after the gold score has turned."""
        best = max(self._evaluations, key=lambda m: m["eval/score"])
        error = (now["eval/score_error"] ** 2 + best["eval/score_error"] ** 2) ** 0.5
        fell = best["eval/score"] - now["eval/score"]
        if not (fell > self.config.overoptimization * error and now["eval/reward"] > best["eval/reward"]):
            return []
        return [
            Alarm(
                "overoptimization",
                (
                    f"the judge's score fell from {best['eval/score']:.3f} at iteration {best['step']:g} to {now['eval/score']:.3f} "
                    f"at {now['step']:g} ({fell / max(error, 1e-12):.1f} standard errors) while the reward rose from "
                    f"{best['eval/reward']:.3f} to {now['eval/reward']:.3f} and the KL from {best['eval/kl']:.2f} to "
                    f"{now['eval/kl']:.2f} nats"
                ),
            )
        ]
