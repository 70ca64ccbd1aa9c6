"""`hero plan`: what a run would do, before anything starts: arithmetic, placement, memory, and refusals."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from cluster.config import RunConfig
from cluster.run.directory import Run
from common.errors import UserError
from common.plugins import load_object
from learners.data.config import KINDS

# Resident memory of a process before its model, measured on Linux with the pinned versions (GiB).
BASE_GIB = {"driver": 0.9, "ray": 0.9, "learner": 0.75, "rollout": 1.0, "scoring": 0.6}
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass
class Placed:
    """One line of the placement: a fleet and what each of its actors takes."""

    fleet: str
    actors: int
    cpus: int
    gpus: float
    memory_gib: float
    holds: str


def parameters(config: RunConfig) -> int:
    """Parameters of the policy."""
    model = config.model
    if model.path:
        return _stored_parameters(Path(model.path))
    head = model.width // model.heads
    attention = 2 * model.width * model.heads * head + 2 * model.width * model.kv_heads * head + 2 * head
    mlp = 3 * model.width * 3 * model.width
    embeddings = model.approx_vocab_size * model.width * (1 if model.tie_embeddings else 2)
    return embeddings + model.layers * (attention + mlp + 2 * model.width) + model.width


def _stored_parameters(folder: Path) -> int:
    """Parameters of a model folder, from the size of its files; 0 for a hub name, whose size is unknown before loading."""
    if not (folder / "config.json").exists():
        return 0
    config = json.loads((folder / "config.json").read_text())
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    return size // BYTES.get(config.get("dtype") or config.get("torch_dtype") or "float32", 4)


def _vocabulary(folder: str | None) -> int | None:
    """Vocabulary size of a local model folder; None for a hub name, whose size is unknown before loading."""
    if not folder or not (Path(folder) / "config.json").exists():
        return None
    return json.loads((Path(folder) / "config.json").read_text()).get("vocab_size")


def placement(config: RunConfig) -> list[Placed]:
    """What runs where, with an estimate of memory per process.

    A learner rank in PPO holds the policy and, if the advantage needs it, a critic as large: weights and gradients in the
    working type (sharded from ZeRO-3 and ZeRO-2 on), Adam's two moments and, in bfloat16, a master copy in float32
    (sharded from ZeRO-1 on).
    """
    count, learners, ppo = parameters(config), config.learners, config.ppo
    width = BYTES[ppo.dtype]
    stage, ranks = learners.zero_stage, learners.ranks
    optimizer = 8 if ppo.dtype == "float32" else 12
    models = 2 if ppo.advantage_spec.critic else 1
    trained = 0.02 if config.model.lora else 1.0  # share of the parameters; adapters are about this much
    state = width / (ranks if stage >= 2 else 1) + optimizer / (ranks if stage >= 1 else 1)
    per_rank = models * count * (width / (ranks if stage >= 3 else 1) + trained * state)
    vocabulary = config.model.approx_vocab_size
    activations = learners.micro_batch_tokens * (
        vocabulary * 12 + config.model.width * config.model.layers * 100
    )
    gib, judged = 2.0**30, config.rewards.from_model
    return [
        Placed(
            "learner",
            ranks,
            learners.threads,
            learners.gpus,
            BASE_GIB["learner"] + (per_rank + activations) / gib,
            f"policy{' and critic' if ppo.advantage_spec.critic else ''}, ZeRO-{stage}, {ppo.dtype}",
        ),
        Placed(
            "rollout",
            config.rollout.actors,
            config.rollout.threads,
            config.rollout.gpus * config.rollout.tensor_parallel,
            BASE_GIB["rollout"] + count * width / gib + config.rollout.kv_cache_gib,
            f"vLLM engine, {ppo.dtype}",
        ),
        Placed(
            "scoring",
            config.scoring.actors,
            config.scoring.threads,
            config.scoring.gpus,
            BASE_GIB["scoring"]
            + ((1 + judged) * count * BYTES[config.scoring.dtype] + activations / 3) / gib,
            f"{'reward model and ' if judged else ''}reference policy, {config.scoring.dtype}",
        ),
    ]


def total_memory(config: RunConfig) -> float:
    """Estimate for one machine that runs everything, GiB."""
    fleets = sum(p.actors * p.memory_gib for p in placement(config))
    return fleets + BASE_GIB["driver"] + BASE_GIB["ray"] + config.cluster.object_store_gib


def check_feasible(config: RunConfig) -> None:
    """Raises UserError for a config that could start but not finish on what it asks for."""
    for kind in KINDS:
        if getattr(config.data, kind):
            Run(config).data(kind)
            for convert in [s.convert for s in getattr(config.data, kind) if s.convert]:
                load_object(convert)
    for function in [s.path for s in config.rewards.sources if s.kind == "function"]:
        load_object(function)
    if "ppo" in config.stages and "reward" not in config.stages and config.rewards.from_model:
        Run(config).model("reward")
    nothing_to_rank = (
        "reward" in config.stages and "collect" not in config.stages and not config.data.rankings
    )
    if nothing_to_rank and not (Run(config).root / "collect" / "rankings.jsonl").exists():
        raise UserError(
            "stages has reward but not collect, and data.rankings is empty: there is nothing to learn from"
        )
    ours, theirs = _vocabulary(config.model.path), _vocabulary(config.reward_model.path)
    if ours and theirs and ours != theirs:
        raise UserError(
            f"model.path={config.model.path} has a vocabulary of {ours} and reward_model.path={config.reward_model.path} one of {theirs}; "
            "policy and reward model must come from one tokenizer"
        )
    head = config.model.width // config.model.heads
    if config.cluster.device == "cpu" and not config.model.path and head % 32:
        raise UserError(
            f"model.width={config.model.width} / model.heads={config.model.heads} = {head} per head; vLLM's attention on CPU "
            "needs a multiple of 32"
        )
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return  # another machine's cores and memory: Ray's own resources are checked when the fleets start
    cores = config.cluster.cpus or psutil.cpu_count() or 1
    need = config.learners.ranks * config.learners.threads
    if need > cores:
        raise UserError(
            f"learners.ranks={config.learners.ranks} x learners.threads={config.learners.threads} = {need} cores, but this "
            f"run has {cores}; lower one of them"
        )
    for placed in placement(config):
        if placed.gpus and config.cluster.device == "cpu":
            raise UserError(
                f"{placed.fleet} asks for {placed.gpus:g} GPUs but cluster.device is cpu; set cluster.device=cuda"
            )
        if not placed.gpus and config.cluster.device == "cuda":
            raise UserError(
                f"cluster.device is cuda but the {placed.fleet} fleet asks for no GPU; set its gpus"
            )
    free = psutil.virtual_memory().available / 2**30
    if total_memory(config) > free:
        raise UserError(
            f"this run would take about {total_memory(config):.1f} GiB and {free:.1f} GiB are free; use fewer actors, a smaller "
            "model or learners.micro_batch_tokens"
        )


def batch_arithmetic(config: RunConfig) -> list[tuple[str, str]]:
    """How prompts, responses and tokens become optimizer steps and micro-batches: (quantity, how it comes about)."""
    pretrain, collect, ppo, learners = config.pretrain, config.collect, config.ppo, config.learners
    batch = ppo.prompts * ppo.responses
    longest = batch * config.model.context
    steps = ppo.iterations * ppo.epochs * ppo.minibatches
    share = batch / ppo.minibatches / learners.ranks
    micro = -(-longest // (ppo.minibatches * learners.ranks * learners.micro_batch_tokens))
    return [
        ("model parameters", f"{parameters(config):,}"),
        (
            "pretraining tokens",
            f"{pretrain.steps} steps x {pretrain.batch_tokens} = {pretrain.steps * pretrain.batch_tokens:,}",
        ),
        (
            "collected responses",
            f"{collect.prompts} prompts x {collect.responses} = {collect.prompts * collect.responses:,}",
        ),
        ("PPO batch", f"{ppo.prompts} prompts x {ppo.responses} responses = {batch} sequences"),
        ("  tokens at most", f"{batch} x {config.model.context} context = {longest:,}"),
        (
            "  minibatch",
            f"{batch} / {ppo.minibatches} = {batch // ppo.minibatches} sequences, {share:g} a rank",
        ),
        ("  micro-batches a rank and minibatch, at most", f"{micro} of {learners.micro_batch_tokens} tokens"),
        ("PPO optimizer steps", f"{ppo.iterations} x {ppo.epochs} epochs x {ppo.minibatches} = {steps:,}"),
        ("PPO responses in all", f"{ppo.iterations} x {batch} = {ppo.iterations * batch:,}"),
    ]


def print_plan(config: RunConfig, console: Console) -> None:
    """Prints the resolved config, the arithmetic, the placement; raises UserError if the run cannot work."""
    console.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False)
    arithmetic = Table(title="Batch arithmetic", title_justify="left")
    arithmetic.add_column("quantity")
    arithmetic.add_column("value", justify="right")
    for what, value in batch_arithmetic(config):
        arithmetic.add_row(what, value)
    console.print(arithmetic)
    where = Table(title="Placement", title_justify="left")
    for name in ("fleet", "actors", "threads each", "GPUs each", "GiB each, about", "holds"):
        where.add_column(name)
    for p in placement(config):
        where.add_row(p.fleet, str(p.actors), str(p.cpus), f"{p.gpus:g}", f"{p.memory_gib:.1f}", p.holds)
    console.print(where)
    console.print(f"memory over all processes: about {total_memory(config):.1f} GiB")
    check_feasible(config)
