"""Where one PPO iteration's time goes, and how far the system is from bare engines doing the same work.

    python -m bench.iteration runs/quickstart [rounds]

Needs a run whose reward stage is done. Prints median and spread over rounds, after one that is
not counted, of
- generation, scoring, learning, weight sync and overhead, in seconds;
- generation against bare vLLM: the same requests to the same engine by `LLM.generate` alone;
- learning against bare torch: the same tokens, passes and minibatches in a plain loop of one
  process with as many threads as all ranks together, transformers' own forward, AdamW, no
  DeepSpeed;
- each phase against the machine: the FLOP/s that its models need, as a share of a float32 matrix
  product's with the learners' threads, measured in the same round.
Both baselines alternate with what they are compared to, in the same process or on the same idle
cores.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.rollout import RolloutActor
from cluster.config_loader import load_config
from cluster.context import Context
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.manager import FleetManager
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.rl.prompt_stream import PromptStream
from cluster.rl.reward_aggregator import RewardAggregator
from cluster.rl.weight_routes import make_route
from cluster.run.directory import RunDirectory
from learners.data.packing import pad
from learners.data.samples import Samples
from learners.data.tokenizer import end_token
from learners.data.tokenizer_loading import load_tokenizer
from learners.models import load_policy, load_scalar


class BenchRollout(RolloutActor):
    def bare(self, prompts: list[list[int]], n: int, max_tokens: int, end: int, seeds: list[int]) -> float:
        """Tokens/s of vLLM alone on these requests."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        inputs = [TokensPrompt(prompt_token_ids=p) for p in prompts for _ in range(n)]
        common: dict[str, Any] = {
            "max_tokens": max_tokens,
            "stop_token_ids": [end],
            "logprobs": 0,
            "detokenize": False,
        }
        settings = [SamplingParams(seed=s, flat_logprobs=True, **common) for s in seeds]
        started = time.perf_counter()
        outputs = self.engine.llm.generate(inputs, settings, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs) / (time.perf_counter() - started)


class BareTorch:
    """Policy and critic in a plain training loop."""

    def __init__(self, policy: Path, reward: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.policy, self.critic = load_policy(policy), load_scalar(reward)
        self.optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-5) for m in (self.policy, self.critic)]

    def iterate(self, samples: Samples, epochs: int, minibatches: int) -> float:
        """Tokens/s, counted as the system counts them: tokens of the batch times epochs."""
        started = time.perf_counter()
        order = np.argsort(samples.lengths_B)
        with torch.no_grad():
            for part in np.split(order, minibatches):
                self._forward(samples, part)
        for _ in range(epochs):
            for part in np.split(np.random.permutation(samples.size), minibatches):
                logprobs_BT, values_BT, mask_BT = self._forward(samples, part)
                ratio_BT = (logprobs_BT - logprobs_BT.detach()).exp()
                losses = [
                    -(ratio_BT * mask_BT).sum() / mask_BT.sum(),
                    ((values_BT - 1) ** 2 * mask_BT).sum() / mask_BT.sum(),
                ]
                for model, loss, optimizer in zip(
                    (self.policy, self.critic), losses, self.optimizers, strict=True
                ):
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
        return epochs * int(samples.offsets[-1]) / (time.perf_counter() - started)

    def _forward(self, samples: Samples, part: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens_BT = pad([samples.sequence(b) for b in part], 0)
        position_T = torch.arange(tokens_BT.shape[1])
        start_B, end_B = (
            torch.from_numpy(np.asarray(x)[part]) for x in (samples.prompt_lengths_B, samples.lengths_B)
        )
        mask_BT = ((position_T >= start_B[:, None]) & (position_T < end_B[:, None]))[:, 1:].float()
        logits_BTV = self.policy(input_ids=tokens_BT).logits[:, :-1]
        logprobs_BT = logits_BTV.log_softmax(-1).gather(2, tokens_BT[:, 1:, None]).squeeze(2)
        hidden_BTD = self.critic.base_model(input_ids=tokens_BT).last_hidden_state[:, :-1]
        return logprobs_BT, self.critic.score(hidden_BTD).squeeze(2), mask_BT


def matrix_flops(seconds: float = 0.5) -> float:
    """FLOP/s of a float32 matrix product of the size that a micro-batch has in the model's layers, with
    the threads that `BareTorch` has set."""
    tokens_ND, weights_DF = torch.randn(4096, 256), torch.randn(256, 768)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        tokens_ND @ weights_DF
        count += 1
    return count * 2 * 4096 * 256 * 768 / (time.perf_counter() - started)


@dataclass
class Bench:
    """The system's components and both baselines, with the models of one run."""

    context: Context
    prompts: PromptStream
    rollouts: RolloutFleet
    learners: LearnerFleet
    rewards: RewardAggregator
    bare_torch: BareTorch
    end_token: int

    def round(self, index: int) -> dict[str, float]:
        """One iteration of the system, and the baselines on the same prompts and seeds."""
        ppo = self.context.config.ppo
        first = index * ppo.prompts
        groups = [self.prompts[i] for i in range(first, first + ppo.prompts)]
        prompts = [group.tokens for group in groups]
        prompt_ids = [group.prompt_id for group in groups]
        seeds = [seed for group in groups for seed in group.seeds]
        decoding = self.context.decoding("ppo", ppo.temperature)
        # Bare vLLM goes first in one round and last in the next; the weights are then one small
        # step further.
        bare_rate = 0.0
        if index % 2:
            bare_rate = self.bare_vllm(prompts, seeds)
        marks = [time.perf_counter()]
        refs = self.rollouts.generate(prompts, prompt_ids, decoding, self.end_token, ppo.responses, seeds)
        # Without fetching: the samples stay in the object store, as in a run.
        ray.wait(refs, num_returns=len(refs), fetch_local=False)
        marks.append(time.perf_counter())
        rows = {i: self.prompts.rows[i] for i in prompt_ids}
        parts, _ = self.rewards.score(refs, rows, ppo.temperature, index)
        marks.append(time.perf_counter())
        update_refs = self.learners.submit_ppo_update(index, ppo.kl_coef, parts)
        metrics, learning_s, _ = self.learners.wait(update_refs, "ppo_update")[0]
        marks.append(time.perf_counter())
        policy = self.context.run.model("sft")
        make_route(self.context.fleets, self.learners, self.rollouts, policy).push(index + 1, 0)
        marks.append(time.perf_counter())
        if not index % 2:
            bare_rate = self.bare_vllm(prompts, seeds)
        samples = Samples.concat(ray.get(refs))
        torch_rate = self.bare_torch.iterate(samples, ppo.epochs, ppo.minibatches)
        generation_s, scoring_s, update_s, sync_s = np.diff(marks).tolist()
        rate = float(samples.response_lengths_B.sum()) / generation_s
        learned_rate = ppo.epochs * metrics["tokens"] / update_s
        # A policy and a scalar model learn, two of their size score, and one generates. Kaplan et al.
        # 2020 (arXiv:2001.08361, section 2.1): a forward pass takes a third of a training step.
        flops = self.learners.flops_per_token()[0] * float(samples.offsets[-1])
        learning_flops = flops * (ppo.epochs + int(ppo.passes_before_update) / 3)
        peak = matrix_flops()
        return {
            "generation, s": generation_s,
            "scoring, s": scoring_s,
            "learning, s": learning_s,
            "weight sync, s": sync_s,
            "overhead, s": update_s - learning_s,
            "generation, tokens/s": rate,
            "  bare vLLM": bare_rate,
            "  ratio": rate / bare_rate,
            "learning, tokens/s": learned_rate,
            "  bare torch": torch_rate,
            "  ratio ": learned_rate / torch_rate,
            "matrix product, GFLOP/s": peak / 1e9,
            "  share in generation": flops / 6 / generation_s / peak,
            "  share in scoring": flops / 3 / scoring_s / peak,
            "  share in learning": learning_flops / learning_s / peak,
        }

    def bare_vllm(self, prompts: list[list[int]], seeds: list[int]) -> float:
        """Tokens/s of the same engine without the system around it."""
        ppo = self.context.config.ppo
        arguments = (prompts, ppo.responses, ppo.max_response_tokens, self.end_token, seeds)
        return ray.get(self.rollouts.submit(0, "bare", *arguments))


def start(context: Context) -> Bench:
    """Starts the fleets of a run, with an engine that can also be measured bare."""
    config, run, fleets = context.config, context.run, context.fleets
    ppo = config.ppo
    policy, reward_model = run.model("sft"), run.model("reward")
    tokenizer = load_tokenizer(policy, config.model)
    rows, tokens = context.prompts("prompts", tokenizer, ppo.max_response_tokens)
    settings = config.rollout.model_copy(update={"max_model_len": config.model.context})
    arguments = {"name": "rollout-0", "model_path": str(policy), "config": settings}
    rollouts = RolloutFleet(
        "rollout", "bench.iteration:BenchRollout", [arguments], {"num_cpus": 0}, run.paths.logs
    )
    # The manager then stops it together with the fleets that it starts itself.
    fleets.adopt(rollouts)
    learners = fleets.learners()
    quarantine = run.root / "quarantine.jsonl"  # the finished PPO stage keeps its own
    rewards = RewardAggregator(config.rewards, fleets.scorers(policy, reward_model), quarantine)
    learners.wait(learners.submit_start_ppo(policy, reward_model, ppo, None, config.seed), "start_ppo")
    return Bench(
        context=context,
        prompts=PromptStream(rows, tokens, ppo, config.seed),
        rollouts=rollouts,
        learners=learners,
        rewards=rewards,
        bare_torch=BareTorch(policy, reward_model, config.learners.ranks * config.learners.threads),
        end_token=end_token(tokenizer),
    )


def measure(root: Path, rounds: int) -> dict[str, list[float]]:
    """By name, the figures of all rounds but the first."""
    config = load_config(root / "config.yaml", [f"run_dir={root}"])
    fleets = FleetManager(config, root)
    figures: dict[str, list[float]] = {}
    try:
        fleets.start()
        bench = start(Context(config, RunDirectory(config), fleets))
        for index in range(rounds + 1):
            for name, value in bench.round(index).items():
                if index:
                    figures.setdefault(name, []).append(float(value))
    finally:
        fleets.close()
    return figures


if __name__ == "__main__":
    results = measure(Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 8)
    for name, values in results.items():
        print(f"{name:24} {statistics.median(values):10.3f}   {min(values):.3f} to {max(values):.3f}")
