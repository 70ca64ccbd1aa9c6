"""One model under DeepSpeed ZeRO: accumulate micro-batches, step, save, restore, export, stream the weights.

The tasks of `learners/` (supervised, reward, ppo) hold one or two of these. Importing this module imports
DeepSpeed; nothing numerical lives here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from learners.config import LearnerConfig, OptimizerConfig
from learners.lora import merged_weights
from learners.models import DTYPES


class DeepSpeedEngine:
    """A module whose `.model` is a transformers model, sharded over the ranks of the default process group."""

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
        for dropout in (m for m in module.modules() if isinstance(m, nn.Dropout)):
            dropout.p = 0.0
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": optimizer.clip_norm,
            "zero_optimization": {"stage": learner.zero_stage, **_offload(learner)},
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps on the CPU too, and nothing is compiled
            "bf16": {"enabled": dtype == "bfloat16"},
            "optimizer": {
                "type": "AdamW",
                "params": {
                    "lr": optimizer.lr,
                    "betas": [optimizer.beta1, optimizer.beta2],
                    "eps": optimizer.eps,
                    "weight_decay": optimizer.weight_decay,
                    "torch_adam": True,
                },
            },
        }
        module.to(DTYPES[dtype])
        self.parameters = sum(p.numel() for p in module.parameters())
        trained = [p for p in module.parameters() if p.requires_grad]
        self.frozen = len(trained) < len(list(module.parameters()))
        self.engine, *_ = deepspeed.initialize(model=module, model_parameters=trained, config=config)
        self.ranks = dist.get_world_size()

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def __call__(self, *inputs: Tensor | None, **options: float | bool) -> Any:
        return self.engine(*(x if x is None else x.to(self.device) for x in inputs), **options)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of this rank's share of a loss that is a sum over ranks; `last` closes the step's batch."""
        # DeepSpeed averages over ranks, our losses are divided by global counts already: undo the average.
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.ranks)

    def step(self) -> dict[str, float]:
        """Clips, applies AdamW at the scheduled rate, clears the gradients. Returns lr and the gradient norm."""
        lr = scheduled_lr(self.optimizer_config, self.steps, self.total_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        self.steps += 1
        norm = self.engine.get_global_grad_norm()
        return {"lr": lr, "grad_norm": float(norm) if norm is not None else math.nan}

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) of every weight under its Hugging Face name, adapters merged. A collective: every rank
        iterates."""
        return merged_weights(self.module.model, self._gathered)

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes a Hugging Face folder with the tokenizer (rank 0 writes; every rank calls)."""
        model, writes = self.module.model, dist.get_rank() == 0
        if self.frozen:
            merged = {name: weight.to("cpu", copy=True) for name, weight in self.named_weights() if writes}
        with nullcontext() if self.frozen else self._gathered(list(model.parameters())):
            if writes:
                model.save_pretrained(folder, state_dict=merged if self.frozen else None)
                tokenizer.save_pretrained(folder)
        dist.barrier()

    def save(self, folder: Path, tag: str) -> None:
        """Writes the learner state: trained weights, optimizer and step count of every rank's shard."""
        state = {"steps": self.steps}
        self.engine.save_checkpoint(
            str(folder), tag=tag, client_state=state, save_latest=False, exclude_frozen_parameters=self.frozen
        )

    def load(self, folder: Path, tag: str) -> None:
        """Restores what `save` wrote, on the same number of ranks and ZeRO stage."""
        path, state = self.engine.load_checkpoint(str(folder), tag=tag, load_module_strict=not self.frozen)
        if path is None:
            raise FileNotFoundError(f"no learner state {tag} in {folder}")
        self.steps = state["steps"]

    def close(self) -> None:
        self.engine.destroy()

    def _gathered(self, parameters: list[nn.Parameter]) -> Any:
        sharded = any(hasattr(p, "ds_id") for p in parameters)
        return deepspeed.zero.GatheredParameters(parameters) if sharded else nullcontext()


class EMA:
    """Exponential moving average of a model's weights (Ouyang et al. 2022, C.4: decay 0.992), in float32.

    Each rank averages the shard it holds, so ZeRO-3 needs no gathering; `swapped` puts the average in place.
    """

    def __init__(self, engine: DeepSpeedEngine, decay: float) -> None:
        self.engine = engine
        self.decay = decay
        self.shadow = [t.detach().float().clone() for t in self._local()]

    def update(self) -> None:
        for shadow, tensor in zip(self.shadow, self._local(), strict=True):
            shadow.lerp_(tensor.float(), 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        kept = [t.clone() for t in self._local()]
        for shadow, tensor in zip(self.shadow, self._local(), strict=True):
            tensor.copy_(shadow)
        yield
        for original, tensor in zip(kept, self._local(), strict=True):
            tensor.copy_(original)

    def _local(self) -> Iterator[Tensor]:
        for parameter in self.engine.module.parameters():
            yield parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data


# Dense peak in bfloat16, FLOP/s (the makers' data sheets), by what torch calls the device.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}


def peak_flops() -> float | None:
    """Peak of this rank's device, or None where it is not known (every CPU)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def _offload(learner: LearnerConfig) -> dict[str, Any]:
    wanted = {"offload_optimizer": learner.offload_optimizer, "offload_param": learner.offload_parameters}
    return {
        key: {"device": "cpu", "pin_memory": torch.cuda.is_available()} for key, on in wanted.items() if on
    }


def scheduled_lr(config: OptimizerConfig, step: int, total: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then constant, linear or cosine fall to final_ratio x lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.final_ratio + (1 - config.final_ratio) * shape)
