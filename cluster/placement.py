"""Which process holds what, and an estimate of its memory: arithmetic on the config, before
anything starts.

The estimate counts what grows with the model and the batch, and adds the measured size of a process
without a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cluster.config import RunConfig

GIB = 2**30
# Resident memory of a process before its model, measured on Linux with the pinned versions.
PROCESS_GIB = {"driver": 0.9, "ray": 0.9, "learner": 0.75, "rollout": 1.0, "scoring": 0.6}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
# Adam's state of one parameter: two moments in float32, and beside bfloat16 weights their float32
# master copy.
ADAM_BYTES = {"float32": 8, "bfloat16": 12}
# Trained parameters as a share of all when adapters are trained; they are about this much.
LORA_SHARE = 0.02


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
        total = self.process + self.weights + self.gradients + self.optimizer
        return (total + self.activations + self.kv_cache) / GIB


@dataclass(frozen=True)
class FleetPlacement:
    """One line of the placement: a fleet, and what each of its actors takes."""

    fleet: str
    actors: int
    cpus: int
    gpus: float
    memory: Memory
    holds: str


def placement(config: RunConfig) -> list[FleetPlacement]:
    """What runs where during PPO, the stage that needs most."""
    learners, rollout, scoring = config.learners, config.rollout, config.scoring
    trained = "policy and critic" if config.ppo.advantage_spec.critic else "policy"
    scored = "reward model and reference policy" if config.rewards.uses_reward_model else "reference policy"
    return [
        FleetPlacement(
            fleet="learner",
            actors=learners.ranks,
            cpus=learners.threads,
            gpus=learners.gpus,
            memory=learner_memory(config),
            holds=f"{trained}, ZeRO-{learners.zero_stage}, {config.ppo.dtype}",
        ),
        FleetPlacement(
            fleet="rollout",
            actors=rollout.actors,
            cpus=rollout.threads,
            gpus=rollout.gpus * rollout.tensor_parallel,
            memory=rollout_memory(config),
            holds=f"vLLM engine, {config.ppo.dtype}",
        ),
        FleetPlacement(
            fleet="scoring",
            actors=scoring.actors,
            cpus=scoring.threads,
            gpus=scoring.gpus,
            memory=scoring_memory(config),
            holds=f"{scored}, {scoring.dtype}",
        ),
    ]


def learner_memory(config: RunConfig) -> Memory:
    """A learner rank in PPO: the policy and, if the advantage needs it, a critic of the same size.

    ZeRO shards the optimizer's state over the ranks from stage 1 on, the gradients from stage 2,
    the weights from stage 3 (Rajbhandari et al. 2020, arXiv:1910.02054). Gradients and optimizer
    state exist for trained parameters only.
    """
    learners, dtype = config.learners, config.ppo.dtype
    count = parameters(config)
    # The critic starts as a copy of the reward model or of the policy; its head is negligible.
    if config.ppo.advantage_spec.critic:
        count *= 2
    trained = count * LORA_SHARE if config.model.lora else count
    stage, ranks = learners.zero_stage, learners.ranks
    return Memory(
        process=PROCESS_GIB["learner"] * GIB,
        weights=count * DTYPE_BYTES[dtype] / (ranks if stage >= 3 else 1),
        gradients=trained * DTYPE_BYTES[dtype] / (ranks if stage >= 2 else 1),
        optimizer=trained * ADAM_BYTES[dtype] / (ranks if stage >= 1 else 1),
        activations=activation_bytes(config),
    )


def rollout_memory(config: RunConfig) -> Memory:
    return Memory(
        process=PROCESS_GIB["rollout"] * GIB,
        weights=parameters(config) * DTYPE_BYTES[config.ppo.dtype],
        kv_cache=config.rollout.kv_cache_gib * GIB,
    )


def scoring_memory(config: RunConfig) -> Memory:
    models = 2 if config.rewards.uses_reward_model else 1
    return Memory(
        process=PROCESS_GIB["scoring"] * GIB,
        weights=models * parameters(config) * DTYPE_BYTES[config.scoring.dtype],
        # Without a backward pass only the logits and the present layer are kept: about a third.
        activations=activation_bytes(config) / 3,
    )


def activation_bytes(config: RunConfig) -> float:
    """Activations of one micro-batch in training.

    For each token 12 bytes per entry of the vocabulary (logits, their gradient and
    log-probabilities in float32) and 100 bytes per hidden unit and layer, both measured with the
    default kernels.
    """
    logits = config.model.approx_vocab_size * 12
    layers = config.model.width * config.model.layers * 100
    return float(config.learners.micro_batch_tokens * (logits + layers))


def total_memory_gib(config: RunConfig) -> float:
    """Estimate for one machine that runs everything."""
    fleets = sum(fleet.actors * fleet.memory.gib for fleet in placement(config))
    return fleets + PROCESS_GIB["driver"] + PROCESS_GIB["ray"] + config.cluster.object_store_gib


def parameters(config: RunConfig) -> int:
    """Parameters of the policy: of a model that starts from random weights exactly, of a model
    folder by its files."""
    model = config.model
    if model.path:
        return _stored_parameters(Path(model.path))
    head_width = model.width // model.heads
    # Qwen3's layer: grouped queries, norms of queries and keys, a gated MLP three times as wide.
    queries_and_output = 2 * model.width * model.heads * head_width
    keys_and_values = 2 * model.width * model.kv_heads * head_width
    head_norms = 2 * head_width
    mlp = 3 * model.width * 3 * model.width
    layer_norms = 2 * model.width
    layer = queries_and_output + keys_and_values + head_norms + mlp + layer_norms
    embeddings = model.approx_vocab_size * model.width
    if not model.tie_embeddings:
        embeddings *= 2
    return embeddings + model.layers * layer + model.width


def vocabulary(folder: str | None) -> int | None:
    """Vocabulary size of a local model folder; None for a hub name, whose size is unknown before
    loading."""
    if not folder or not (Path(folder) / "config.json").exists():
        return None
    size: int | None = json.loads((Path(folder) / "config.json").read_text()).get("vocab_size")
    return size


def _stored_parameters(folder: Path) -> int:
    """Parameters of a model folder, from the size of its files; 0 for a hub name, whose size is
    unknown before loading."""
    if not (folder / "config.json").exists():
        return 0
    config = json.loads((folder / "config.json").read_text())
    # Reading the tensors' headers would be exact, but the sizes of the files are within a percent.
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return size // DTYPE_BYTES.get(dtype, 4)
