"""Which process holds what, and how much memory it takes: arithmetic on the config, before anything
starts."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import RunConfig
from cluster.layout import gpus_each, shares_learners
from cluster.memory_estimate import (
    GIB,
    LIBRARIES_GIB,
    PROCESS_GIB,
    Memory,
    largest_task,
    learner_memory,
    rollout_memory,
    scoring_memory,
    shared_weights,
)
from cluster.stage_registry import fleets_of


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
    """The fleets that the config's stages start. They stay until the run ends, so together they need
    most in the last stage; learners are shown in the stage in which they need most."""
    fleets = []
    task = largest_task(config)
    if task is not None:
        learners = config.learners
        fleets.append(
            FleetPlacement(
                fleet="learner",
                actors=learners.ranks,
                cpus=learners.threads,
                gpus=gpus_each(config, "learner"),
                memory=learner_memory(config, task),
                holds=f"{task.models}, ZeRO-{learners.zero_stage}, {task.dtype}",
            )
        )
    if "rollout" in fleets_of(config.stages):
        rollout = config.rollout
        fleets.append(
            FleetPlacement(
                fleet="rollout",
                actors=rollout.actors,
                cpus=rollout.threads,
                gpus=gpus_each(config, "rollout") * rollout.workers,
                memory=rollout_memory(config),
                holds=f"vLLM engine, {config.rollout.dtype}{_whose(config, 'rollout')}",
            )
        )
    if "scoring" in fleets_of(config.stages):
        scoring = config.scoring
        fleets.append(
            FleetPlacement(
                fleet="scoring",
                actors=scoring.actors,
                cpus=scoring.threads,
                gpus=gpus_each(config, "scoring") * scoring.tensor_parallel,
                memory=scoring_memory(config),
                holds=f"{_scored_by(config)}, {scoring.dtype}{_whose(config, 'scoring')}",
            )
        )
    return fleets


def memory_by_process(config: RunConfig) -> dict[str, float]:
    """GiB of one machine that runs everything: each fleet as a whole, the driver, Ray with its object
    store, libraries, and the weight files that learners leave for engines in shared memory. At the moment at
    which they need most together: without ppo.staleness only one fleet computes at a time."""
    fleets = placement(config)
    sizes = {fleet.fleet: fleet.actors * fleet.memory.held_gib for fleet in fleets}
    computing = fleets
    if not config.ppo.staleness:
        computing = [max(fleets, key=lambda fleet: fleet.actors * fleet.memory.activations)]
    for fleet in computing:
        sizes[fleet.fleet] = fleet.actors * fleet.memory.gib
    sizes["libraries"] = LIBRARIES_GIB
    sizes["driver"] = PROCESS_GIB["driver"]
    sizes["ray"] = PROCESS_GIB["ray"] + config.cluster.object_store_gib
    if "rollout" in fleets_of(config.stages):
        sizes["weight files"] = shared_weights(config) / GIB
    return sizes


def total_memory_gib(config: RunConfig) -> float:
    """Estimate for one machine that runs everything."""
    return sum(memory_by_process(config).values())


def _whose(config: RunConfig, kind: str) -> str:
    is_shared = config.cluster.device == "cuda" and shares_learners(config, kind)
    return ", on the learners' GPUs" if is_shared else ""


def _scored_by(config: RunConfig) -> str:
    models = []
    count = len(config.rewards.model_indices)
    if count:
        models.append("reward model" if count == 1 else f"{count} reward models")
    if config.uses_reference:
        models.append("reference policy")
    return " and ".join(models) or "no model"
