"""The sections of the stages that sample responses without learning from them: collect, sample, evaluate."""

from __future__ import annotations

from pydantic import Field, field_validator

from cluster.stage_registry import STAGES
from common.config import LocalPath, Section
from learners.config import NamedModelConfig

SOURCE = "reward/"
"""What the name of a reward source follows in the answers of an evaluation, and in evaluate.judge."""


class CollectConfig(Section):
    prompts: int = Field(6000, ge=1)
    """Prompts to collect responses for (at most as many as there are)."""
    responses: int = Field(6, ge=4, le=9)
    """Responses per prompt (K)."""
    max_response_tokens: int = Field(32, ge=1)
    """Longest response, the end token included."""
    labelers: int = Field(8, ge=1)
    """Number of simulated labelers."""
    error_rate: float = Field(0.22, ge=0, le=0.8)
    """Share of the responses that a simulated labeler misjudges; 0.22 gives a pairwise agreement
    near 73%."""
    overlap: float = Field(0.1, ge=0, le=1)
    """Share of the prompts that a second labeler ranks too, to measure agreement."""
    workplace: bool = False
    """Whether the simulated labelers work as people do: in a labelling workplace (RUN/label), over HTTP. It
    takes longer, and two runs do not have the same rankings."""


class SampledPolicyConfig(NamedModelConfig):
    responses: int = Field(ge=1, le=9)
    """Responses of this policy to each prompt."""


class SampleConfig(Section):
    policies: list[SampledPolicyConfig] = Field([])
    """Whose responses. Empty: six of the SFT policy."""
    prompts: LocalPath | None = None
    """JSONL file of the prompts. Empty: all of data.prompts."""
    reward_model: LocalPath | None = None
    """Reward model whose features of the responses are stored too, for choosing among them. Empty: none."""
    max_response_tokens: int = Field(32, ge=1)
    """Longest response, the end token included."""


class EvaluateConfig(Section):
    prompts: int | None = Field(None, ge=1)
    """Held-out prompts to use. Empty: all."""
    max_response_tokens: int = Field(32, ge=1)
    """Longest response, the end token included."""
    judge: str | None = "cluster.quickstart.oracle:judge"
    """module:function (row, response, ended) -> the score (a number), or a mapping of measures that
    has "score". Or reward/NAME, one of several rewards.sources by its name in metrics, whose score is the
    score: a reward model of weight 0, for example, that training does not learn from. Empty: reward and KL
    only. The default knows the quickstart's prompts; with data.heldout of your own it is empty."""
    policies: list[NamedModelConfig] = Field([])
    """Further policies to evaluate, beside the starting model and those of the stages."""
    samples: int = Field(1, ge=1)
    """Responses sampled for each prompt. With more than one, pass@k and mean@k (the mean over all)
    are measured."""
    pass_metric: str = "factual"
    """The judge's measure that pass@k counts: a response is right if the measure is at least 1 (or
    true)."""

    @field_validator("policies")
    @classmethod
    def _names_are_free(cls, policies: list[NamedModelConfig]) -> list[NamedModelConfig]:
        taken = ["base", *STAGES]
        for policy in policies:
            if policy.name in taken:
                raise ValueError(f"the name {policy.name} is taken; the others are {', '.join(taken)}")
            taken.append(policy.name)
        return policies

    @property
    def judge_source(self) -> str | None:
        """Column of the reward source that judges; None if a function does, or nothing."""
        return self.judge if self.judge and self.judge.startswith(SOURCE) else None

    @property
    def judge_function(self) -> str | None:
        """module:function; None if a reward source judges, or nothing."""
        return None if self.judge_source else self.judge

    def inactive_keys(self) -> dict[str, str]:
        counted = self.samples > 1 and self.judge_function
        needed = "evaluate.judge and evaluate.samples over 1 (a judge that is a function)"
        return {} if counted else {"pass_metric": needed}
