"""The models of a scoring actor, whole on one device or cut over several (tensor parallelism).

Cut models are those of transformers, by the plan of their class. The actor is then the leader of worker
processes on the same host, one for each further device. All make the same calls in the same order: a call
of a leader's model tells the workers its arguments first, and each of them computes its part. A worker
ends with its leader.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from actors.config import ScoringConfig
from learners.config import ModelConfig
from learners.forward_checks import attention_span, can_share_prompts, check_forward, separates_packed
from learners.models import PolicyModule, ScalarModule, load_policy, load_scalar

ModuleT = TypeVar("ModuleT", PolicyModule, ScalarModule)

IDLE = timedelta(days=365)
"""Workers wait through whole phases of others. A leader that dies closes its connections, which ends them."""


@dataclass(frozen=True)
class ModelSources:
    """What to load."""

    policy: str | None
    """Folder of the reference; None: no reference."""
    reward_models: tuple[str, ...]
    """Folders of the reward models."""
    config: ScoringConfig
    model: ModelConfig


@dataclass(frozen=True)
class ScoringModels:
    """Models on their device, checked."""

    reference: Any
    """A PolicyModule, or a `_LedModule` of one; None without the reference."""
    reward_models: tuple[Any, ...]
    """The same of ScalarModules."""
    span: float | None
    """How sequences stand in rows (`learners.data.batching`): not all architectures keep those of one row
    apart."""
    shares_prompts: bool

    def numbered(self) -> list[Any]:
        """All of them in one order, by which the leader of cut models names one to its workers."""
        return [self.reference, *self.reward_models]


def load_models(sources: ModelSources, device: torch.device) -> ScoringModels:
    """The models, with the workers that they need. Raises UserError for a model that does not pass
    `check_forward` or cannot be cut."""
    size = sources.config.tensor_parallel
    if size == 1:
        return _load(sources, device)
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    workers = []
    for rank in range(1, size):
        worker = context.Process(target=_work, args=(rank, store.port, sources, device.type), daemon=True)
        worker.start()
        workers.append(worker)
    device = _join(0, size, store, sources.config.threads, device.type)
    models = _load(sources, device)
    led = []
    for number, module in enumerate(models.numbered()):
        led.append(_LedModule(number, module, workers) if module else None)
    return ScoringModels(led[0], tuple(led[1:]), models.span, models.shares_prompts)


class _LedModule:
    """The leader's part of a cut model."""

    def __init__(self, number: int, module: torch.nn.Module, workers: list[Any]) -> None:
        self.number, self.module, self.workers = number, module, workers

    def __call__(self, *arguments: Any) -> Any:
        """The module's own output. A failure ends the process, so that the fleet replaces actor and
        workers: they may be at different places of a forward pass."""
        try:
            dist.broadcast_object_list([(self.number, arguments)], device=torch.device("cpu"))
            return self.module(*arguments)
        except Exception as error:
            for worker in self.workers:
                worker.kill()
            raise SystemExit(f"a worker of a cut scoring model failed: {error}") from error


def _work(rank: int, port: int, sources: ModelSources, device_type: str) -> None:
    """A worker's whole life."""
    store = dist.TCPStore("127.0.0.1", port, sources.config.tensor_parallel, is_master=False)
    device = _join(rank, sources.config.tensor_parallel, store, sources.config.threads, device_type)
    models = _load(sources, device)
    with torch.inference_mode():
        while True:
            message: list[Any] = [None]
            dist.broadcast_object_list(message, device=torch.device("cpu"))
            number, arguments = message[0]
            on_device = [_to(argument, device) for argument in arguments]
            models.numbered()[number](*on_device)


def _to(argument: Any, device: torch.device) -> Any:
    return argument.to(device) if isinstance(argument, torch.Tensor) else argument


def _join(rank: int, size: int, store: dist.Store, threads: int, device_type: str) -> torch.device:
    """Joins the process group of leader and workers; the device of this one."""
    # transformers asks the environment which part of the model is this process's.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    torch.set_num_threads(threads)
    if device_type == "cuda":
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=IDLE)
    return torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")


def _load(sources: ModelSources, device: torch.device) -> ScoringModels:
    config, attention = sources.config, sources.model.attention
    is_cut = config.tensor_parallel > 1
    reference: PolicyModule | None = None
    if sources.policy:
        policy = load_policy(sources.policy, config.dtype, attention, is_cut)
        reference = _ready(PolicyModule(policy), device)
    reward_models = []
    for path in sources.reward_models:
        scalar = load_scalar(path, config.dtype, attention, is_cut)
        reward_models.append(_ready(ScalarModule(scalar), device))
    models = [module.model for module in (reference, *reward_models) if module]
    packing = all(separates_packed(model) for model in models)
    span = min(map(attention_span, models), default=math.inf) if packing else None
    shares_prompts = packing and all(can_share_prompts(model) for model in models)
    return ScoringModels(reference, tuple(reward_models), span, shares_prompts)


def _ready(module: ModuleT, device: torch.device) -> ModuleT:
    """The module on the actor's device, checked."""
    module.to(device).eval()
    check_forward(module, packing=False)
    return module
