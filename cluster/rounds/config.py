"""The `rounds` section of the configuration (`hero rounds`)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from actors.reward_config import FunctionReward, HTTPReward, JudgeReward, RewardSource
from common.config import Section
from label.statistics.estimate import Z


class GateConfig(Section):
    comparisons: int = Field(300, ge=20)
    """Blind comparisons of the new policy with the served one, after which the gate is read, once. To
    promote a policy that is preferred in 60% (55%) with a chance of 80% it takes 194 (783)."""
    win: float = Field(0.5, ge=0.5, lt=1)
    """What the lower end of the 95% interval of the win rate must be over."""
    flag_rise: float = Field(0.02, gt=0, lt=1)
    """By how much the share of no harm flag may have risen, at the upper end of its interval."""
    anchor: int = Field(100, ge=0)
    """Comparisons of the new policy with the SFT policy, the same in every round, where that is not the
    served one."""

    @model_validator(mode="after")
    def _can_be_passed(self) -> GateConfig:
        # Wilson's upper limit of no flag at all among n.
        least = math.ceil(Z**2 * (1 - self.flag_rise) / self.flag_rise)
        if self.comparisons < least:
            raise ValueError(
                f"with flag_rise {self.flag_rise} no policy can pass {self.comparisons} comparisons, even "
                f"without a flag; take at least {least} comparisons, or a larger flag_rise"
            )
        return self


AnyJudge = FunctionReward | HTTPReward | JudgeReward


class RoundsConfig(Section):
    count: int = Field(2, ge=1)
    """Rounds until `hero rounds` is finished."""
    prompts: int = Field(1350, ge=2)
    """Prompts of a round whose responses people rank. The share reward_model.validation_share of them is
    held out, for ever."""
    responses: int = Field(6, ge=2, le=9)
    """Responses to each prompt."""
    previous: int = Field(2, ge=0)
    """How many of them are the policy's before the newest one: so rankings compare the two. From the second
    round on."""
    overlap: float = Field(0.1, ge=0, le=1)
    """Share of the prompts that a second person ranks too, to measure agreement."""
    deadline_h: float | None = Field(None, gt=0)
    """Hours after which labelling closes if min_share of the labels are there; below that it waits and says
    so. Empty: no deadline."""
    min_share: float = Field(0.8, gt=0, le=1)
    """Share of the labels that must be there at the deadline."""
    select: Literal["random", "fisher"] = "random"
    """How prompts to learn from are chosen. fisher: a part of them so that their responses tell most about
    the reward model (greedy D-optimal design on its features, arXiv:2502.04354). From the second round on,
    until in two rounds in a row the chosen ones gained nothing over the random ones."""
    random_share: float = Field(0.5, ge=0.4, le=1)
    """Share of the prompts to learn from that is drawn at random all the same."""
    candidates: float = Field(3.0, gt=1)
    """Prompts that responses are sampled for, for each one that is chosen."""
    comparison_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of all prompts that is kept for blind comparisons and never trained on."""
    calibration: int = Field(20, ge=0)
    """Prompts whose responses everybody ranks now and then (label.calibration_share); never trained on."""
    labelers: int = Field(0, ge=0)
    """Simulated people who join over HTTP and label. 0: real people, on `hero label serve RUN`."""
    error_rate: float = Field(0.22, ge=0, le=0.8)
    """Share of the responses that a simulated person misjudges."""
    judge: AnyJudge | None = Field(None, discriminator="kind")
    """What compares policies for the gate in place of people: a source as in rewards.sources, of kind
    function, http or judge, which scores each answer alone. Empty: people. Rankings are always people's."""
    public: bool = False
    """Train on rankings with consent from the pages of `hero serve` too (RUN/feedback)."""
    gate: GateConfig = GateConfig()
    """What a policy must show before it is served."""

    def inactive_keys(self) -> dict[str, str]:
        inactive: dict[str, str] = {}
        if self.select == "random":
            inactive |= dict.fromkeys(("random_share", "candidates"), "select: fisher")
        if self.deadline_h is None:
            inactive["min_share"] = "deadline_h"
        if not self.labelers:
            inactive["error_rate"] = "labelers over 0"
        return inactive

    @model_validator(mode="after")
    def _judge_decides_by_order(self) -> RoundsConfig:
        for key in ("weight", "clip", "normalize"):
            if self.judge and getattr(self.judge, key) != RewardSource.model_fields[key].default:
                raise ValueError(
                    f"judge: {key} has no effect here, since the greater score wins; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _newest_has_responses(self) -> RoundsConfig:
        if self.previous >= self.responses:
            raise ValueError(
                f"previous {self.previous} of {self.responses} responses leaves none of the newest policy; "
                "give at most one less"
            )
        return self
