"""A learner rank as a process: joins the process group once, then holds one task after another.

`cluster.fleets` makes these into Ray actors; nothing here knows Ray. A stage starts its task on
every rank and then makes the same calls on every rank in the same order, since most of them are
collectives.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from actors.weights.sender import WeightSender
from actors.weights.transport import Sent, WeightTransport
from common.files import file_sizes
from common.hardware import device_of, require_device
from common.network import host_address
from common.run_paths import TrainingInputPaths
from learners.config import LearnerConfig, ModelConfig, PretrainConfig, RewardModelConfig, SFTConfig
from learners.data.datasets import RankingData, TokenData
from learners.data.reward_tokenizer import reward_tokenizer
from learners.data.tokenizer_loading import load_tokenizer
from learners.distributed import join_process_group
from learners.memory import What
from learners.module_loading import ModuleLoader
from learners.peak_flops import peak_flops
from learners.rendezvous import Rendezvous
from learners.rl.advantages import groups_with_signal
from learners.rl.config import PPOConfig
from learners.rl.ppo import PPOTask
from learners.rl.scored_parts import unflatten_parts
from learners.supervised.agreement import PairAgreement
from learners.supervised.config import DPOConfig
from learners.supervised.dpo import DPOTask
from learners.supervised.language import LanguageModelTask
from learners.supervised.ranking import RankingTask, RewardModelTask
from learners.supervised.task import Schedule, SupervisedTask
from learners.task import Task, TaskContext

TaskT = TypeVar("TaskT", bound=Task)


class LearnerActor:
    """One rank. Each `start_*` builds a task from files and replaces the one before; the rest are
    calls on it."""

    def __init__(
        self,
        rank: int,
        config: LearnerConfig,
        model: ModelConfig,
        device: Literal["cpu", "cuda"] | None = None,
    ) -> None:
        """`device` None: cuda if the section asks for GPUs. Raises UserError if it is cuda and this process
        sees no GPU."""
        device = device or device_of(config.gpus)
        require_device(device)
        self.rank, self.config, self.model, self.device = rank, config, model, device
        self.task: Task | None = None
        self._rendezvous: Rendezvous | None = None
        self._sender = WeightSender(rank)

    def host(self) -> str:
        """The address of this rank's host. Answered once the actor is up."""
        return host_address()

    def open_rendezvous(self) -> tuple[str, int]:
        """Rank 0: listens for the others from now on. Returns address and port for all ranks to
        `join` at."""
        # One rank meets nobody, so no other host needs to reach it.
        address = host_address() if self.config.ranks > 1 else "127.0.0.1"
        self._rendezvous = Rendezvous.open(address)
        return self._rendezvous.address, self._rendezvous.port

    def join(self, address: str, port: int) -> int:
        """Joins the process group of all ranks; returns the process id."""
        rendezvous = self._rendezvous or Rendezvous(address, port)
        config = self.config
        join_process_group(
            self.rank,
            config.ranks,
            rendezvous,
            config.threads,
            device=self.device,
            sequence_parallel=config.sequence_parallel,
        )
        return os.getpid()

    # Starting a task. Each start returns the number of steps that it will take.

    def start_pretrain(self, config: PretrainConfig, folder: Path, seed: int) -> int:
        """Next-token training on the corpus in `folder`, of a new model or of `model.path`."""
        context = self._new_context(TrainingInputPaths(folder).tokenizer, seed)
        if self.model.path:
            module = self._loader.policy(self.model.path, self.config.dtype, seed)
        else:
            module = self._loader.new_policy(context.tokenizer, seed)
        data = TokenData.load(TrainingInputPaths(folder).corpus_tokens)
        batch_size = max(1, config.batch_tokens // config.sequence_length)
        schedule = Schedule(batch_size, steps=config.steps)
        return self._start(LanguageModelTask(module, data, config.optimizer, schedule, context))

    def start_sft(self, policy: Path, config: SFTConfig, folder: Path, seed: int) -> int:
        """Supervised fine-tuning of `policy` on the demonstrations in `folder`."""
        context = self._new_context(policy, seed)
        data = TokenData.load(TrainingInputPaths(folder).demonstration_tokens)
        module = self._loader.policy(policy, self.config.dtype, seed)
        schedule = Schedule(config.batch_size, config.epochs)
        return self._start(LanguageModelTask(module, data, config.optimizer, schedule, context))

    def start_reward_model(self, policy: Path, config: RewardModelConfig, folder: Path, seed: int) -> int:
        """Training of a reward model on the rankings in `folder`, from `reward_model.path` or
        from `policy`."""
        tokenizer = reward_tokenizer(config.path, policy, self.model, config.chat_template)
        context = self._new_context(tokenizer, seed)
        data = RankingData.load(TrainingInputPaths(folder).ranking_tokens)
        module = self._loader.scalar(config.path, policy, self.config.dtype, seed)
        return self._start(RewardModelTask(module, data, config, context))

    def start_dpo(self, policy: Path, config: DPOConfig, folder: Path, seed: int) -> int:
        """Direct preference optimization of `policy` on the rankings in `folder`; then the reference is
        measured or loaded."""
        context = self._new_context(policy, seed)
        data = RankingData.load(TrainingInputPaths(folder).ranking_tokens)
        module = self._loader.policy(policy, self.config.dtype, seed)
        return self._start(DPOTask(module, data, config, context))

    def start_ppo(
        self, policy: Path, reward_model: Path | None, config: PPOConfig, corpus: Path | None, seed: int
    ) -> int:
        """PPO from the SFT policy. The critic, if the advantage needs one, starts as a copy of
        the reward model (Ouyang et al. 2022, C.4) or, without one, of the policy with a new
        head."""
        context = self._new_context(policy, seed)
        policy_module = self._loader.policy(policy, config.dtype, seed)
        critic, corpus_data = None, None
        if config.advantage_spec.critic:
            critic = self._loader.scalar(reward_model, policy, config.dtype, seed)
        if corpus is not None:
            corpus_data = TokenData.load(corpus)
        self.task = PPOTask(policy_module, critic, config, corpus_data, context)
        return config.iterations

    # Supervised tasks.

    def train(self, count: int) -> list[dict[str, float]]:
        """Up to `count` steps; the metrics of each."""
        return self._supervised().train(count)

    def validate(self) -> dict[str, float]:
        return self._supervised().validate()

    def pair_agreement(self) -> PairAgreement:
        return self._task(RankingTask).pair_agreement()  # type: ignore[type-abstract]

    def measure_reference(self, file: Path) -> None:
        """Writes the log-probabilities of all ranked responses under the policy as it is now."""
        self._task(DPOTask).measure_reference(file)

    def load_reference(self, file: Path) -> None:
        self._task(DPOTask).load_reference(file)

    def center_rewards(self, demonstrations: Path) -> float:
        """Shifts the reward model so that the demonstrations of a file score 0 on average;
        returns the shift."""
        return self._task(RewardModelTask).center_rewards(TokenData.load(demonstrations))

    # PPO.

    def ppo_update(
        self, version: int, kl_coef: float, *flat_parts: Any
    ) -> tuple[dict[str, float], float, str]:
        """One PPO iteration on a batch, as `learners.rl.scored_parts.flatten_parts` gives it.
        `version` is that of the weights before the update. Returns (metrics, seconds, digest of
        the sampled tokens and scores)."""
        started = time.perf_counter()
        parts = unflatten_parts(flat_parts)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.samples.tokens_N.tobytes())
            digest.update(part.samples.logprobs_N.tobytes())
            digest.update(part.scores_B.tobytes())
            if part.samples.episodes is not None:
                digest.update(part.samples.episodes.rewards_N.tobytes())
        metrics = self._task(PPOTask).ppo_update(version, kl_coef, parts)
        return metrics, time.perf_counter() - started, digest.hexdigest()

    def count_groups_with_signal(self, *flat_parts: Any) -> int:
        """How many prompts have responses whose scores differ
        (`learners.objectives.groups_with_signal`)."""
        parts = unflatten_parts(flat_parts)
        prompt_ids_B = torch.from_numpy(np.concatenate([part.samples.prompt_ids_B for part in parts]))
        scores_B = torch.from_numpy(np.concatenate([part.scores_B for part in parts]))
        return len(prompt_ids_B[groups_with_signal(scores_B, prompt_ids_B)].unique())

    def pretrain_loss(self) -> float:
        return self._task(PPOTask).pretrain_loss()

    def probe_logprobs(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._task(PPOTask).probe_logprobs(sequences)

    # Any task.

    def send_bucket(self, transport: WeightTransport, version: int, number: int) -> Sent:
        """Hands one bucket of the model's weights to a transport, from number 0 to the last; every rank
        calls, since reading weights of ZeRO-3 is a collective. Returns what `WeightTransport.send` does,
        or nothing on ranks that do not send."""
        return self._sender.send_bucket(self._task(Task).engine, transport, version, number)

    def free_buffers(self) -> None:
        self._sender.free_buffers()

    def open_links(self, engines: dict[str, int], timeout_s: float) -> dict[str, tuple[str, int]]:
        """Rank 0: opens a rendezvous for each engine (name -> number of its workers) in place of the link
        that it had; returns where its workers are to connect."""
        return self._sender.open_links(self._task(Task).engine, engines, timeout_s)

    def accept_links(self, engines: Sequence[str]) -> dict[str, str]:
        """Rank 0: returns when the engines' workers have connected. The names of engines that have not in
        time, with the reason."""
        return self._sender.accept_links(engines)

    def broadcast_weights(
        self, engines: Sequence[str], max_bytes: int, adapters_only: bool = False
    ) -> dict[str, str]:
        """Sends all buckets over the links to these engines, at the same time as they receive them; every
        rank calls. Links to other engines, which have left, are given up. Returns the names of the engines
        whose links broke, with the reason: the others have got everything."""
        return self._sender.broadcast(self._task(Task).engine, engines, max_bytes, adapters_only)

    def offload(self, what: What) -> None:
        """Frees device memory for the other phases of an iteration (`learners.memory`): `states`, which
        a sync of the weights does without, or `all`. Without a task there is nothing to move."""
        if self.task is not None:
            self.task.offload(what)

    def reload(self, what: What) -> None:
        """Brings back what `offload` moved, to the last bit: `weights`, `states` or `all`."""
        if self.task is not None:
            self.task.reload(what)

    def memory(self) -> dict[str, int]:
        """Bytes that the task holds on its device, by part (`learners.task.Task.memory`); empty without
        a task."""
        return self.task.memory() if self.task is not None else {}

    def save(self, folder: Path, tag: str) -> dict[str, int]:
        """Bytes of each file of the folder, as this rank sees them."""
        self._task(Task).save(folder, tag)
        return file_sizes(folder)

    def load(self, folder: Path, tag: str) -> int:
        return self._task(Task).load(folder, tag)

    def export(self, folder: Path, use_ema: bool = False) -> None:
        self._task(Task).export(folder, use_ema)

    def flops_per_token(self) -> tuple[float, float | None]:
        """(FLOPs to train the current task's models on one token, peak FLOP/s of this rank's
        device if known).

        Six FLOPs for each parameter, forward and backward, without attention over the context
        (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
        """
        parameters = sum(engine.num_parameters for engine in self._task(Task).engines.values())
        return 6.0 * parameters, peak_flops()

    def close(self) -> None:
        """Frees the current task's engines; the process and its group stay for the next task."""
        self._sender.give_up()
        if self.task is not None:
            self.task.close()
        self.task = None

    def _task(self, kind: type[TaskT]) -> TaskT:
        """The current task. Raises RuntimeError if it is not of the kind that the call is for."""
        if not isinstance(self.task, kind):
            raise RuntimeError(f"this call needs a {kind.__name__}, the current task is {self.task!r}")
        return self.task

    def _supervised(self) -> SupervisedTask:
        return self._task(SupervisedTask)  # type: ignore[type-abstract]

    def _new_context(self, tokenizer: Path | str | PreTrainedTokenizerBase, seed: int) -> TaskContext:
        """Closes the current task and prepares for the next."""
        self.close()
        part = self.rank // self.config.sequence_parallel
        if isinstance(tokenizer, (Path, str)):
            tokenizer = load_tokenizer(tokenizer, self.model)
        return TaskContext(part, self.config, tokenizer, seed)

    def _start(self, task: SupervisedTask) -> int:
        self.task = task
        return task.total_steps

    @property
    def _loader(self) -> ModuleLoader:
        return ModuleLoader(self.config, self.model)
