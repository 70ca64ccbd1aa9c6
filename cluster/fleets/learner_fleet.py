"""The calls that stages make on the learner ranks, with their types; `actors.learner.LearnerActor`
describes each.

Most of them are collectives: they go to every rank in the same order, and the value of rank 0
stands for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.weights.ipc import merge_handles
from actors.weights.payload import WeightPayload
from actors.weights.transport import WeightTransport
from cluster.fleets.fleet import Fleet
from learners.config import PretrainConfig, RewardModelConfig, SFTConfig
from learners.rl.config import PPOConfig
from learners.rl.scored_parts import ScoredPart, flatten_parts
from learners.supervised.config import DPOConfig

if TYPE_CHECKING:  # modules that import torch or DeepSpeed, which the driver does not need
    from learners.memory import What
    from learners.supervised.ranking import PairAgreement


def flop_utilization(
    tokens_per_second: float, flops: tuple[float, float | None], ranks: int
) -> dict[str, float]:
    """Model FLOP utilization (perf/mfu): FLOP/s that the model's training needs, as a share of
    the peak of all ranks. `flops` is (FLOPs per token, peak FLOP/s of a rank)."""
    flops_per_token, peak = flops
    # No figure is better than a share of a guess: on CPU there is no published peak.
    if not peak:
        return {}
    return {"perf/mfu": tokens_per_second * flops_per_token / (peak * ranks)}


class LearnerFleet(Fleet):
    """DeepSpeed ranks that have joined one process group. They hold one task at a time; each
    `start_*` replaces it and returns the number of its optimizer steps."""

    needs_run_directory = True

    def join(self) -> None:
        """Has all ranks join one process group at an address of rank 0, which listens from the first call
        on."""
        # Their hosts may have been started at different times; `join` waits only for those that are up.
        self.all("host")
        address, port = self._only_rank_0("open_rendezvous")
        self.all("join", address, port)

    def start_pretrain(self, config: PretrainConfig, folder: Path, seed: int) -> int:
        return self._rank_0("start_pretrain", config, folder, seed)

    def start_sft(self, policy: Path, config: SFTConfig, folder: Path, seed: int) -> int:
        return self._rank_0("start_sft", policy, config, folder, seed)

    def start_reward_model(self, policy: Path, config: RewardModelConfig, folder: Path, seed: int) -> int:
        return self._rank_0("start_reward_model", policy, config, folder, seed)

    def start_dpo(self, policy: Path, config: DPOConfig, folder: Path, seed: int) -> int:
        return self._rank_0("start_dpo", policy, config, folder, seed)

    def measure_reference(self, file: Path) -> None:
        """Has the ranks compute the log-probabilities of all ranked responses under the policy as it is
        now, and rank 0 write them to a file."""
        self.all("measure_reference", file)

    def load_reference(self, file: Path) -> None:
        """Takes the log-probabilities that were written at an earlier start."""
        self.all("load_reference", file)

    def submit_start_ppo(
        self, policy: Path, reward_model: Path | None, config: PPOConfig, corpus: Path | None, seed: int
    ) -> list[ray.ObjectRef]:
        """Does not wait, so that the other fleets start meanwhile. One reference for each rank, for
        `wait`."""
        return self.submit_all("start_ppo", policy, reward_model, config, corpus, seed)

    def train(self, count: int) -> list[dict[str, float]]:
        """Up to `count` supervised steps; the metrics of each."""
        return self._rank_0("train", count)

    def validate(self) -> dict[str, float]:
        return self._rank_0("validate")

    def pair_agreement(self) -> PairAgreement:
        """How the reward model agrees with the rankings of each held-out prompt."""
        return self._rank_0("pair_agreement")

    def center_rewards(self, demonstrations: Path) -> float:
        """Shifts the reward model so that demonstrations score 0 on average; returns the shift."""
        return self._rank_0("center_rewards", demonstrations)

    def submit_ppo_update(
        self, version: int, kl_coef: float, parts: Sequence[ScoredPart]
    ) -> list[ray.ObjectRef]:
        """One PPO iteration. One reference for each rank, of (metrics, seconds, digest of the
        batch)."""
        return self.submit_all("ppo_update", version, kl_coef, *flatten_parts(parts))

    def count_groups_with_signal(self, parts: Sequence[ScoredPart]) -> int:
        """How many prompts have responses whose scores differ."""
        return self._only_rank_0("count_groups_with_signal", *flatten_parts(parts))

    def pretrain_loss(self) -> float:
        """Loss of the policy on held-out sequences of the pretraining corpus."""
        return self._rank_0("pretrain_loss")

    def send_bucket(
        self, transport: WeightTransport, version: int, number: int
    ) -> tuple[WeightPayload, ray.ObjectRef]:
        """Hands a bucket of the policy's weights to a transport; returns what
        `RolloutFleet.submit_update` takes. The reference is of what goes through the object store, of None
        for other transports."""
        payload_refs, data_refs = [], []
        for rank in range(len(self)):
            arguments = (transport, version, number)
            payload_ref, data_ref = self.submit_split(rank, 2, "send_bucket", *arguments)
            payload_refs.append(payload_ref)
            data_refs.append(data_ref)
        payloads = self.wait(payload_refs, "send_bucket")
        if transport.kind == "ipc":
            return merge_handles(payloads), data_refs[0]
        return payloads[0], data_refs[0]

    def free_buffers(self) -> None:
        """Returns the GPU memory that engines mapped, after the last bucket."""
        self.all("free_buffers")

    def open_links(self, engines: dict[str, int], timeout_s: float) -> dict[str, tuple[str, int]]:
        """Opens a rendezvous in rank 0 for each engine (name -> number of its workers); returns where its
        workers are to connect."""
        return self._only_rank_0("open_links", engines, timeout_s)

    def submit_accept_links(self, engines: Sequence[str]) -> list[ray.ObjectRef]:
        """One reference, of the names of the engines that have not connected, with the reason."""
        return [self.submit(0, "accept_links", engines)]

    def submit_broadcast(
        self, engines: Sequence[str], max_bytes: int, adapters_only: bool = False
    ) -> list[ray.ObjectRef]:
        """Sends the policy's weights over the links to these engines. One reference for each rank; rank
        0's is of the names of engines whose links broke, with the reason."""
        return self.submit_all("broadcast_weights", engines, max_bytes, adapters_only)

    def submit_probe_logprobs(self, sequences: Sequence[np.ndarray]) -> list[ray.ObjectRef]:
        """Log-probabilities of every token but the first of each sequence. One reference for each
        rank."""
        return self.submit_all("probe_logprobs", sequences)

    def offload(self, what: What) -> None:
        """Frees device memory for the other phases of an iteration: `states` or `all`."""
        self.all("offload", what)

    def reload(self, what: What) -> None:
        """Brings back what `offload` moved."""
        self.all("reload", what)

    def memory(self) -> list[dict[str, int]]:
        """Bytes that each rank holds on its device, by part."""
        return self.all("memory")

    def save(self, folder: Path, tag: str = "state") -> dict[str, int]:
        """Size of every file that the ranks see in the folder once all have written, by its path there.
        Raises DiskFullError if the disk is full."""
        sizes: dict[str, int] = {}
        for of_rank in self.all("save", folder, tag):
            for name, size in of_rank.items():
                # Whoever wrote a file knows its length; others may see less of it.
                sizes[name] = max(size, sizes.get(name, 0))
        return sizes

    def load(self, folder: Path, tag: str = "state") -> int:
        """Restores a saved state; returns the optimizer steps done."""
        return self._rank_0("load", folder, tag)

    def export(self, folder: Path, use_ema: bool = False) -> None:
        """Writes the model as a Hugging Face folder, completely or not at all."""
        self.all("export", folder, use_ema)

    def flops_per_token(self) -> tuple[float, float | None]:
        """(FLOPs to train the current task's models on one token, peak FLOP/s of a rank's device if
        known)."""
        return self._only_rank_0("flops_per_token")

    def utilization(self, tokens_per_second: float) -> dict[str, float]:
        """`flop_utilization` of the current task."""
        return flop_utilization(tokens_per_second, self.flops_per_token(), len(self))

    def _rank_0(self, method: str, *args: Any) -> Any:
        """Calls every rank; the value of rank 0."""
        return self.all(method, *args)[0]

    def _only_rank_0(self, method: str, *args: Any) -> Any:
        """Calls rank 0 alone: for methods that are no collectives."""
        return self.wait([self.submit(0, method, *args)], method)[0]
