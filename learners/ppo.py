"""The PPO task of a learner rank: one call to `train` turns a scored batch of responses into one policy version.

    samples, scores, reference logprobs      (from rollout and scoring actors, the whole batch on every rank)
        -> old logprobs, entropy, values     each rank runs its share of the sequences; summed into flat arrays
        -> rewards, advantages, returns      the same arithmetic on every rank, over the whole batch
        -> epochs x minibatches              one permutation for all ranks; each runs its share; ZeRO adds gradients

Only forwards and backwards are sharded. So whitening sees the whole batch, minibatches are the same for any number
of ranks, and a metric is a metric of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learners import objectives
from learners.batching import pad, plan_micro_batches
from learners.config import LearnerConfig, PPOConfig
from learners.datasets import TokenData
from learners.engine import Average, Engine
from learners.models import PolicyModule, ScalarModule
from learners.ragged import Samples
from learners.supervised import summed_over_ranks


class PPOTask:
    """Policy and critic of one rank."""

    def __init__(
        self, policy: PolicyModule, critic: ScalarModule, config: PPOConfig, learner: LearnerConfig,
        corpus: TokenData | None, seed: int, pad_token: int,
    ) -> None:  # fmt: skip
        self.config, self.learner, self.seed, self.pad_token, self.corpus = config, learner, seed, pad_token, corpus
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        steps = config.iterations * config.epochs * config.minibatches
        self.policy = Engine(policy, learner, config.optimizer, config.dtype, steps)
        self.critic = Engine(critic, learner, config.critic_optimizer, config.dtype, steps)
        self.average = Average(self.policy, config.ema) if config.ema else None

    def train(self, iteration: int, kl_coef: float, parts: int, *batch: object) -> dict[str, float]:
        """One PPO iteration over `parts` Samples followed by as many (scores_B, ref_logprobs_N). Metrics of the batch."""
        samples = Samples.concat(batch[:parts])  # type: ignore[arg-type]
        scores_B = torch.from_numpy(np.concatenate([scored[0] for scored in batch[parts:]]))  # type: ignore[index]
        ref_N = np.concatenate([scored[1] for scored in batch[parts:]])  # type: ignore[index]
        rows = Rows(samples)
        old_N, entropy_N, values_N = self._evaluate(samples)
        old_BT, ref_BT, values_BT, mask_BT = rows.pad(old_N), rows.pad(ref_N), rows.pad(values_N), rows.mask_BT

        clipped_B = (
            scores_B
            if self.config.score_clip is None
            else scores_B.clamp(-self.config.score_clip, self.config.score_clip)
        )
        given_B = clipped_B - self.config.missing_end_penalty * ~torch.from_numpy(samples.ended_B)
        rewards_BT = objectives.token_rewards(given_B, old_BT, ref_BT, mask_BT, kl_coef, self.config.kl_estimator)
        shaped_BT = (
            objectives.masked_whiten(rewards_BT, mask_BT, shift_mean=False)
            if self.config.whiten_rewards
            else rewards_BT
        )
        advantages_BT, returns_BT = objectives.gae(shaped_BT, values_BT, mask_BT, self.config.gamma, self.config.lam)
        advantages_BT = objectives.masked_whiten(advantages_BT, mask_BT)

        flat = {
            "old": torch.from_numpy(old_N),
            "values": torch.from_numpy(values_N),
            "advantages": rows.flatten(advantages_BT),
            "returns": rows.flatten(returns_BT),
        }
        sums = self._update(iteration, samples, flat)

        kl_B = ((old_BT - ref_BT) * mask_BT).sum(1)
        mismatch_N = np.abs(old_N - samples.logprobs_N)[rows.where]
        returns_mean = objectives.masked_mean(returns_BT, mask_BT)
        variance = objectives.masked_mean((returns_BT - returns_mean) ** 2, mask_BT)
        residual = objectives.masked_mean((returns_BT - values_BT) ** 2, mask_BT)
        return {
            "objective/scores": float(scores_B.mean()),
            "objective/scores_std": float(scores_B.std(correction=0)),
            "objective/kl": float(kl_B.mean()),
            "objective/kl_max": float(kl_B.max()),
            "objective/non_score_reward": float(-kl_coef * kl_B.mean()),
            "objective/rlhf_reward": float((given_B - kl_coef * kl_B).mean()),
            "objective/entropy": float(entropy_N[rows.where].mean()),
            "response/length": float(samples.response_lengths_B.mean()),
            "response/ended": float(samples.ended_B.mean()),
            "val/num_eos_tokens": float(samples.ended_B.sum()),
            "val/var_explained": float(1 - residual / variance.clamp(min=1e-8)),
            "mismatch/mean": float(mismatch_N.mean()),
            "mismatch/max": float(mismatch_N.max()),
            "kl_coef": kl_coef,
            "tokens": float(samples.offsets[-1]),
            **sums,
        }

    def _evaluate(self, samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(logprobs_N, entropy_N, values_N), float32, before any update; zero off the responses. The value of a response
        token is the critic's output on reading the token before it, the state in which it was chosen."""
        found_3N = torch.zeros(3, int(samples.offsets[-1]))
        everything = list(range(samples.size))
        with torch.no_grad():
            for micro in self._plan(samples, everything):
                tokens_BT, chosen_BT, where = self._inputs(samples, micro)
                logprobs_N, entropy_N = self.policy(
                    tokens_BT, chosen_BT, temperature=self.config.temperature, with_entropy=True
                )
                values_N = self._values(tokens_BT, chosen_BT)
                found_3N[:, where] = torch.stack([logprobs_N, entropy_N, values_N]).float().cpu()
        on_device = found_3N.to(self.policy.device)
        dist.all_reduce(on_device)
        old_N, entropy_N, values_N = on_device.cpu().numpy()
        return old_N, entropy_N, values_N

    def _update(self, iteration: int, samples: Samples, flat: dict[str, Tensor]) -> dict[str, float]:
        """Every epoch and minibatch: policy step, critic step. Returns means over tokens (and the last lr)."""
        config = self.config
        sums: dict[str, float] = {}
        padded = response_tokens = 0.0
        first_ratio_error = 0.0
        for epoch in range(config.epochs):
            order = np.random.default_rng([self.seed, iteration, epoch]).permutation(samples.size)
            for m, minibatch in enumerate(np.split(order, config.minibatches)):
                count = float(samples.response_lengths_B[minibatch].sum())
                micros = [(micro, *self._inputs(samples, micro)) for micro in self._plan(samples, minibatch.tolist())]
                ptx = self._ptx_micros(iteration, epoch * config.minibatches + m)
                for i, (_, tokens_BT, chosen_BT, where) in enumerate(micros):
                    logprobs_N, _ = self.policy(tokens_BT, chosen_BT, temperature=config.temperature)
                    loss, metrics = objectives.policy_loss(
                        logprobs_N, flat["old"][where].to(logprobs_N.device), flat["advantages"][where].to(logprobs_N.device),
                        torch.ones_like(logprobs_N), config.clip, config.clip, denominator=count,
                    )  # fmt: skip
                    if epoch == m == 0 and len(where):
                        error = (logprobs_N.detach().cpu() - flat["old"][where]).exp() - 1
                        first_ratio_error = max(first_ratio_error, float(error.abs().max()))
                    self.policy.backward(loss, last=i == len(micros) - 1 and not ptx)
                    padded += tokens_BT.numel()
                    _add(sums, {"loss/policy_avg": float(loss.detach()) * count}, metrics, prefix="policy/")
                for i, (tokens_BT, chosen_BT, weight) in enumerate(ptx):
                    logprobs_N, _ = self.policy(tokens_BT, chosen_BT)
                    loss = -config.ptx_coef * logprobs_N.sum() / weight
                    self.policy.backward(loss, last=i == len(ptx) - 1)
                    _add(sums, {"loss/ptx": float(loss.detach()) / config.ptx_coef * count})
                policy_step = self.policy.step()
                if self.average:
                    self.average.update()
                for i, (_, tokens_BT, chosen_BT, where) in enumerate(micros):
                    values_N = self._values(tokens_BT, chosen_BT)
                    loss, metrics = objectives.value_loss(
                        values_N, flat["values"][where].to(values_N.device), flat["returns"][where].to(values_N.device),
                        torch.ones_like(values_N), config.value_clip, denominator=count,
                    )  # fmt: skip
                    self.critic.backward(loss, last=i == len(micros) - 1)
                    _add(sums, {"loss/value_avg": float(loss.detach()) * count}, metrics, prefix="value/")
                critic_step = self.critic.step()
                response_tokens += count
                _add(sums, {"grad_norm/policy": policy_step["grad_norm"] * count / self.ranks})
                _add(sums, {"grad_norm/critic": critic_step["grad_norm"] * count / self.ranks})
        names = sorted(sums)
        means = dict(
            zip(names, (x / response_tokens for x in summed_over_ranks([sums[n] for n in names])), strict=True)
        )
        used, first = summed_over_ranks([padded])[0], torch.tensor(first_ratio_error)
        dist.all_reduce(first, op=dist.ReduceOp.MAX)
        ratio = means.pop("policy/ratio")
        return {
            "loss/policy_avg": means.pop("loss/policy_avg"),
            "loss/value_avg": means.pop("loss/value_avg"),
            "policy/approxkl_avg": means.pop("policy/approxkl"),
            "policy/clipfrac_avg": means.pop("policy/clipfrac"),
            "val/clipfrac_avg": means.pop("value/clipfrac"),
            "val/error": means.pop("value/square_error") ** 0.5,
            "val/ratio": ratio,
            "val/ratio_var": max(0.0, means.pop("policy/ratio_square") - ratio**2),
            "val/first_ratio_error": float(first),
            "batch/padding": 1 - config.epochs * float(samples.offsets[-1]) / used,
            "lr": policy_step["lr"],
            **means,
        }

    def _plan(self, samples: Samples, indices: Sequence[int]) -> list[list[int]]:
        """This rank's micro-batches of the given sequences."""
        plan = plan_micro_batches(samples.lengths_B[list(indices)], self.ranks, self.learner.micro_batch_tokens)
        return [[indices[i] for i in micro] for micro in plan[self.rank]]

    def _inputs(self, samples: Samples, micro: Sequence[int]) -> tuple[Tensor, Tensor, np.ndarray]:
        """(tokens_BT, chosen_BT, where): padded sequences, their response tokens, and the flat places of those."""
        tokens_BT = pad([samples.sequence(b) for b in micro], self.pad_token)
        position_T = torch.arange(tokens_BT.shape[1])
        index = list(micro)
        start_B = torch.from_numpy(samples.prompt_lengths_B[index].astype(np.int64))
        end_B = torch.from_numpy(samples.lengths_B[index])
        if not index:
            return tokens_BT, torch.zeros_like(tokens_BT, dtype=torch.bool), np.zeros(0, np.int64)
        chosen_BT = (position_T >= start_B[:, None]) & (position_T < end_B[:, None])
        spans = [np.arange(samples.offsets[b] + samples.prompt_lengths_B[b], samples.offsets[b + 1]) for b in micro]
        return tokens_BT, chosen_BT, np.concatenate(spans)

    def _values(self, tokens_BT: Tensor, chosen_BT: Tensor) -> Tensor:
        before_BT = torch.roll(chosen_BT, -1, dims=1).to(self.critic.device)
        return self.critic(tokens_BT)[before_BT]

    def _ptx_micros(self, iteration: int, step: int) -> list[tuple[Tensor, Tensor, float]]:
        """This rank's micro-batches of pretraining sequences for one step, each with the step's token count."""
        if self.corpus is None:
            return []
        length = int(self.corpus.lengths_S[0])
        draw = np.random.default_rng([self.seed, iteration, step, 1])
        picked = draw.integers(0, len(self.corpus.lengths_S), size=max(1, self.config.ptx_tokens // length))
        plan = plan_micro_batches(self.corpus.lengths_S[picked], self.ranks, self.learner.micro_batch_tokens)
        micros = []
        for micro in plan[self.rank]:
            tokens_BT = pad([self.corpus.sequence(picked[i]) for i in micro], self.pad_token)
            chosen_BT = torch.full_like(tokens_BT, bool(micro), dtype=torch.bool)
            chosen_BT[:, 0] = False
            micros.append((tokens_BT, chosen_BT, float(len(picked) * (length - 1))))
        return micros

    def probe(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Log-probability of every token but the first of each sequence, float32, at temperature 1."""
        tokens_BT = pad(sequences, self.pad_token)
        chosen_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            chosen_BT[row, 1 : len(sequence)] = True
        with torch.no_grad():
            logprobs_N, _ = self.policy(tokens_BT, chosen_BT)
        return np.split(logprobs_N.float().cpu().numpy(), np.cumsum([len(s) - 1 for s in sequences])[:-1])

    def save(self, folder: Path, tag: str) -> None:
        self.policy.save(folder / "policy", tag)
        self.critic.save(folder / "critic", tag)
        if self.average:
            torch.save(self.average.shadow, folder / f"average-{tag}-{self.rank}.pt")

    def load(self, folder: Path, tag: str) -> None:
        self.policy.load(folder / "policy", tag)
        self.critic.load(folder / "critic", tag)
        if self.average:
            self.average.shadow = torch.load(folder / f"average-{tag}-{self.rank}.pt")


class Rows:
    """Moves response tokens between flat arrays over N and padded (B, T) tensors of responses alone."""

    def __init__(self, samples: Samples) -> None:
        self.where = np.flatnonzero(samples.response_mask_N)
        self.row = np.repeat(np.arange(samples.size), samples.response_lengths_B)
        self.column = self.where - (samples.offsets[:-1] + samples.prompt_lengths_B)[self.row]
        self.length = int(samples.response_lengths_B.max())
        self.size, self.total = samples.size, int(samples.offsets[-1])
        self.mask_BT = self.pad(np.ones(self.total, dtype=np.float32))

    def pad(self, flat_N: np.ndarray) -> Tensor:
        padded_BT = torch.zeros(self.size, self.length)
        padded_BT[self.row, self.column] = torch.from_numpy(flat_N[self.where])
        return padded_BT

    def flatten(self, padded_BT: Tensor) -> Tensor:
        flat_N = torch.zeros(self.total)
        flat_N[self.where] = padded_BT[self.row, self.column]
        return flat_N


def _add(
    sums: dict[str, float], own: dict[str, float], metrics: dict[str, Tensor] | None = None, prefix: str = ""
) -> None:
    for name, value in [*own.items(), *((prefix + n, float(v)) for n, v in (metrics or {}).items())]:
        sums[name] = sums.get(name, 0.0) + value
