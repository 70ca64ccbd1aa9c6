"""A learner rank as a process: joins the process group once, then holds one task after another.

`cluster.fleets.fleet` makes these into Ray actors; nothing here knows Ray. A stage starts its task on every rank and then
makes the same calls on every rank in the same order, since most of them are collectives.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from common.errors import UserError, is_disk_full
from learners.config import LearnerConfig, ModelConfig, PretrainConfig, RewardModelConfig, SFTConfig
from learners.data.datasets import RankingData, TokenData
from learners.deepspeed_engine import DeepSpeedEngine, peak_flops
from learners.distributed import join_process_group
from learners.models import (
    PolicyModule,
    ScalarModule,
    build_policy,
    load_policy,
    load_scalar,
    load_tokenizer,
    prepare_for_training,
    scalar_from_policy,
)
from learners.rl.advantages import groups_with_signal
from learners.rl.config import PPOConfig
from learners.rl.ppo import PPOTask
from learners.supervised.language import LanguageModelTask
from learners.supervised.ranking import RewardModelTask


class WeightSender(Protocol):
    """The sending half of a weight transport (`actors.weights.vllm`): called on every rank, returns what engines receive."""

    def send(self, named_tensors: Any, rank: int, version: int) -> dict[str, Any]: ...


class LearnerActor:
    """One rank. `start_*` builds a task from files; the rest are calls on it."""

    def __init__(self, rank: int, config: LearnerConfig, model: ModelConfig) -> None:
        self.rank, self.config, self.model = rank, config, model
        self.task: Any = None

    def address(self) -> tuple[str, int]:
        """This host's address and a port that is free now, for the others to join at."""
        host = socket.gethostbyname(socket.gethostname()) if self.config.ranks > 1 else "127.0.0.1"
        with socket.socket() as free:
            free.bind(("", 0))
            return host, free.getsockname()[1]

    def join(self, address: str, port: int) -> int:
        join_process_group(self.rank, self.config.ranks, address, port, self.config.threads)
        return os.getpid()

    def flops_per_token(self) -> tuple[float, float | None]:
        """(FLOPs to train the current task's models on one token, peak FLOP/s of this rank's device if known): six for
        each parameter, forward and backward (Kaplan et al. 2020, section 2.1; attention over the context left out)."""
        engines = self._engines()
        return 6.0 * sum(e.parameters for e in engines), peak_flops()

    def start_pretrain(self, config: PretrainConfig, folder: Path, seed: int) -> int:
        """Next-token training on `folder/tokens.npz`. Each start returns the number of optimizer steps."""
        tokenizer = load_tokenizer(folder / "tokenizer")
        if self.model.path:
            module = self._policy(self.model.path, self.config.dtype, seed)
        else:
            whole = self.model.model_copy(
                update={"lora": None}
            )  # adapters of random weights would learn nothing
            module = PolicyModule(
                prepare_for_training(build_policy(self.model, tokenizer, seed), whole, seed)
            )
        data = TokenData.load(folder / "tokens.npz")
        batch = max(1, config.batch_tokens // config.sequence_length)
        return self._supervise(
            LanguageModelTask, module, data, config, batch, folder / "tokenizer", seed, steps=config.steps
        )

    def start_sft(self, policy: Path, config: SFTConfig, folder: Path, seed: int) -> int:
        data = TokenData.load(folder / "demonstrations.npz")
        module = self._policy(policy, self.config.dtype, seed)
        return self._supervise(
            LanguageModelTask, module, data, config, config.batch_size, policy, seed, epochs=config.epochs
        )

    def start_reward(self, policy: Path, config: RewardModelConfig, folder: Path, seed: int) -> int:
        data = RankingData.load(folder / "rankings.npz")
        module, tokens = self._scalar(config.path, policy, self.config.dtype, seed), config.path or policy
        task = partial(RewardModelTask, margin=config.margin)
        return self._supervise(
            task, module, data, config, config.batch_size, tokens, seed, epochs=config.epochs
        )

    def _policy(self, path: str | Path, dtype: str, seed: int) -> PolicyModule:
        return PolicyModule(
            prepare_for_training(load_policy(path, dtype, self.model.attention), self.model, seed)
        )

    def _scalar(self, path: str | Path | None, policy: Path, dtype: str, seed: int) -> ScalarModule:
        """The scalar model of a folder; without one, the policy under a new head."""
        attention = self.model.attention
        model = (
            load_scalar(path, dtype, attention)
            if path
            else scalar_from_policy(policy, seed, dtype, attention)
        )
        return ScalarModule(prepare_for_training(model, self.model, seed))

    def _supervise(
        self,
        task: Any,
        module: Any,
        data: Any,
        config: Any,
        batch_size: int,
        tokenizer: Path | str,
        seed: int,
        steps: int | None = None,
        epochs: int = 0,
    ) -> int:
        self.close()
        self.tokenizer = load_tokenizer(tokenizer, self.model)
        self.task = task(
            module,
            data,
            learner=self.config,
            optimizer=config.optimizer,
            batch_size=batch_size,
            seed=seed,
            steps=steps,
            epochs=epochs,
            pad_token=self.tokenizer.pad_token_id,
        )
        return self.task.total_steps

    def start_ppo(
        self, policy: Path, reward: Path | None, config: PPOConfig, corpus: Path | None, seed: int
    ) -> int:
        """PPO from the SFT policy; the critic, if the advantage has one, a copy of the reward model (Ouyang et al. 2022, C.4)
        or, without one, of the policy under a new head."""
        self.close()
        self.tokenizer = load_tokenizer(policy, self.model)
        self.task = PPOTask(
            self._policy(policy, config.dtype, seed),
            self._scalar(reward, policy, config.dtype, seed) if config.advantage_spec.critic else None,
            config,
            self.config,
            TokenData.load(corpus) if corpus else None,
            seed,
            self.tokenizer.pad_token_id,
        )
        return config.iterations

    def train(self, count: int) -> list[dict[str, float]]:
        """Up to `count` supervised steps."""
        return self.task.train(count)

    def validate(self) -> dict[str, float]:
        return self.task.validate()

    def agreement(self) -> np.ndarray:
        return self.task.agreement()

    def center(self, demonstrations: Path) -> float:
        return self.task.center(TokenData.load(demonstrations))

    def iterate(self, iteration: int, kl_coef: float, *batch: Any) -> tuple[dict[str, float], float, str]:
        """One PPO iteration over parts of a batch, for each part Samples, scores_B, ref_logprobs_N: (metrics, seconds, digest
        of the sampled tokens and scores)."""
        started = time.perf_counter()
        samples, scored = batch[0::3], list(zip(batch[1::3], batch[2::3], strict=True))
        digest = hashlib.sha256()
        for part, (scores_B, _) in zip(samples, scored, strict=True):
            digest.update(part.tokens_N.tobytes() + part.logprobs_N.tobytes() + scores_B.tobytes())
        metrics = self.task.train(iteration, kl_coef, len(samples), *samples, *scored)
        return metrics, time.perf_counter() - started, digest.hexdigest()

    def groups_with_signal(self, *batch: Any) -> int:
        """How many prompts have responses whose scores differ (see `learners.objectives.groups_with_signal`)."""
        ids = torch.from_numpy(np.concatenate([samples.prompt_ids_B for samples in batch[0::3]]))
        scores_B = torch.from_numpy(np.concatenate(batch[1::3]))
        return len(ids[groups_with_signal(scores_B, ids)].unique())

    def pretrain_loss(self) -> float:
        return self.task.pretrain_loss()

    def send_weights(self, transport: WeightSender, version: int) -> dict[str, Any]:
        return transport.send(self.task.policy.named_weights(), self.rank, version)

    def probe(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        return self.task.probe(sequences)

    def save(self, folder: Path, tag: str) -> None:
        """Learner state under `folder`; complete once every rank has returned. Raises UserError if the disk is full."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (self.task if isinstance(self.task, PPOTask) else self.task.engine).save(folder, tag)
        except (OSError, RuntimeError) as fault:  # torch's writer says RuntimeError, and not why
            if not (is_disk_full(fault) or "inline_container" in str(fault)):
                raise
            free = shutil.disk_usage(folder.parent).free / 2**20
            raise UserError(
                f"{folder}: the checkpoint could not be written, {free:.0f} MiB are free there; make room and run the same "
                "command, which goes on from the checkpoint before"
            ) from fault

    def load(self, folder: Path, tag: str) -> int:
        """Restores a saved state; returns the optimizer steps done."""
        if isinstance(self.task, PPOTask):
            self.task.load(folder, tag)
            return self.task.policy.steps
        self.task.engine.load(folder, tag)
        return self.task.engine.steps

    def export(self, folder: Path, averaged: bool = False) -> None:
        """Writes the model (the policy of a PPO task) as a Hugging Face folder, whole or not at all."""
        partial = folder.with_name(folder.name + ".partial")
        ppo = isinstance(self.task, PPOTask)
        engine = self.task.policy if ppo else self.task.engine
        if ppo and averaged and self.task.average:
            with self.task.average.swapped():
                engine.export(partial, self.tokenizer)
        else:
            engine.export(partial, self.tokenizer)
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        dist.barrier()

    def close(self) -> None:
        """Frees the current task's engines; the process and its group stay for the next."""
        for engine in self._engines():
            engine.close()
        self.task = None

    def _engines(self) -> list[DeepSpeedEngine]:
        if self.task is None:
            return []
        return self.task.engines if isinstance(self.task, PPOTask) else [self.task.engine]
