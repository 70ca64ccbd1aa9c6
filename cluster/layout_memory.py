"""What each GPU of a layout needs, by phase where fleets share it: arithmetic on `cluster.gpu_memory`, for
`hero plan`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from cluster.config import RunConfig
from cluster.gpu_memory import (
    CONTEXT_GIB,
    GPUMemory,
    engine_gpu_memory,
    learner_gpu_memory,
    scoring_gpu_memory,
)
from cluster.layout import device_of, turn_takers
from cluster.layout_checks import is_for_other_hosts
from cluster.memory_estimate import GIB, largest_task
from cluster.stage_registry import fleets_of
from common.errors import UserError
from common.hardware import gpu_memory_bytes

ASSUMED_GIB = 80.0
"""Of a GPU that is on another host."""


@dataclass(frozen=True)
class Need:
    """What a GPU must have in one phase, or for one process."""

    what: str
    gib: float
    made_of: str


def needs(config: RunConfig, gpu_bytes: float) -> list[Need]:
    """For each kind of fleet on a GPU of its own one need, for those that share GPUs one for each phase.
    An engine's cache is not counted: it takes what is left."""
    memory = _by_kind(config, gpu_bytes)
    takers = [kind for kind in memory if kind in turn_takers(config)]
    found = []
    for kind, one in memory.items():
        if kind not in takers:
            found.append(Need(kind, one.peak_gib, _parts(one)))
        else:
            found.append(_phase(f"phase {kind}", kind, one, one.peak_gib, takers))
    if {"learner", "rollout"} <= set(takers):
        learner, engine = memory["learner"], memory["rollout"]
        weights = (learner.weights + engine.weights) / GIB + CONTEXT_GIB
        text = f"weights of learner {learner.weights / GIB:.1f} and engine {engine.weights / GIB:.1f}"
        others = CONTEXT_GIB * (len(takers) - 1)
        found.append(Need("phase sync", weights + others, f"{text}, contexts"))
    return found


def _phase(name: str, kind: str, one: GPUMemory, peak_gib: float, takers: list[str]) -> Need:
    """The others have left, but for their CUDA contexts."""
    others = len(takers) - 1
    return Need(
        name, peak_gib + others * CONTEXT_GIB, f"{_parts(one)}; {others} contexts of {CONTEXT_GIB:g} beside"
    )


def _by_kind(config: RunConfig, gpu_bytes: float) -> dict[str, GPUMemory]:
    """Memory of one process of each kind of fleet that is on GPUs."""
    task = largest_task(config)
    of_kind: dict[str, Callable[[], GPUMemory]] = {
        "rollout": lambda: engine_gpu_memory(config, gpu_bytes, config.rollout.workers, cache_bytes=0.0),
        "scoring": lambda: scoring_gpu_memory(config, config.scoring.tensor_parallel),
    }
    if task is not None:
        of_kind["learner"] = lambda: learner_gpu_memory(config, task)
    kinds = [kind for kind in fleets_of(config.stages) if kind in of_kind]
    return {kind: of_kind[kind]() for kind in kinds if device_of(config, kind) == "cuda"}


def _parts(one: GPUMemory) -> str:
    """Its largest uses, in GiB."""
    uses = ("weights", "gathered", "gradients", "optimizer", "buckets", "activations")
    sizes = {use: getattr(one, use) / GIB for use in uses}
    largest = sorted(sizes, key=lambda use: -sizes[use])[:3]
    return ", ".join(f"{use} {sizes[use]:.1f}" for use in largest if sizes[use] >= 0.05)


def gpu_bytes_of(config: RunConfig) -> float | None:
    """Memory of this host's smallest GPU; None if the run is for other hosts."""
    return None if is_for_other_hosts(config) else gpu_memory_bytes()


def memory_table(config: RunConfig) -> Table | None:
    """The needs, and whether a GPU has room for them; None on CPU."""
    if config.cluster.device == "cpu":
        return None
    known = gpu_bytes_of(config)
    room = (known or ASSUMED_GIB * GIB) / GIB
    whose = "of this host" if known else "assumed"
    table = Table(title=f"GPU memory, about, of {room:.0f} GiB ({whose})", title_justify="left")
    for name in ("what", "GiB", "fits", "made of"):
        table.add_column(name)
    for need in needs(config, room * GIB):
        table.add_row(need.what, f"{need.gib:.1f}", "yes" if need.gib <= room else "no", need.made_of)
    return table


def check_gpu_memory(config: RunConfig) -> None:
    """Each process, or each phase, fits a GPU of this host."""
    known = gpu_bytes_of(config) if config.cluster.device == "cuda" else None
    if not known:
        return
    for need in needs(config, known):
        if need.gib > known / GIB:
            raise UserError(
                f"{need.what} needs about {need.gib:.1f} GiB of a GPU ({need.made_of}) and those here have "
                f"{known / GIB:.1f}; use more learners.ranks with zero_stage: 3, learners.offload_optimizer, "
                "model.lora, rollout.tensor_parallel or a smaller micro-batch"
            )
