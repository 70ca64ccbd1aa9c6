"""An estimate of what each process needs of its GPU: arithmetic on sizes alone, for `hero plan`.

Mixed precision with Adam takes 16 bytes a parameter (Rajbhandari et al. 2020, arXiv:1910.02054, section
3.1): weight 2, gradient 2, float32 master and two moments 12. ZeRO divides over R ranks: stage 1 the 12,
stage 2 the gradients too, stage 3 the weights too. What is not divided, the working set of one layer,
buckets and activations, decides for large models, and is counted here.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import RunConfig
from cluster.memory_estimate import (
    BUCKET_ENTRIES,
    DTYPE_BYTES,
    ENTRIES_PER_MLP_WIDTH,
    ENTRIES_PER_WIDTH,
    GIB,
    LOGITS_BYTES,
    LORA_SHARE,
    OPTIMIZER_BYTES,
    Task,
    activation_bytes,
    chunk_logits,
)
from cluster.model_shape import ModelShape, policy_shape, reward_model_parameters
from common.config import Precision
from common.hardware import precise

CONTEXT_GIB = 1.5
"""CUDA's context, workspaces of cuBLAS and buffers of NCCL, of each process on a GPU."""
FRAGMENTS = 1.1
"""What torch's allocator reserves over what is in use."""
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed keeps at most so many gathered parameters under ZeRO-3 (stage3_max_live_parameters)."""


@dataclass(frozen=True)
class GPUMemory:
    """Bytes of one process on its GPU, by use, and on the host where state is offloaded."""

    weights: float = 0.0
    """Stored here: a shard under ZeRO-3 or tensor parallelism."""
    gathered: float = 0.0
    """Weights of other ranks that a pass holds for a while."""
    gradients: float = 0.0
    optimizer: float = 0.0
    buckets: float = 0.0
    """Buffers for collectives."""
    activations: float = 0.0
    kv_cache: float = 0.0
    host: float = 0.0
    """Of the host's memory, not the GPU's."""

    @property
    def held(self) -> float:
        """What stays between two calls, CUDA's context included."""
        return CONTEXT_GIB * GIB + (self.weights + self.gradients + self.optimizer + self.kv_cache)

    @property
    def states(self) -> float:
        """What `offload("states")` frees between two updates."""
        return self.gradients + self.optimizer + self.buckets

    @property
    def peak(self) -> float:
        """Inside a call."""
        return (self.held + self.gathered + self.buckets + self.activations) * FRAGMENTS

    @property
    def peak_gib(self) -> float:
        return self.peak / GIB

    @property
    def largest_use(self) -> str:
        """The name of the use that takes most of the peak."""
        uses = ("weights", "gathered", "gradients", "optimizer", "buckets", "activations", "kv_cache")
        return max(uses, key=lambda use: getattr(self, use)).replace("_", " ")


def learner_gpu_memory(config: RunConfig, task: Task) -> GPUMemory:
    """A learner rank with the models of a task."""
    total = GPUMemory(activations=activation_bytes(config, task))
    for count in task.parameters:
        trained = count * LORA_SHARE if config.model.lora else float(count)
        model = model_under_zero(config, count, trained, task.dtype)
        total = GPUMemory(
            weights=total.weights + model.weights,
            # Models take turns: one pass, and one step, at a time.
            gathered=max(total.gathered, model.gathered),
            gradients=total.gradients + model.gradients,
            optimizer=total.optimizer + model.optimizer,
            buckets=total.buckets + model.buckets,
            activations=total.activations,
            host=total.host + model.host,
        )
    return total


def model_under_zero(config: RunConfig, count: float, trained: float, dtype: Precision) -> GPUMemory:
    """One model of `count` parameters of which `trained` are trained, without activations."""
    learner = config.learners
    stage, ranks, size = learner.zero_stage, learner.ranks, DTYPE_BYTES[dtype]
    bucket = min(trained, BUCKET_ENTRIES) * size
    weights, gathered, host = count * size, 0.0, 0.0
    if stage == 3:
        weights /= ranks
        gathered = min(count, LIVE_PARAMETERS) * size
        if learner.offload_parameters:
            weights, host = 0.0, weights
    # DeepSpeed adds up gradients in the dtype of the weights, and steps in float32.
    gradients = trained * size / (ranks if stage >= 2 else 1)
    optimizer = trained * OPTIMIZER_BYTES
    if stage == 0 and dtype == "float32":
        optimizer = trained * 8  # a float32 weight is its own master
    if stage >= 1:
        optimizer /= ranks
    if learner.offload_optimizer and stage >= 1:
        # The flat float32 gradient of the step is on the host too.
        optimizer, host = 0.0, host + optimizer + trained * 4 / ranks
    return GPUMemory(
        weights=weights,
        gathered=gathered,
        gradients=gradients,
        optimizer=optimizer,
        buckets=bucket,
        host=host,
    )


def engine_gpu_memory(
    config: RunConfig, gpu_bytes: float, parts: int | None = None, cache_bytes: float | None = None
) -> GPUMemory:
    """One worker of a rollout engine that is cut over `parts` GPUs (default: its tensor parallelism) of
    `gpu_bytes` each. Its cache has `cache_bytes`, or takes what gpu_memory_utilization leaves beside the
    weights."""
    parts = parts or config.rollout.tensor_parallel
    shape, size = policy_shape(config), DTYPE_BYTES[precise(config.rollout.dtype)]
    weights = shape.parameters * size / parts
    sequences = min(config.rollout.max_sequences, config.ppo.prompts * config.ppo.responses)
    activations = float(sequences * shape.vocabulary * LOGITS_BYTES) / parts
    if cache_bytes is None:
        room = gpu_bytes * config.rollout.gpu_memory_utilization
        cache_bytes = max(0.0, room - CONTEXT_GIB * GIB - weights - activations)
    return GPUMemory(weights=weights, activations=activations, kv_cache=cache_bytes)


def scoring_gpu_memory(config: RunConfig, parts: int | None = None) -> GPUMemory:
    """One process of a scoring actor, whose models are cut over `parts` GPUs (default: its tensor
    parallelism); the embedding is whole on each."""
    parts = parts or config.scoring.tensor_parallel
    shape, size = policy_shape(config), DTYPE_BYTES[precise(config.scoring.dtype)]
    models = []
    if config.uses_reference:
        models.append(shape.parameters)
    models += reward_model_parameters(config)
    weights = sum(shape.embedding + (count - shape.embedding) / parts for count in models) * size
    tokens = config.scoring.batch_tokens
    activations = tokens * _layer_entries(shape) * size + chunk_logits(tokens, shape) * LOGITS_BYTES
    return GPUMemory(weights=weights, activations=float(activations))


def _layer_entries(shape: ModelShape) -> int:
    """Entries of the one layer that exists at a time without a backward pass, for each token."""
    return ENTRIES_PER_WIDTH * shape.width + ENTRIES_PER_MLP_WIDTH * shape.mlp_width
