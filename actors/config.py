"""Sections of the run configuration: how vLLM engines run, how responses are sampled and how they
are scored.

`serve.config.ServeConfig` extends `EngineConfig`; the other sections are read by the actors and the
driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

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


class RewardSource(Section):
    weight: float = 1.0
    """Factor of its score in the sum over all sources."""
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
    """The trained reward model."""


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
    number}, or null where the reward does not apply."""
    url: str
    """URL of the endpoint."""
    timeout_s: float = Field(10.0, gt=0)
    """Timeout of one request, seconds."""
    retries: int = Field(3, ge=0)
    """Further requests if one fails or its number is not finite; the pause before each doubles,
    from 0.1 s."""
    concurrency: int = Field(8, ge=1)
    """Largest number of simultaneous requests of one scoring actor."""

    @property
    def name(self) -> str:
        return self.url.partition("://")[2]


AnyReward = Annotated[ModelReward | FunctionReward | HTTPReward, Field(discriminator="kind")]


class RewardsConfig(Section):
    sources: list[AnyReward] = Field([ModelReward()], min_length=1)
    """Sources of the reward, which is the weighted sum of their scores. One that does not apply to a
    response adds nothing."""
    quarantine_share: float = Field(0.02, ge=0, lt=1)
    """Responses without a finite score from every source are excluded and recorded; above this
    share of all responses, the run stops."""

    @property
    def uses_reward_model(self) -> bool:
        return any(source.kind == "model" for source in self.sources)

    @property
    def names(self) -> list[str]:
        """Of the sources, in metrics and messages. A function has its module in its name where another
        function has the same."""
        short = [source.name for source in self.sources]
        names = []
        for source in self.sources:
            is_shared = short.count(source.name) > 1
            names.append(source.path if source.kind == "function" and is_shared else source.name)
        return names

    @model_validator(mode="after")
    def _check_unique_names(self) -> RewardsConfig:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"sources: each may occur once; configured are {', '.join(self.names)}")
        return self


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
