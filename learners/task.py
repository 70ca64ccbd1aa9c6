"""What all tasks of a learner rank share: how work is divided over ranks, and how engines are
saved and exported.

`actors.learner` holds one task at a time: `LanguageModelTask` (pretrain, sft), `RewardModelTask`
or `PPOTask`. Every rank builds the same task from the same files and makes the same calls in the
same order, since most of them are collectives.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.errors import DiskFullError, is_disk_full
from learners.config import LearnerConfig
from learners.data.batching import plan_micro_batches
from learners.data.packing import PackedBatch, pack
from learners.deepspeed_engine import EMA, DeepSpeedEngine
from learners.export import prepare_export
from learners.memory import What, device_memory


@dataclass(frozen=True)
class TaskContext:
    """What a task takes from its rank, beside models and data."""

    rank: int
    """Which part of the sequences is this rank's; ranks that share rows have the same."""
    learner: LearnerConfig
    tokenizer: PreTrainedTokenizerBase
    seed: int

    @property
    def ranks(self) -> int:
        """Into how many parts sequences are divided."""
        return self.learner.data_ranks

    def micro_batches(self, lengths: Sequence[int] | np.ndarray, span: float | None) -> list[list[int]]:
        """This rank's micro-batches of sequences of these lengths, or of groups that share a prompt, as
        indices into `lengths`. All ranks have the same number of micro-batches; some may be empty."""
        # Every rank makes the plan of all ranks, so none has to wait for it.
        budget = self.learner.micro_batch_tokens
        return plan_micro_batches(lengths, self.ranks, budget, span)[self.rank]

    def pack(
        self,
        sequences: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        span: float | None,
        prompt_lengths: Sequence[int] | np.ndarray | None = None,
    ) -> PackedBatch:
        """Sequences, and a bool mask over the tokens of each, as the rows of one forward pass; with
        `prompt_lengths` equal prompts are computed once."""
        return pack(sequences, targets, self.tokenizer.pad_token_id, span, prompt_lengths)


class Task:
    """One or several models under DeepSpeed.

    The first of `engines` is the model that the task trains for the next stage: it counts the
    steps and is exported. With `ema_decay` an average of its weights is kept, saved and restored
    with it.
    """

    def __init__(
        self, engines: dict[str, DeepSpeedEngine], context: TaskContext, ema_decay: float | None = None
    ) -> None:
        self.engines = engines
        self.context = context
        self.ema = EMA(self.engine, ema_decay) if ema_decay else None
        prepare_export(self.engine.module.model, context.tokenizer)

    @property
    def engine(self) -> DeepSpeedEngine:
        """The first engine."""
        return next(iter(self.engines.values()))

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self.engine.steps

    def save(self, folder: Path, tag: str) -> None:
        """Writes the learner state to `folder`; it is complete once every rank has returned.

        Raises DiskFullError if there is no room for it.
        """
        try:
            for name, engine in self.engines.items():
                engine.save(folder / name, tag)
            if self.ema:
                self.ema.save(self._ema_path(folder, tag))
        except (OSError, RuntimeError) as error:
            # torch's zip writer raises a RuntimeError that does not name the cause, only its
            # source file.
            if not (is_disk_full(error) or "inline_container" in str(error)):
                raise
            free = shutil.disk_usage(folder.parent).free / 2**20
            raise DiskFullError(
                f"{folder}: the checkpoint could not be written, the disk has {free:.0f} MiB left; "
                "free some space and run the same command again, which continues from the previous "
                "checkpoint"
            ) from error

    def load(self, folder: Path, tag: str) -> int:
        """Restores what `save` wrote (`DeepSpeedEngine.load` says on which ranks); returns the optimizer
        steps done."""
        for name, engine in self.engines.items():
            engine.load(folder / name, tag)
        if self.ema:
            self.ema.load(self._ema_path(folder, tag))
        return self.steps

    def export(self, folder: Path, use_ema: bool = False) -> None:
        """Writes the first engine's model, or the average of its weights if there is one, as a
        Hugging Face folder, completely or not at all."""
        with self._exported_weights(use_ema):
            self.engine.export(folder, self.context.tokenizer)

    def offload(self, what: What) -> None:
        """Moves this part of all engines to the host, so that others can use the device."""
        for engine in self.engines.values():
            engine.memory.offload(what)

    def reload(self, what: What) -> None:
        """Brings back what `offload` moved, to the last bit."""
        for engine in self.engines.values():
            engine.memory.reload(what)

    def memory(self) -> dict[str, int]:
        """Bytes on the device: `states` and `weights` of all engines, and where the device is a GPU
        `allocated`, `reserved` and `free` (`learners.memory.device_memory`)."""
        total = {"states": 0, "weights": 0}
        for engine in self.engines.values():
            for part, size in engine.memory.held().items():
                total[part] += size
        return total | device_memory(self.engine.device)

    def close(self) -> None:
        """Frees the engines; the process group stays for the next task."""
        for engine in self.engines.values():
            engine.close()

    def _exported_weights(self, use_ema: bool) -> AbstractContextManager[None]:
        if use_ema and self.ema:
            return self.ema.applied()
        return nullcontext()

    def _ema_path(self, folder: Path, tag: str) -> Path:
        return folder / f"ema-{tag}"
