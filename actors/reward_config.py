"""Section `rewards` of the run configuration: the sources of reward, and how their scores are combined."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from common.config import LocalPath, Section


class RewardSource(Section):
    weight: float = 1.0
    """Factor of its score in the sum over all sources. 0: it is measured and shown, and not learned from."""
    clip: float | None = Field(None, gt=0)
    """Its scores are clipped to plus or minus this, before normalization. Empty: no clipping."""
    normalize: bool = False
    """Subtract the mean of its scores so far and divide by their standard deviation."""

    @property
    def name(self) -> str:
        """Short name, from which `RewardsConfig.names` makes the one in metrics and messages."""
        return "model"


class ModelReward(RewardSource):
    kind: Literal["model"] = "model"
    """A reward model: the trained one, or that of `path`."""
    path: LocalPath | None = None
    """A sequence-classification folder with one output (or a hub name), which all hosts of scoring actors
    see. Empty: the model of the reward stage, or of reward_model.path."""
    chat_template: LocalPath | None = None
    """Jinja file of the chat template that the model of `path` was trained with. Empty: its tokenizer's."""

    @property
    def name(self) -> str:
        if self.path is None:
            return "model"
        # The end of a path says which run and stage it is from.
        return "/".join(Path(self.path).parts[-3:]).lstrip("/")

    def inactive_keys(self) -> dict[str, str]:
        return {} if self.path else {"chat_template": "a path"}


class FunctionReward(RewardSource):
    kind: Literal["function"] = "function"
    """A Python function, called in the scoring actors."""
    path: str
    """module:function (row, response, ended) -> number, or None where the reward does not apply; row
    is the prompt's row of the prompt file. The function may be async and may use signals."""
    workers: int = Field(1, ge=1)
    """Processes of one scoring actor that call it, each one call at a time."""
    timeout_s: float = Field(60.0, gt=0)
    """Time limit of one call, seconds. A call that takes longer counts as failed, and its process is
    ended."""
    retries: int = Field(1, ge=0)
    """Further calls if it raises or its number is not finite; none after one that took too long."""

    @property
    def name(self) -> str:
        return self.path.partition(":")[2]


class HTTPReward(RewardSource):
    kind: Literal["http"] = "http"
    """An HTTP endpoint that takes {"row", "response", "ended"} by POST and answers {"reward":
    number}, or null where the reward does not apply. With batch_size over 1 it takes {"items": [...]} of
    these and answers {"rewards": [...]}."""
    url: str
    """URL of the endpoint."""
    timeout_s: float = Field(10.0, gt=0)
    """Timeout of one request, seconds."""
    retries: int = Field(3, ge=0)
    """Further requests if one fails or its number is not finite; the pause before each doubles,
    from 0.1 s."""
    concurrency: int = Field(8, ge=1)
    """Largest number of simultaneous requests of one scoring actor."""
    batch_size: int = Field(1, ge=1)
    """Responses of one request. With more than one, a request that fails costs the rewards of all of them."""

    @property
    def name(self) -> str:
        return self.url.partition("://")[2]


class JudgeReward(RewardSource):
    kind: Literal["judge"] = "judge"
    """A language model behind an OpenAI-compatible endpoint, which is asked for a score."""
    base_url: str = Field(pattern="^https?://")
    """Address of the endpoint, for example http://127.0.0.1:8000/v1; chat/completions is added."""
    model: str
    """Name of the model there."""
    api_key_env: str | None = Field(None, pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the API key, where `hero run` is called. Empty: no key is sent."""
    rubric: str = "How helpful, correct and harmless is the answer?"
    """What the judge is to look at: {rubric} of the template."""
    template: LocalPath | None = None
    """File with the request to the judge, in which {rubric}, {prompt}, {response} and {row.KEY} (a key of the
    prompt's row) are filled in. Empty: one that asks for a line "Score: N" with N from 1 to 10."""
    pattern: str = r"Score:\s*(-?\d+(?:\.\d+)?)"
    """Regular expression whose first group is the score in the judge's answer; its last match counts."""
    lowest: float | None = None
    """A score below this counts as failed. Empty: 1 without a template, else no limit."""
    highest: float | None = None
    """A score above this counts as failed. Empty: 10 without a template, else no limit."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer of the judge, in tokens."""
    request: dict[str, Any] = Field({})
    """Further keys of each request, for example seed: 0. The temperature is 0 unless it is given here."""
    cache: LocalPath | None = None
    """File (SQLite) with the answers so far, by request: an equal one is not sent again. Empty:
    judge_answers.db in the run directory, where scoring actors see it."""
    timeout_s: float = Field(60.0, gt=0)
    """Timeout of one request, seconds."""
    retries: int = Field(3, ge=0)
    """Further requests if one fails; the pause before each doubles, from 0.1 s. An answer without a score is
    not asked for again."""
    concurrency: int = Field(8, ge=1)
    """Largest number of simultaneous requests of one scoring actor."""

    @property
    def name(self) -> str:
        return f"judge {self.model}"

    @property
    def bounds(self) -> tuple[float, float]:
        """(lowest, highest) score that counts."""
        low, high = (1.0, 10.0) if self.template is None else (-math.inf, math.inf)
        return (
            low if self.lowest is None else self.lowest,
            high if self.highest is None else self.highest,
        )

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        if groups < 1:
            raise ValueError(
                "its first group is the score, and it has no group; put the number in parentheses"
            )
        return pattern

    @field_validator("request")
    @classmethod
    def _leaves_messages_alone(cls, request: dict[str, Any]) -> dict[str, Any]:
        for key in ("messages", "model", "max_tokens", "stream", "n"):
            if key in request:
                raise ValueError(f"{key} cannot be set here: the judge's own keys decide about it")
        return request

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> JudgeReward:
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"lowest {low:g} is not below highest {high:g}")
        return self


class EnvironmentReward(Section):
    kind: Literal["environment"] = "environment"
    """The rewards of the environment, each for the turn that it was given for. The score of a response is
    their sum, as it is: other sources are weighed against it."""

    weight: ClassVar[float] = 1.0
    clip: ClassVar[None] = None
    normalize: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """In metrics and messages."""
        return "environment"


AnyReward = Annotated[
    ModelReward | FunctionReward | HTTPReward | JudgeReward | EnvironmentReward, Field(discriminator="kind")
]


class RewardsConfig(Section):
    sources: list[AnyReward] = Field([ModelReward()], min_length=1)
    """Sources of the reward, which is the weighted sum of their scores. One that does not apply to a
    response adds nothing."""
    combine: Literal["sum", "mean", "minimum", "mean_minus_std"] = "sum"
    """How the scores of several sources of kind model become one, which then has their weight (Coste et al.
    2023): their mean, the smallest, or the mean minus std_coef standard deviations. sum: each counts with
    its own weight, as the other kinds do."""
    std_coef: float = Field(1.0, gt=0)
    """Standard deviations of the reward models' scores that mean_minus_std subtracts."""
    quarantine_share: float = Field(0.02, ge=0, lt=1)
    """Responses without a finite score from every source that counts are excluded and recorded; above
    this share of all responses, the run stops."""

    @property
    def uses_reward_model(self) -> bool:
        """Whether the trained reward model (or that of reward_model.path) is a source."""
        return any(source.kind == "model" and source.path is None for source in self.sources)

    @property
    def model_indices(self) -> list[int]:
        """Which of the sources are reward models."""
        return [c for c, source in enumerate(self.sources) if source.kind == "model"]

    @property
    def counting_models(self) -> list[int]:
        """Which of them the reward is made of."""
        return [c for c in self.counting if c in self.model_indices]

    @property
    def model_paths(self) -> dict[int, str]:
        """Folders of the reward models that have one of their own, by the position of the source."""
        paths = {}
        for c, source in enumerate(self.sources):
            if source.kind == "model" and source.path is not None:
                paths[c] = source.path
        return paths

    @property
    def reads_texts(self) -> bool:
        """Whether a source reads prompts and responses as texts."""
        return any(source.kind in ("function", "http", "judge") for source in self.sources)

    @property
    def uses_environment(self) -> bool:
        """Whether the rewards of the environment count."""
        return any(source.kind == "environment" for source in self.sources)

    def template_of(self, c: int) -> str | None:
        """The chat template that the config gives for the reward model of a source; that of the trained one
        is added by `cluster.fleets.reward_settings`."""
        source = self.sources[c]
        return source.chat_template if source.kind == "model" else None

    def inactive_keys(self) -> dict[str, str]:
        inactive = {}
        if len(self.counting_models) < 2:
            inactive["combine"] = "several sources of kind model"
        if self.combine != "mean_minus_std":
            inactive["std_coef"] = "combine: mean_minus_std"
        return inactive

    @property
    def names(self) -> list[str]:
        """Of the sources, in metrics and messages. A function has its module in its name where another
        function has the same, a judge its rubric, and a reward model its whole path."""
        short = [source.name for source in self.sources]
        names = []
        for source in self.sources:
            name = source.name
            if short.count(name) > 1 and source.kind in ("function", "model"):
                name = source.path or name
            elif short.count(name) > 1 and source.kind == "judge":
                name = f"{name}: {source.rubric}"
            names.append(name)
        return names

    @property
    def counting(self) -> list[int]:
        """Which of the sources the reward is made of."""
        return [c for c, source in enumerate(self.sources) if source.weight]

    @property
    def separate_names(self) -> dict[int, str]:
        """Names of the sources whose score is not the whole reward, by position."""
        whole = self.counting if len(self.counting) == 1 else []
        return {c: name for c, name in enumerate(self.names) if c not in whole}

    @model_validator(mode="after")
    def _one_weight_of_combined(self) -> RewardsConfig:
        weights = {self.sources[c].weight for c in self.counting_models}
        if self.combine != "sum" and len(weights) > 1:
            raise ValueError(
                f"combine {self.combine}: the sources of kind model have the weights "
                f"{', '.join(f'{weight:g}' for weight in sorted(weights))}; give them one weight"
            )
        return self

    @model_validator(mode="after")
    def _something_counts(self) -> RewardsConfig:
        if not self.counting:
            raise ValueError("sources: each has weight 0, so there is nothing to learn from")
        return self

    @model_validator(mode="after")
    def _check_unique_names(self) -> RewardsConfig:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"sources: each may occur once; configured are {', '.join(self.names)}")
        return self
