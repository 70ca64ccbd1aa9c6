"""The sections of the run configuration that say how responses are sampled and scored."""

from __future__ import annotations

from pydantic import Field

from learners.config import DType, Section


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
