"""The PPO task of a learner rank: one call to `train` turns a scored batch of responses into one policy version.

    samples, scores, reference logprobs      (from rollout and scoring actors, the whole batch on every rank)
        -> old logprobs, entropy, values     each rank runs its share of the sequences; summed into whole tensors
        -> rewards, advantages, returns      the same arithmetic on every rank, over the whole batch
        -> epochs x minibatches              one permutation for all ranks; each runs its share; ZeRO adds gradients

Only forwards and backwards are sharded. So whitening sees the whole batch, minibatches are the same for any number
of ranks, and a metric is a metric of the batch. The critic is there only if the advantage needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learners.config import LearnerConfig
from learners.data.batching import PackedBatch, pack, plan_micro_batches
from learners.data.datasets import TokenData
from learners.data.samples import Samples
from learners.deepspeed_engine import EMA, DeepSpeedEngine
from learners.distributed import summed_over_ranks
from learners.models import PolicyModule, ScalarModule, check_packing_isolation
from learners.rl import advantages, losses
from learners.rl.config import PPOConfig
from learners.rl.experience import Experience

HELD_SEQUENCES = 64  # of the pretraining corpus at most, to measure its loss on; they take no part in the mix


class PPOTask:
    """Policy and, if there is one, critic of one rank."""

    def __init__(
        self,
        policy: PolicyModule,
        critic: ScalarModule | None,
        config: PPOConfig,
        learner: LearnerConfig,
        corpus: TokenData | None,
        seed: int,
        pad_token: int,
    ) -> None:
        self.config, self.learner, self.seed, self.pad_token, self.corpus = (
            config,
            learner,
            seed,
            pad_token,
            corpus,
        )
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        if learner.packing:
            check_packing_isolation(policy.model)
        steps = config.iterations * config.epochs * config.minibatches
        self.policy = DeepSpeedEngine(policy, learner, config.optimizer, config.dtype, steps)
        self.critic = (
            DeepSpeedEngine(critic, learner, config.critic_optimizer, config.dtype, steps) if critic else None
        )
        self.average = EMA(self.policy, config.ema) if config.ema else None

    @property
    def engines(self) -> list[DeepSpeedEngine]:
        return [self.policy, self.critic] if self.critic else [self.policy]

    def train(self, iteration: int, kl_coef: float, parts: int, *batch: object) -> dict[str, float]:
        """One PPO iteration over `parts` Samples followed by as many (scores_B, ref_logprobs_N). Metrics of the batch."""
        experience = Experience.gather(batch, parts, self.config)
        self._evaluate(experience)
        found = experience.shape(self.config, kl_coef, iteration)
        seen_2BT = torch.zeros(2, *experience.on_BT.shape) if self.config.proximal == "log_linear" else None
        found |= self._update(iteration, kl_coef, experience, seen_2BT)
        if seen_2BT is not None:
            experience.old_BT, experience.entropy_BT = self._whole(seen_2BT)
            found |= {**experience.mismatch(), "objective/entropy": experience.entropy()}
        return found

    def _evaluate(self, experience: Experience) -> None:
        """Fills in logprobs, entropy and values, float32, before any update. The value of a response token is the critic's
        output on reading the token before it, the state in which it was chosen; with `bootstrap_truncated`, its output on reading the
        last token is the value after the response. With a log-linear proximal policy the first two come out of the first epoch
        instead."""
        asked = self.config.proximal != "log_linear"
        if not (asked or self.critic):
            return
        found_3BT, after_B = torch.zeros(3, *experience.on_BT.shape), torch.zeros(experience.samples.size)
        with torch.no_grad():
            for micro, rows in self._micros(experience.samples, range(experience.samples.size)):
                found = dict(enumerate(self._logprobs(rows, with_entropy=True) if asked else ()))
                if self.critic:
                    scalars_RT, before_RT = (
                        self.critic(rows.tokens_RT, rows.positions_RT).float().cpu(),
                        before(rows),
                    )
                    found[2], after_B[micro] = (
                        scalars_RT[before_RT],
                        scalars_RT[rows.target_mask_RT & ~before_RT],
                    )
                for place, values_N in found.items():
                    found_3BT[place, micro] = experience.spread(
                        values_N.float().cpu(), experience.on_BT[micro]
                    )
        experience.old_BT, experience.entropy_BT, experience.values_BT = self._whole(found_3BT)
        if self.config.bootstrap_truncated:
            experience.after_B = self._whole(after_B)

    def _whole(self, shares: Tensor) -> Tensor:
        """The sum over all ranks."""
        on_device = shares.to(self.policy.device)
        dist.all_reduce(on_device)
        return on_device.cpu()

    def _update(
        self, iteration: int, kl_coef: float, experience: Experience, seen_2BT: Tensor | None = None
    ) -> dict[str, float]:
        """Every epoch and minibatch: policy step, critic step. Returns means over tokens (and the last lr). `seen_2BT` is given
        this rank's log-probabilities and entropies of the first epoch."""
        samples, sums, first_error, response_tokens = experience.samples, Sums(), 0.0, 0.0
        minibatches = min(self.config.minibatches, samples.size)
        for epoch in range(self.config.epochs):
            order = np.random.default_rng([self.seed, iteration, epoch]).permutation(samples.size)
            for m, minibatch in enumerate(np.array_split(order, minibatches)):
                micros = self._micros(samples, minibatch.tolist())
                tokens = float(experience.mask_BT[minibatch].sum())
                ptx = self._ptx_micros(iteration, epoch * minibatches + m)
                seen = seen_2BT if epoch == 0 else None
                error, lr = self._policy_step(experience, micros, minibatch, kl_coef, ptx, sums, seen)
                if epoch == m == 0:
                    first_error = error
                if self.critic:
                    self._critic_step(experience, micros, tokens, sums)
                response_tokens += tokens
        means = sums.means(response_tokens)
        first = torch.tensor(first_error, device=self.policy.device)
        dist.all_reduce(first, op=dist.ReduceOp.MAX)
        ratio, used = means.pop("val/ratio"), means.pop("padded") * response_tokens
        return {
            "val/ratio": ratio,
            "val/ratio_var": max(0.0, means.pop("val/ratio_square") - ratio**2),
            **({"val/error": means.pop("val/square_error") ** 0.5} if self.critic else {}),
            "val/first_ratio_error": float(first),
            "batch/padding": 1 - self.config.epochs * float(samples.offsets[-1]) / used,
            "lr": lr,
            **means,
        }

    def _policy_step(
        self,
        experience: Experience,
        micros: list[tuple[list[int], PackedBatch]],
        minibatch: np.ndarray,
        kl_coef: float,
        ptx: list[tuple[PackedBatch, float]],
        sums: Sums,
        seen_2BT: Tensor | None,
    ) -> tuple[float, float]:
        """One optimizer step of the policy: (largest error of a ratio that should be 1 in the first step, lr)."""
        config, device, error = self.config, self.policy.device, 0.0
        mask_BT = experience.mask_BT[minibatch]
        size = losses.aggregation_size(mask_BT, config.aggregation, config.max_response_tokens)
        tokens = float(mask_BT.sum())
        for i, (micro, rows) in enumerate(micros):
            on_BT, mask_BT = experience.on_BT[micro].to(device), experience.mask_BT[micro].to(device)
            found = self._logprobs(rows, with_entropy=seen_2BT is not None)
            logprobs_BT = experience.spread(found[0], on_BT)
            if seen_2BT is not None:
                for place, values_N in enumerate(found):
                    seen_2BT[place, micro] = experience.spread(values_N.detach().float(), on_BT).cpu()
            old_BT, weights_BT = experience.proximal(logprobs_BT, micro, config)
            loss, metrics = losses.policy_loss(
                logprobs_BT,
                old_BT,
                experience.advantages_BT[micro].to(device),
                mask_BT,
                config.clip_low,
                config.clip_high,
                config.dual_clip,
                weights_BT,
                config.aggregation,
                config.ratio,
                size,
            )
            if micro:
                before_BT = experience.old_BT[micro].to(device)
                error = max(error, float((logprobs_BT.detach() - before_BT).exp().sub(1).abs().max()))
            sums.add({"loss/policy_avg": loss * tokens, "padded": rows.tokens_RT.numel()})
            sums.add({_NAMES[name]: value for name, value in metrics.items()})
            if config.kl_in == "loss":
                kl_BT = advantages.kl_estimate(
                    logprobs_BT, experience.ref_BT[micro].to(device), config.kl_estimator
                )
                penalty = kl_coef * losses.aggregate(kl_BT, mask_BT, config.aggregation, size)
                sums.add({"loss/kl": penalty * tokens})
                loss = loss + penalty
            self.policy.backward(loss, last=i == len(micros) - 1 and not ptx)
        for i, (rows, count) in enumerate(ptx):
            loss = -self.policy(rows.tokens_RT, rows.target_mask_RT)[0].sum() / count
            self.policy.backward(config.ptx_coef * loss, last=i == len(ptx) - 1)
            sums.add({"loss/ptx": loss * tokens})
        step = self.policy.step()
        sums.add({"grad_norm/policy": step["grad_norm"] * tokens / self.ranks})
        if self.average:
            self.average.update()
        return error, step["lr"]

    def _critic_step(
        self, experience: Experience, micros: list[tuple[list[int], PackedBatch]], tokens: float, sums: Sums
    ) -> None:
        assert self.critic is not None
        for i, (micro, rows) in enumerate(micros):
            on_BT = experience.on_BT[micro].to(self.critic.device)
            old_BT, returns_BT, mask_BT = (
                x[micro].to(on_BT.device)
                for x in (experience.values_BT, experience.returns_BT, experience.mask_BT)
            )
            values_BT = experience.spread(self._values(rows), on_BT)
            loss, metrics = losses.value_loss(
                values_BT, old_BT, returns_BT, mask_BT, self.config.value_clip, denominator=tokens
            )
            self.critic.backward(loss, last=i == len(micros) - 1)
            sums.add({"loss/value_avg": loss * tokens})
            sums.add({"val/clipfrac_avg": metrics["clipfrac"], "val/square_error": metrics["square_error"]})
        sums.add({"grad_norm/critic": self.critic.step()["grad_norm"] * tokens / self.ranks})

    def _micros(self, samples: Samples, indices: Sequence[int]) -> list[tuple[list[int], PackedBatch]]:
        """This rank's micro-batches of the given sequences: which they are, row by row, and the rows, responses marked."""
        budget, packing = self.learner.micro_batch_tokens, self.learner.packing
        micros = []
        for part in plan_micro_batches(samples.lengths_B[list(indices)], self.ranks, budget, packing)[
            self.rank
        ]:
            micro = [indices[i] for i in part]
            response = [np.arange(samples.lengths_B[b]) >= samples.prompt_lengths_B[b] for b in micro]
            rows = pack([samples.sequence(b) for b in micro], response, self.pad_token, packing)
            micros.append(([micro[i] for i in rows.order], rows))
        return micros

    def _logprobs(self, rows: PackedBatch, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of the marked tokens at the sampling temperature."""
        inputs = (rows.tokens_RT, rows.target_mask_RT, rows.positions_RT)
        return self.policy(*inputs, temperature=self.config.temperature, with_entropy=with_entropy)

    def _values(self, rows: PackedBatch) -> Tensor:
        assert self.critic is not None
        return self.critic(rows.tokens_RT, rows.positions_RT)[before(rows).to(self.critic.device)]

    def _ptx_micros(self, iteration: int, step: int) -> list[tuple[PackedBatch, float]]:
        """This rank's micro-batches of pretraining sequences for one step, each with the step's token count."""
        if self.corpus is None or not self.config.ptx_coef:
            return []
        _, learned = self._corpus_split()
        draw = np.random.default_rng([self.seed, iteration, step, 1])
        count = max(1, self.config.ptx_tokens // int(self.corpus.lengths_S[0]))
        return self._corpus_micros(learned[draw.integers(0, len(learned), size=count)])

    def _corpus_split(self) -> tuple[np.ndarray, np.ndarray]:
        """(held, learned) pretraining sequences, in the order of the pretrain stage, which validates on the first."""
        assert self.corpus is not None
        count = len(self.corpus.lengths_S)
        order = np.random.default_rng(self.seed).permutation(count)
        return tuple(np.split(order, [min(HELD_SEQUENCES, count // 4)]))  # type: ignore[return-value]

    def _corpus_micros(self, picked: np.ndarray) -> list[tuple[PackedBatch, float]]:
        assert self.corpus is not None
        lengths = self.corpus.lengths_S[picked]
        micros = []
        for part in plan_micro_batches(lengths, self.ranks, self.learner.micro_batch_tokens)[self.rank]:
            sequences = [self.corpus.sequence(picked[i]) for i in part]
            rows = pack(sequences, [np.arange(len(s)) > 0 for s in sequences], self.pad_token)
            micros.append((rows, float(lengths.sum() - len(lengths))))
        return micros

    def pretrain_loss(self) -> float:
        """Next-token loss on held-out sequences of the pretraining corpus, nats a token: what PTX is to keep down."""
        with torch.no_grad():
            micros = self._corpus_micros(self._corpus_split()[0])
            total = sum(
                -float(self.policy(r.tokens_RT, r.target_mask_RT)[0].sum()) / count for r, count in micros
            )
        return summed_over_ranks([total])[0]

    def probe(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Log-probability of every token but the first of each sequence, float32, at temperature 1."""
        rows = pack(sequences, [np.arange(len(s)) > 0 for s in sequences], self.pad_token)
        with torch.no_grad():
            logprobs_N, _ = self.policy(rows.tokens_RT, rows.target_mask_RT)
        return np.split(logprobs_N.float().cpu().numpy(), np.cumsum([len(s) - 1 for s in sequences])[:-1])

    def save(self, folder: Path, tag: str) -> None:
        for name, engine in zip(("policy", "critic"), self.engines, strict=False):
            engine.save(folder / name, tag)
        if self.average:
            torch.save(self.average.shadow, folder / f"average-{tag}-{self.rank}.pt")

    def load(self, folder: Path, tag: str) -> None:
        for name, engine in zip(("policy", "critic"), self.engines, strict=False):
            engine.load(folder / name, tag)
        if self.average:
            self.average.shadow = torch.load(folder / f"average-{tag}-{self.rank}.pt")


def before(rows: PackedBatch) -> Tensor:
    """bool like `rows.target_mask_RT`: the token before each response token, of the prompt or of the response."""
    return torch.roll(rows.target_mask_RT, -1, dims=1)


class Sums:
    """Adds up quantities of this rank's micro-batches."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def add(self, more: dict[str, Tensor | float]) -> None:
        for name, value in more.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self.found[name] = self.found.get(name, 0.0) + float(value)

    def means(self, count: float) -> dict[str, float]:
        """Over all ranks, divided by `count`; every rank must have added the same names."""
        names = sorted(self.found)
        totals = summed_over_ranks([self.found[n] for n in names])
        return {name: total / count for name, total in zip(names, totals, strict=True)}


_NAMES = {
    "approxkl": "policy/approxkl_avg",
    "clipfrac": "policy/clipfrac_avg",
    "ratio": "val/ratio",
    "ratio_square": "val/ratio_square",
}
