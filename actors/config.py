"""Sections of the run configuration: how vLLM engines run, how responses are sampled and on what they
are scored (`actors.reward_config` says by what).

`serve.config.ServeConfig` extends `EngineConfig`; the other sections are read by the actors and the
driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from actors.vllm_arguments import CHUNKED_PREFILL, ROLLOUT_RESERVED
from common.config import DType, Section
from common.pass_through import refuse_reserved


class EngineConfig(Section):
    """What every vLLM engine needs: those of the rollout actors and those of the serving
    replicas."""

    threads: int = Field(2, ge=1)
    """CPU threads of each actor or replica."""
    gpus: float | None = Field(0.0, ge=0)
    """GPUs of each replica."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one engine's model is split over."""
    dtype: DType = "auto"
    """Arithmetic of the engine. auto: what the machine multiplies fast."""
    max_sequences: int = Field(256, ge=1)
    """Sequences that an engine processes at a time."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence of an engine, prompt and response, in tokens. Empty: the model's own
    limit."""
    kv_cache_gib: float = Field(0.5, gt=0)
    """Key-value cache of an engine on CPU, GiB."""
    enforce_eager: bool | None = None
    """Run without compiling or capturing the model: starts in seconds, and samples slower on a GPU. Empty:
    true on CPU, false on GPUs."""
    vllm: dict[str, Any] = Field({})
    """Further arguments of vLLM by their own names, for example enable_prefix_caching: false. Arguments
    that other keys set are refused."""

    reserved_for_vllm: ClassVar[dict[str, str]]
    """Arguments that the section does not pass on, with what to do instead."""

    def is_eager(self, device: str) -> bool:
        """Whether an engine on this device runs without compiling or capturing the model."""
        return device == "cpu" if self.enforce_eager is None else self.enforce_eager

    @field_validator("vllm")
    @classmethod
    def _refuse_reserved(cls, vllm: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        reserved = cls.reserved_for_vllm
        if info.data.get("gpus") == 0:
            reserved = reserved | {"enable_chunked_prefill": CHUNKED_PREFILL}
        refuse_reserved(vllm, reserved)
        return vllm


class RolloutConfig(EngineConfig):
    actors: int = Field(1, ge=1)
    """Rollout actors, each with one vLLM engine."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of each worker of an engine: 1, or a fraction where fleets divide one GPU for good. Empty: 1
    with cluster.device: cuda."""
    pipeline_parallel: int = Field(1, ge=1)
    """Stages that one engine's layers are divided into; the engine has tensor_parallel x
    pipeline_parallel workers."""
    executor: Literal["auto", "mp", "ray"] = "auto"
    """Where the workers of an engine with several GPUs run. mp: processes of one host. ray: Ray actors,
    also over several hosts. auto: mp, and ray for pipeline_parallel over 1 or on the learners' GPUs."""
    dtype: DType = "auto"
    """Arithmetic of the engine. auto: ppo.dtype, so that rollouts and learner agree; with another one
    the weight-sync proof has the tolerance of the coarser of the two."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence of an engine, prompt and response, in tokens. Empty: model.context."""
    step_timeout_s: float = Field(600.0, gt=1)
    """Seconds that one step of an engine, or loading one bucket of weights (with broadcast all of them),
    may take. An engine that takes longer ends and is replaced."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine may take."""
    sleep_level: Literal[1, 2] = 1
    """What an engine on the learners' GPUs keeps in host memory while the learners update. 1: its weights.
    2: nothing, as the new weights replace them."""
    endpoint: bool = False
    """Whether environment.name is a program, a function (row, base_url, api_key) -> number, that has its
    episode with the policy at an OpenAI-compatible endpoint. The number is the reward."""
    load: Literal["stored", "dummy"] = "stored"
    """Weights that an engine starts with. dummy: random ones, which saves reading a large model; the first
    sync brings the policy's."""

    reserved_for_vllm: ClassVar[dict[str, str]] = ROLLOUT_RESERVED

    @property
    def workers(self) -> int:
        """Of one engine, each on one GPU."""
        return self.tensor_parallel * self.pipeline_parallel

    def inactive_keys(self) -> dict[str, str]:
        if self.workers == 1:
            return {"executor": "rollout.tensor_parallel or rollout.pipeline_parallel over 1"}
        return {}


@dataclass(frozen=True)
class EngineDevices:
    """Where an engine computes; the layout decides it, not the section."""

    device: Literal["cpu", "cuda"] = "cpu"
    executor: Literal["uni", "mp", "ray"] = "uni"
    """vLLM's: in the actor's process, in further processes, or in Ray actors."""
    shares_gpus: bool = False
    """Others use its GPUs while it sleeps."""


class SyncConfig(Section):
    transport: Literal["auto", "file", "object_store", "broadcast", "ipc"] = "auto"
    """How weights go from the learners to the engines. file: through a folder that both see
    (learners.weights_dir). object_store: through Ray, without a shared folder. broadcast: from learner
    rank 0 to the workers of each engine over the network, by NCCL on GPUs and gloo on CPU. ipc: engines
    map the learners' memory of a GPU that they share. auto: ipc or broadcast on GPUs, as the layout has
    it; on CPU file, but on several hosts without learners.weights_dir object_store."""
    bucket_mib: int = Field(1024, ge=1)
    """Weights travel in buckets of about this size (MiB), so that no process holds a second copy of the
    model. A tensor that is larger is a bucket of its own."""
    adapters_only: bool = False
    """Send the adapters of model.lora alone; engines add them to the policy's folder from before PPO, which
    the hosts of all engines must see. Without it the learners send whole weights with the adapters merged."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds that one bucket may take to an engine by broadcast, and that an engine may take to join.
    An engine that takes longer is replaced."""


class Decoding(Section):
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: only the smallest set of tokens with at least this total probability. 1:
    off."""
    top_k: int = Field(0, ge=0)
    """Sample only from the k most probable tokens. 0: off."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Exclude tokens whose probability is below this share of the largest. 0: off."""
    max_tokens: int = Field(32, ge=1)
    """Longest response in tokens, the end token included."""


class ScoringConfig(Section):
    actors: int = Field(1, ge=1)
    """Scoring actors; each holds the reward model and the reference policy."""
    threads: int = Field(2, ge=1)
    """CPU threads of each actor."""
    gpus: float | None = Field(None, ge=0, le=1)
    """GPUs of each device of an actor: 1, a fraction where fleets divide one GPU for good, or 0 for scoring
    on the CPU. Empty: 1 with cluster.device: cuda if the actors hold a model."""
    tensor_parallel: int = Field(1, ge=1)
    """Devices that each actor's models are cut over, for models that one GPU cannot hold; with GPUs the
    actor has as many. It must divide the models' heads, key-value heads and vocabulary."""
    dtype: DType = "auto"
    """Arithmetic of both models. auto: ppo.dtype, so that the KL to the reference starts at 0."""
    batch_tokens: int = Field(8192, ge=16)
    """Largest number of tokens in one forward pass, padding included."""

    @model_validator(mode="after")
    def _check_gpus(self) -> ScoringConfig:
        if self.gpus not in (None, 0, 1) and self.tensor_parallel > 1:
            raise ValueError(
                f"gpus {self.gpus:g}, tensor_parallel {self.tensor_parallel}: cut models have a whole GPU "
                "for each part; leave gpus out"
            )
        return self
