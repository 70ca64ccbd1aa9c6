"""The sections of the run configuration that say how responses are sampled and scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config import DType, Section


class RolloutConfig(Section):
    actors: int = Field(1, ge=1)
    """vLLM engines."""
    threads: int = Field(2, ge=1)
    """CPU threads of each engine."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each engine (of each of its workers under tensor parallelism)."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one engine's model is split over."""
    dtype: DType = "float32"
    """Arithmetic of the engine; a run sets it to ppo.dtype, so that rollouts and learner agree."""
    max_sequences: int = Field(256, ge=1)
    """Sequences an engine works on at a time."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence an engine takes. Empty: model.context."""
    kv_cache_gib: float = Field(0.5, gt=0)
    """Key-value cache of an engine on CPU, GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine may take."""
    enforce_eager: bool = True
    """Run without compiling or capturing the model: starts in seconds. Turn off for long runs on GPUs."""


class Decoding(Section):
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: smallest set of tokens with at least this probability. 1: off."""
    top_k: int = Field(0, ge=0)
    """Sample from the k likeliest tokens only. 0: off."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Leave out tokens less likely than this share of the likeliest. 0: off."""
    max_tokens: int = Field(32, ge=1)
    """Longest response, the end token included."""


class RewardSource(Section):
    weight: float = 1.0
    """What its score is multiplied by in the sum of all sources."""
    clip: float | None = Field(None, gt=0)
    """Its scores are clipped to plus or minus this, before normalisation. Empty: not at all."""
    normalize: bool = False
    """Take off the mean of its scores so far and divide by their standard deviation."""

    @property
    def name(self) -> str:
        """What its metrics are called."""
        return "model"


class ModelReward(RewardSource):
    kind: Literal["model"] = "model"
    """The trained reward model."""


class FunctionReward(RewardSource):
    kind: Literal["function"] = "function"
    """A Python function, called in the scoring actors."""
    path: str
    """module:function (row, response, ended) -> number; row is that of the prompt file."""
    retries: int = Field(1, ge=0)
    """Calls after the first where it raises or its number is not finite."""

    @property
    def name(self) -> str:
        return self.path.partition(":")[2]


class HTTPReward(RewardSource):
    kind: Literal["http"] = "http"
    """An endpoint that takes {"row", "response", "ended"} by POST and answers {"reward": number}."""
    url: str
    """Where it listens."""
    timeout_s: float = Field(10.0, gt=0)
    """Longest wait for one answer, seconds."""
    retries: int = Field(3, ge=0)
    """Requests after the first where one fails; the pause before each doubles, from 0.1 s."""
    concurrency: int = Field(8, ge=1)
    """Most requests of one scoring actor at a time."""

    @property
    def name(self) -> str:
        return self.url.partition("://")[2]


class RewardsConfig(Section):
    sources: list[Annotated[ModelReward | FunctionReward | HTTPReward, Field(discriminator="kind")]] = Field(
        [ModelReward()], min_length=1
    )
    """Where the reward comes from; the weighted sum of all."""
    quarantine_share: float = Field(0.02, ge=0, lt=1)
    """Responses whose reward fails or is not finite are left out and recorded; over this share of all, the run stops."""

    @property
    def from_model(self) -> bool:
        return any(source.kind == "model" for source in self.sources)

    @model_validator(mode="after")
    def _names(self) -> RewardsConfig:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources: each may be there once, found {', '.join(names)}")
        return self


class ScoringConfig(Section):
    actors: int = Field(1, ge=1)
    """Actors that each hold the reward model and the reference policy."""
    threads: int = Field(2, ge=1)
    """CPU threads of each."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each."""
    dtype: DType = "float32"
    """Arithmetic of both models."""
    batch_tokens: int = Field(8192, ge=16)
    """Most padded tokens in one forward pass."""
