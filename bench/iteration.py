"""Where one PPO iteration's time goes, and how far the system is from bare engines doing the same work.

    python -m bench.iteration runs/quickstart [rounds]

AdvantageSpec a run whose reward stage is done. Prints median and spread over rounds, after one that is not counted, of
- generation, scoring, learning, weight sync and overhead, in seconds;
- generation against bare vLLM: the same requests given to the same engine by `LLM.generate`, nothing else;
- learning against bare torch: the same tokens, passes and minibatches in a plain loop of one process with as many
  threads as all ranks together, transformers' own forward, AdamW, no DeepSpeed.
Both baselines alternate with what they are compared to, in the same process or on the same idle cores.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.rollout import RolloutActor
from cluster.config_loader import load_config
from cluster.context import Context
from cluster.fleets.manager import FleetManager
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.rl.prompt_stream import prompts_of, sample_seeds
from cluster.rl.reward_aggregator import RewardAggregator
from cluster.run.directory import RunDirectory
from learners.data.batching import pad
from learners.data.samples import Samples
from learners.data.tokenizer import end_token
from learners.models import load_policy, load_scalar, load_tokenizer


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
        outputs = self.llm.generate(inputs, settings, use_tqdm=False)
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


def measure(root: Path, rounds: int) -> dict[str, list[float]]:
    config = load_config(root / "config.yaml", [f"run_dir={root}"])
    ppo, run = config.ppo, RunDirectory(config)
    policy, reward = run.model("sft"), run.model("reward")
    tokenizer = load_tokenizer(policy)
    fleets = FleetManager(config, root)
    fleets.start()
    found: dict[str, list[float]] = {}
    try:
        context = Context(config, run, fleets)
        rows, tokens = context.prompts("prompts", tokenizer, ppo.max_response_tokens)
        settings = config.rollout.model_copy(
            update={"dtype": ppo.dtype, "max_model_len": config.model.context}
        )
        arguments = {"name": "rollout-0", "model_path": str(policy), "config": settings}
        rollouts = RolloutFleet("rollout", "bench.iteration:BenchRollout", [arguments], {"num_cpus": 0}, fleets.paths.logs)
        learners = fleets.learners()
        rewards = RewardAggregator(config.rewards, fleets.scorers(policy, reward), root)
        learners.all("start_ppo", policy, reward, ppo, None, config.seed)
        bare = BareTorch(policy, reward, config.learners.ranks * config.learners.threads)
        decoding, end = context.decoding("ppo", ppo.temperature), end_token(tokenizer)
        for i in range(rounds + 1):
            chosen = prompts_of(i, len(rows), ppo.prompts, config.seed)
            prompts, seeds = (
                [tokens[j] for j in chosen],
                sample_seeds(config.seed, i, ppo.prompts * ppo.responses),
            )
            requests = (prompts, ppo.responses, ppo.max_response_tokens, end, seeds)
            plain_rate = ray.get(rollouts.submit(0, "bare", *requests)) if i % 2 else 0.0
            marks = [time.perf_counter()]
            refs = rollouts.generate(prompts, chosen.tolist(), decoding, end, ppo.responses, seeds)
            ray.wait(refs, num_returns=len(refs), fetch_local=False)
            marks.append(time.perf_counter())
            batch, _ = rewards.score(refs, {j: rows[j] for j in chosen.tolist()}, ppo.temperature, i)
            marks.append(time.perf_counter())
            (metrics, learning, _), *_ = learners.all("iterate", i, ppo.kl_coef, *batch)
            marks.append(time.perf_counter())
            payload = learners.all("send_weights", fleets.transport, i + 1)[0]
            rollouts.all("update_weights", payload, i + 1)
            marks.append(time.perf_counter())
            # Bare vLLM goes first in one round and last in the next; then the weights are one small step further.
            plain_rate = plain_rate or ray.get(rollouts.submit(0, "bare", *requests))
            samples = Samples.concat(ray.get(refs))
            seconds = np.diff(marks)
            our_rate = float(samples.response_lengths_B.sum()) / seconds[0]
            torch_rate = bare.iterate(samples, ppo.epochs, ppo.minibatches)
            row = {
                "generation, s": seconds[0],
                "scoring, s": seconds[1],
                "learning, s": learning,
                "weight sync, s": seconds[3],
                "overhead, s": seconds[2] - learning,
                "generation, tokens/s": our_rate,
                "  bare vLLM": plain_rate,
                "  ratio": our_rate / plain_rate,
                "learning, tokens/s": ppo.epochs * metrics["tokens"] / seconds[2],
                "  bare torch": torch_rate,
                "  ratio ": ppo.epochs * metrics["tokens"] / seconds[2] / torch_rate,
            }
            if i:
                for name, value in row.items():
                    found.setdefault(name, []).append(float(value))
        rollouts.stop()
    finally:
        fleets.close()
    return found


if __name__ == "__main__":
    results = measure(Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 8)
    for name, values in results.items():
        print(f"{name:24} {statistics.median(values):10.3f}   {min(values):.3f} to {max(values):.3f}")
