"""One model under DeepSpeed ZeRO: accumulate micro-batches, step, save, restore, export, stream
the weights.

A task (`learners.task`) holds one or two of these. Importing this module imports DeepSpeed.
Losses and advantages are not here but in `learners.rl` and `learners.supervised`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from common.files import atomic_path
from learners.config import LearnerConfig, OptimizerConfig
from learners.deepspeed_arguments import merge
from learners.distributed import on_gpu
from learners.lora import merged_weights
from learners.memory import MemorySwap
from learners.model_files import write_model
from learners.models import DTYPES
from learners.named_tensors import NamedTensors
from learners.sharded_parameters import is_sharded, whole
from learners.state_files import load_averages, load_optimizer, save_averages, save_optimizer
from learners.weight_buckets import adapter_bucket, weight_buckets


class DeepSpeedEngine:
    """A module whose `.model` is a transformers model, sharded over the ranks of the default
    process group."""

    def __init__(
        self,
        module: nn.Module,
        learner: LearnerConfig,
        optimizer: OptimizerConfig,
        dtype: str,
        total_steps: int,
    ) -> None:
        self.optimizer_config = optimizer
        self.total_steps = total_steps
        self.steps = 0
        # No dropout in any stage: with it, the ratio of the first minibatch to the old policy
        # would not be 1.
        for submodule in module.modules():
            if isinstance(submodule, nn.Dropout):
                submodule.p = 0.0
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0 if optimizer.kind == "muon" else optimizer.clip_norm,
            "zero_optimization": {
                "stage": learner.zero_stage,
                # Muon needs whole matrices, which a scattered gradient no longer is (ZeRO 3).
                "reduce_scatter": optimizer.kind != "muon",
                **_offload(learner),
            },
            # torch's AdamW also runs on the CPU, where DeepSpeed's own would have to be compiled
            # first.
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": dtype == "bfloat16"},
            "optimizer": _optimizer(optimizer),
        }
        config = merge(config, learner.deepspeed)
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        parameters = list(module.parameters())
        if not is_sharded(parameters):
            module.to(DTYPES[dtype])  # sharded ones have been cast as they came
        trained = [p for p in parameters if p.requires_grad]
        self.num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
        self.has_frozen = len(trained) < len(parameters)
        self.engine, *_ = deepspeed.initialize(model=module, model_parameters=trained, config=config)
        # DeepSpeed casts buffers too. Rotary frequencies in bfloat16 are those of other positions: 1 nat
        # off at position 2,000, and neither transformers nor vLLM has them so.
        for name, buffer in self.module.named_buffers():
            buffer.data = buffers[name].to(buffer.device)
        self.ranks = dist.get_world_size()
        self.memory = MemorySwap(self.engine)

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def __call__(self, *inputs: Tensor | None, **options: float | bool) -> Any:
        """The module's forward pass, with its tensors moved to the engine's device."""
        self.memory.require("weights")
        on_device = []
        for tensor in inputs:
            if tensor is not None:
                tensor = tensor.to(self.device)
            on_device.append(tensor)
        return self.engine(*on_device, **options)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of this rank's share of a loss that is a sum over ranks; `last` marks
        the last micro-batch of an optimizer step."""
        self.memory.require("all")
        # DeepSpeed averages gradients over ranks, but our losses are divided by global counts:
        # undo the average.
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.ranks)

    def step(self) -> dict[str, float]:
        """Clips, applies AdamW at the scheduled rate, clears the gradients. Returns lr and the
        gradient norm."""
        self.memory.require("all")
        config = self.optimizer_config
        lr = scheduled_lr(config, self.steps, self.total_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
            if group.get("use_muon"):
                group["lr"] = config.muon_lr * lr / config.lr
        self.engine.step()
        self.steps += 1
        norm = self.engine.get_global_grad_norm()
        return {"lr": lr, "grad_norm": math.nan if norm is None else float(norm)}

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, full tensor) of every weight under its Hugging Face name, adapters merged. A
        collective: every rank must iterate over all of it."""
        self.memory.require("weights")
        return merged_weights(self.module.model, whole)

    def weight_buckets(
        self, max_bytes: int, adapters_only: bool = False
    ) -> Iterator[tuple[NamedTensors, bool]]:
        """The same weights in buckets of about `max_bytes` (`learners.weight_buckets`), each with
        whether it is the last; with `adapters_only` the adapters as they are. A collective, like
        `named_weights`."""
        self.memory.require("weights")
        if adapters_only:
            return adapter_bucket(self.module.model, whole)
        return weight_buckets(self.module.model, whole, max_bytes)

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes a Hugging Face folder with the tokenizer, completely or not at all. Every rank
        calls, rank 0 writes."""
        weights = self._stored_weights()
        if dist.get_rank() == 0:
            with atomic_path(folder) as partial:
                write_model(self.module.model, weights, partial)
                tokenizer.save_pretrained(partial)
        else:
            for _ in weights:
                pass  # has its part in gathering each
        dist.barrier()

    def _stored_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Those of a stored model: `named_weights`, and buffers that are no function of the config."""
        yield from self.named_weights()
        model = self.module.model
        stored = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name in stored:
                yield name.replace(".base_layer.", "."), buffer

    def save(self, folder: Path, tag: str) -> None:
        """Writes the learner state: the trained weights, the optimizer's state and the step count, each
        rank its part."""
        self.memory.require("all")
        folder.mkdir(parents=True, exist_ok=True)
        if self.is_resharded:
            save_optimizer(self.engine, folder / tag, self.steps)
            return
        self.engine.save_checkpoint(
            str(folder),
            tag=tag,
            client_state={"steps": self.steps},
            save_latest=False,
            exclude_frozen_parameters=self.has_frozen,
        )

    def load(self, folder: Path, tag: str) -> None:
        """Restores what `save` wrote: with AdamW on any number of ranks and ZeRO stage, with Muon on
        the same."""
        self.memory.require("all")
        if self.is_resharded:
            self.steps = load_optimizer(self.engine, folder / tag)
            return
        is_complete = not self.has_frozen
        path, state = self.engine.load_checkpoint(str(folder), tag=tag, load_module_strict=is_complete)
        if path is None:
            raise FileNotFoundError(f"no learner state {tag} in {folder}")
        self.steps = state["steps"]

    @property
    def is_resharded(self) -> bool:
        """Whether its state can be read by other ranks. DeepSpeed's Muon keeps momenta that are laid out
        like no other state."""
        return self.optimizer_config.kind == "adamw"

    def close(self) -> None:
        self.engine.destroy()


class EMA:
    """Exponential moving average of a model's weights (Ouyang et al. 2022, C.4: decay 0.992), in
    float32.

    Each rank averages the shard that it holds, so ZeRO-3 needs no gathering.
    """

    def __init__(self, engine: DeepSpeedEngine, decay: float) -> None:
        self.engine = engine
        self.decay = decay
        self.averages = [weight.detach().float().clone() for weight in self._local_weights()]
        engine.memory.track(self.averages)

    def update(self) -> None:
        for average, weight in zip(self.averages, self._local_weights(), strict=True):
            average.lerp_(weight.float(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside it, the model has the averages as its weights."""
        originals = [weight.clone() for weight in self._local_weights()]
        for average, weight in zip(self.averages, self._local_weights(), strict=True):
            weight.copy_(average)
        yield
        for original, weight in zip(originals, self._local_weights(), strict=True):
            weight.copy_(original)

    def save(self, folder: Path) -> None:
        """Each rank its part."""
        save_averages(self.engine.module, self.averages, folder)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, on any number of ranks and ZeRO stage."""
        # In place: the memory of these tensors is what a turn of the rollout engines moves away.
        load_averages(self.engine.module, self.averages, folder)

    def _local_weights(self) -> Iterator[Tensor]:
        for parameter in self.engine.module.parameters():
            is_sharded = hasattr(parameter, "ds_tensor")
            yield parameter.ds_tensor.data if is_sharded else parameter.data


def _optimizer(config: OptimizerConfig) -> dict[str, Any]:
    """DeepSpeed's `optimizer` section."""
    params = {
        "lr": config.lr,
        "betas": [config.beta1, config.beta2],
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "torch_adam": True,
    }
    if config.kind == "adamw":
        return {"type": "AdamW", "params": params}
    # The other method computes in bfloat16, which many CPUs only emulate.
    return {"type": "Muon", "params": {**params, "muon_lr": config.muon_lr, "ns_method": "gram"}}


def _offload(learner: LearnerConfig) -> dict[str, Any]:
    """The part of DeepSpeed's `zero_optimization` section that moves state to the CPU."""
    to_cpu = {"device": "cpu", "pin_memory": on_gpu()}
    section = {}
    if learner.offload_optimizer:
        section["offload_optimizer"] = to_cpu
    if learner.offload_parameters:
        section["offload_param"] = to_cpu
    return section


def scheduled_lr(config: OptimizerConfig, step: int, total: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then constant, or a linear or cosine decay
    to final_ratio x lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    decays = {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    decay = decays[config.schedule]
    return config.lr * (config.final_ratio + (1 - config.final_ratio) * decay)
