"""An estimate of the memory of a run's processes: arithmetic on the sizes of its models and of its
batches, before anything starts.

`bench.memory` measures what the runs of three models take, and `docs/results.md` compares. The
constants were measured on Linux, on the CPU, with the pinned versions.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import RunConfig
from cluster.model_shape import (
    ModelShape,
    critic_parameters,
    policy_shape,
    reward_model_parameters,
    scalar_parameters,
)
from common.config import Precision
from common.hardware import precise

GIB = 2**30
# Memory of a process before its model, without what it maps from files; and those files, mostly libraries,
# which all processes of a machine share.
PROCESS_GIB = {"driver": 0.5, "ray": 0.4, "learner": 0.65, "rollout": 0.65, "scoring": 0.45}
LIBRARIES_GIB = 0.4
DTYPE_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
# Optimizer state of one parameter under ZeRO 1 to 3: Adam's two moments and DeepSpeed's copy of the
# weight, all float32, whatever the dtype of the weight itself.
OPTIMIZER_BYTES = 12
# DeepSpeed gathers gradients in a buffer of at most this many entries before it reduces them.
BUCKET_ENTRIES = 500_000_000
# Trained parameters as a share of all when adapters are trained; they are about this much.
LORA_SHARE = 0.02
# Entries that the backward pass of one layer needs, for each token: as multiples of the hidden size
# and of the inner size of the feed-forward block.
ENTRIES_PER_WIDTH, ENTRIES_PER_MLP_WIDTH = 12, 3
# Logits exist for one chunk of tokens at a time (`learners.logprobs.CHUNK_ENTRIES`, whose module needs
# torch). Bytes of each: logits, divided by the temperature, log-probabilities, and in training gradients.
CHUNK_ENTRIES = 2**26
LOGITS_BYTES, LOGITS_BYTES_TRAINING = 12, 14


@dataclass(frozen=True)
class Memory:
    """Memory of one process by its use, in bytes."""

    process: float
    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0

    @property
    def gib(self) -> float:
        return self.held_gib + self.activations / GIB

    @property
    def held_gib(self) -> float:
        """What the process keeps between two calls."""
        return (self.process + self.weights + self.gradients + self.optimizer + self.kv_cache) / GIB


@dataclass(frozen=True)
class Task:
    """What a learner rank holds during a stage."""

    models: str
    """In words."""
    parameters: tuple[int, ...]
    """Of each model."""
    dtype: Precision
    has_logits: bool
    """Whether one of them is a language model; a reward model has one output."""


def training_task(config: RunConfig, stage: str) -> Task | None:
    """The learners' task in a stage; None if they have none."""
    policy = policy_shape(config)
    if stage in ("pretrain", "sft", "best_of_n", "dpo"):
        return Task("policy", (policy.parameters,), precise(config.learners.dtype), has_logits=True)
    if stage == "reward":
        return Task(
            "reward model", (scalar_parameters(config),), precise(config.learners.dtype), has_logits=False
        )
    if stage == "ppo" and config.ppo.advantage_spec.critic:
        models = (policy.parameters, critic_parameters(config))
        return Task("policy and critic", models, precise(config.ppo.dtype), has_logits=True)
    if stage == "ppo":
        return Task("policy", (policy.parameters,), precise(config.ppo.dtype), has_logits=True)
    return None


def largest_task(config: RunConfig) -> Task | None:
    """The task of the stage in which the learners need most; None if no stage trains."""
    largest, most = None, 0.0
    for stage in config.stages:
        task = training_task(config, stage)
        if task is not None and learner_memory(config, task).gib > most:
            largest, most = task, learner_memory(config, task).gib
    return largest


def learner_memory(config: RunConfig, task: Task) -> Memory:
    """A learner rank. ZeRO shards the optimizer's state over the ranks from stage 1 on, the
    gradients from stage 2, the weights from stage 3 (Rajbhandari et al. 2020, arXiv:1910.02054).
    Gradients and optimizer state exist for trained parameters only.
    """
    stage, ranks = config.learners.zero_stage, config.learners.ranks
    weights = optimizer = 0.0
    for count in task.parameters:
        weights += _weight_bytes(count, task.dtype, stage, ranks)
        optimizer += _optimizer_bytes(_trained(config, count), task.dtype, stage, ranks)
    return Memory(
        process=PROCESS_GIB["learner"] * GIB,
        weights=weights,
        gradients=_gradient_bytes(config, task),
        optimizer=optimizer,
        activations=activation_bytes(config, task),
    )


def _weight_bytes(count: int, dtype: Precision, stage: int, ranks: int) -> float:
    if stage < 3:
        return count * DTYPE_BYTES[dtype]
    # The shard, and the whole model, whose layers are gathered for a pass and kept up to a limit
    # that small models do not reach.
    return count * DTYPE_BYTES[dtype] * (1 + 1 / ranks)


def _optimizer_bytes(trained: float, dtype: Precision, stage: int, ranks: int) -> float:
    if stage == 0:
        # Without ZeRO a float32 weight needs no copy.
        return trained * (8 if dtype == "float32" else OPTIMIZER_BYTES)
    return trained * OPTIMIZER_BYTES / ranks


def _gradient_bytes(config: RunConfig, task: Task) -> float:
    """At the optimizer step. The models of a task take it one after the other, but without ZeRO each
    keeps its gradients."""
    stage, ranks, size = config.learners.zero_stage, config.learners.ranks, DTYPE_BYTES[task.dtype]
    counts = [_trained(config, count) for count in task.parameters]
    largest = max(counts)
    bucket = min(largest, BUCKET_ENTRIES) * size
    if stage == 0:
        # In bfloat16 they are summed in float32 beside.
        return sum(counts) * (4 if task.dtype == "float32" else 6) + bucket
    # The shard of this rank as it was reduced, and flat in float32 for the step.
    if stage == 1:
        return largest * (4 + 4 / ranks) + bucket
    return largest * 8 / ranks + bucket


def _trained(config: RunConfig, count: int) -> float:
    return count * LORA_SHARE if config.model.lora else count


def activation_bytes(config: RunConfig, task: Task) -> float:
    """Activations of one micro-batch in training, if it is full. Ranks that share its rows have a slice
    each, and the outputs of the last layer for all of it."""
    shape, learners = policy_shape(config), config.learners
    tokens = -(-learners.micro_batch_tokens // learners.sequence_parallel)
    entries = tokens * _layer_entries(shape, config.model.gradient_checkpointing)
    if learners.sequence_parallel > 1:
        entries += learners.micro_batch_tokens * shape.width
    size = entries * DTYPE_BYTES[task.dtype]
    if task.has_logits:
        size += chunk_logits(tokens, shape) * LOGITS_BYTES_TRAINING
    return float(size)


def chunk_logits(tokens: int, shape: ModelShape) -> int:
    """Largest number of logits that exist at once."""
    return min(tokens * shape.vocabulary, max(CHUNK_ENTRIES, shape.vocabulary))


def _layer_entries(shape: ModelShape, checkpointing: bool) -> int:
    """Entries for each token that all layers keep for the backward pass."""
    layer = ENTRIES_PER_WIDTH * shape.width + ENTRIES_PER_MLP_WIDTH * shape.mlp_width
    if checkpointing:
        return layer + shape.layers * shape.width
    return layer * shape.layers


def rollout_memory(config: RunConfig) -> Memory:
    shape, size = policy_shape(config), DTYPE_BYTES[precise(config.rollout.dtype)]
    weights = shape.parameters
    if shape.tied and config.cluster.device == "cpu":
        # On CPU vLLM multiplies by a packed copy of the embedding.
        weights += shape.embedding
    return Memory(
        process=PROCESS_GIB["rollout"] * GIB,
        weights=weights * size,
        activations=float(_largest_engine_batch(config) * shape.vocabulary * LOGITS_BYTES),
        kv_cache=config.rollout.kv_cache_gib * GIB,
    )


def _largest_engine_batch(config: RunConfig) -> int:
    """Sequences that an engine samples a token for in one step."""
    return min(config.rollout.max_sequences, config.ppo.prompts * config.ppo.responses)


def scoring_memory(config: RunConfig) -> Memory:
    shape, size = policy_shape(config), DTYPE_BYTES[precise(config.scoring.dtype)]
    weights = 0
    if config.uses_reference:
        weights += shape.parameters
    weights += sum(reward_model_parameters(config))
    layer = ENTRIES_PER_WIDTH * shape.width + ENTRIES_PER_MLP_WIDTH * shape.mlp_width
    tokens = config.scoring.batch_tokens
    return Memory(
        process=PROCESS_GIB["scoring"] * GIB,
        weights=weights * size,
        # Without a backward pass only the present layer is kept, and the logits.
        activations=float(tokens * layer * size + chunk_logits(tokens, shape) * LOGITS_BYTES),
    )


def shared_weights(config: RunConfig) -> float:
    """Bytes of the weight files between learners and engines: the two newest are kept."""
    return 2.0 * policy_shape(config).parameters * DTYPE_BYTES[precise(config.ppo.dtype)]
