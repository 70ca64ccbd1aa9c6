"""Stage 5: the actor-learner loop.

    prompts -> rollout actors (vLLM) -> scoring actors (reward, reference) -> learners (PPO) -> weights -> rollout actors

The driver moves references: samples go from actor to actor through the object store (`cluster.rl.rollout_scheduler`). Each iteration ends
with new weights in the engines and a proof that they arrived.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.fleets.fleet import utilization
from cluster.rl.alarms import Alarm, Alarms
from cluster.rl.evaluation import best_of_sft, judge_policy
from cluster.rl.promotion import promote_served
from cluster.rl.prompt_stream import prompts_of, sample_seeds
from cluster.rl.reward_aggregator import RewardAggregator
from cluster.rl.rollout_scheduler import PromptGroup, RolloutScheduler
from cluster.rl.weight_sync import verify_sync
from cluster.run.checkpoints import Checkpoints
from cluster.run.monitor import Monitor
from cluster.run.progress import Bar, progress
from common.errors import UserError
from common.files import write_json
from learners.data.tokenizer import end_token
from learners.models import load_tokenizer
from learners.rl.advantages import adapted_kl_coef


def run(context: Context) -> dict[str, Any]:
    config, seed, folder = context.config.ppo, context.config.seed, context.run.stage("ppo")
    policy = context.run.model("sft")
    reward = context.run.model("reward") if context.config.rewards.from_model else None
    tokenizer = load_tokenizer(policy)
    rows, tokens = context.prompts("prompts", tokenizer, config.max_response_tokens)
    held_rows, held_tokens = context.prompts(
        "heldout", tokenizer, context.config.evaluate.max_response_tokens
    )
    corpus = context.run.root / "pretrain" / "tokens.npz"
    if config.ptx_coef and not corpus.exists():
        raise UserError(
            f"ppo.ptx_coef={config.ptx_coef} needs the pretraining corpus, but {corpus} is missing; run pretrain or set it to 0"
        )

    learners = context.fleets.learners()
    starting = [
        learners.submit(i, "start_ppo", policy, reward, config, corpus if corpus.exists() else None, seed)
        for i in range(len(learners))
    ]
    rollouts, scorers = context.fleets.rollouts(policy), context.fleets.scorers(policy, reward)
    learners.get(starting, "start_ppo")
    decoding = context.decoding("ppo", config.temperature)
    end = end_token(tokenizer)
    picked = np.random.default_rng([seed, 2]).permutation(len(held_rows))[: config.evaluate_prompts]
    held = [held_rows[i] for i in picked]
    probe = [np.array(held_tokens[i], dtype=np.int32) for i in picked[:8]]

    def sync(version: int) -> dict[str, float]:
        started = time.perf_counter()
        payload = learners.all("send_weights", context.fleets.transport, version)[0]
        rollouts.all("update_weights", payload, version, version - config.staleness)
        sent = time.perf_counter()
        errors = verify_sync(context, probe, version)
        return {**errors, "time/sync": sent - started, "time/probe": time.perf_counter() - sent}

    @lru_cache(maxsize=config.staleness + 3)
    def round_of(number: int) -> tuple[list[int], list[int]]:
        seeds = sample_seeds(seed, number, config.prompts * config.responses)
        return prompts_of(number, len(rows), config.prompts, seed).tolist(), seeds

    def asked(place: int) -> PromptGroup:
        """The group at this place of the endless row of permutations of all prompts."""
        number, offset = divmod(place, config.prompts)
        chosen, seeds = round_of(number)
        row = chosen[offset]
        return PromptGroup(
            row, rows[row], tokens[row], seeds[offset * config.responses : (offset + 1) * config.responses]
        )

    def sample(step: int) -> tuple[list[Any], list[int], dict[str, float], float]:
        """One iteration's prompts, answered and scored: (batch, prompts, metrics of the rewards, seconds that were waited for
        engines). With dynamic sampling, further rounds until enough prompts have scores that differ."""
        batch, prompts, metrics, waited = flow.take(step)
        for _ in range(config.dynamic_sampling):
            found = learners.submit(0, "groups_with_signal", *batch)
            if learners.get([found], "groups_with_signal")[0] >= config.prompts:
                break
            more, others, metrics, seconds = flow.take(step)
            batch, prompts, waited = batch + more, prompts + others, waited + seconds
        return batch, prompts, metrics, waited

    checkpoints = Checkpoints(folder, config.keep_checkpoints)
    saved = checkpoints.newest() or {"step": 0, "kl_coef": config.kl_coef, "flow": None, "rewards": None}
    first, kl_coef = saved["step"], saved["kl_coef"]
    rewards = RewardAggregator(context.config.rewards, scorers, folder, saved["rewards"])
    wanted = (config.prompts, config.staleness, decoding, end, config.iterations)
    flow = RolloutScheduler(rollouts, rewards, asked, *wanted, saved["flow"])
    if first:
        learners.all("load", checkpoints.path(first), "state")
    evaluated: dict[str, float] = {}
    fleets = {"rollout": rollouts, "scoring": scorers, "learner": learners}
    with context.monitor("ppo") as monitor, progress("ppo", total=config.iterations, done=first) as bar:
        alarms = Alarms(context.config.alarms, monitor.truncate("ppo", first))
        sync(first)
        if first == 0 and config.best_of > 1:
            baseline = best_of_sft(context, held, [held_tokens[i] for i in picked], config.best_of)
            write_json(folder / "best_of_n.json", baseline)
        for iteration in range(first, config.iterations):
            busy = {name: fleet.busy() for name, fleet in fleets.items()}
            started = time.perf_counter()
            step = iteration + 1
            flow.version = flow.due = iteration
            batch, prompts, rated, generation = sample(step)
            judged = time.perf_counter()
            flow.due = step
            refs = [learners.submit(i, "iterate", iteration, kl_coef, *batch) for i in range(len(learners))]
            metrics, learning, digest = flow.until(learners, refs, "iterate")[0]
            learned = time.perf_counter()
            flow.release(context.fleets.wanted("rollout"))
            for told in context.fleets.resize():
                bar.tell(told)
            synced = sync(step)
            seconds = time.perf_counter() - started
            generating = (
                seconds if config.staleness else generation
            )  # engines that run ahead are waited for less than they work
            learned_rate = config.epochs * metrics["tokens"] / (learned - judged)
            made = metrics["objective/responses"]
            metrics |= (
                rated
                | synced
                | {
                    "time/iteration": seconds,
                    "time/generation": generation,
                    "time/scoring": judged - started - generation,
                    "time/learning": learning,
                    "time/overhead": seconds
                    - (judged - started)
                    - learning
                    - synced["time/sync"]
                    - synced["time/probe"],
                    "perf/generated_tokens_per_second": metrics["response/length"] * made / generating,
                    "perf/learned_tokens_per_second": learned_rate,
                    "perf/samples_per_second": made / seconds,
                    **{
                        f"idle/{name}": 1 - worked(busy[name], fleet.busy()) / seconds
                        for name, fleet in fleets.items()
                    },
                    **{f"actors/{name}": float(len(fleet)) for name, fleet in fleets.items()},
                    **utilization(learners, learned_rate),
                }
            )
            if step % config.evaluate_every == 0 or step == config.iterations:
                rates, answers = judge_policy(context, held, [held_tokens[i] for i in picked], 1.0)
                if corpus.exists():
                    rates["pretrain_loss"] = learners.all("pretrain_loss")[0]
                evaluated = {f"eval/{name}": value for name, value in rates.items()}
                metrics |= evaluated
                shown_rows = zip(held[:16], answers[:16], strict=False)
                monitor.samples(step, [{"prompt": row["prompt"], **answer} for row, answer in shown_rows])
            rung = alarms.check({"step": step, **metrics})
            metrics |= {f"alarm/{name}": 1.0 for name in alarms.ringing}
            metrics |= promote_served(context, step)
            stored = step < config.iterations and step % config.checkpoint_every == 0
            if stored:
                started = time.perf_counter()
                checkpoints.save(step, learners)
                metrics["time/checkpoint"] = time.perf_counter() - started
            monitor.batch(step, prompts, digest)
            monitor.log(step, metrics)
            sound(rung, step, context, monitor, bar)
            if config.kl_target is not None:
                kl = metrics["objective/kl"]
                kl_coef = adapted_kl_coef(kl_coef, kl, config.kl_target, config.kl_horizon, int(made))
            shown = (metrics[name] for name in ("objective/scores", "objective/kl", "response/length"))
            bar.advance(1, "reward {:+.2f}  kl {:.2f}  length {:.0f}".format(*shown))
            if stored:
                checkpoints.commit(step, {"kl_coef": kl_coef, "flow": flow.state, "rewards": rewards.state})
            if step % config.publish_every == 0 and step < config.iterations:
                learners.all("export", folder / "newest")
                context.run.promote("ppo", step, folder / "newest")
        learners.all("export", folder / "model", averaged=True)
        consumed = [policy, *([reward] if reward else []), *context.run.data("prompts")]
        monitor.lineage(consumed, [folder / "model"])
    context.run.promote("ppo", config.iterations, folder / "model")
    checkpoints.clear()
    shutil.rmtree(folder / "newest", ignore_errors=True)
    return evaluated


def sound(alarms: Sequence[Alarm], step: int, context: Context, monitor: Monitor, bar: Bar) -> None:
    """Writes alarms where people look; raises UserError for one that is to stop the run."""
    for name, evidence in alarms:
        monitor.alarm(step, name, evidence)
        bar.tell(f"alarm {name}: {evidence}")
    for name, evidence in alarms:
        if name in context.config.alarms.stop:
            raise UserError(f"the run stops at iteration {step}, since alarms.stop has {name}: {evidence}")


def worked(before: Sequence[float], now: Sequence[float]) -> float:
    """Mean seconds that the actors who were there then and are now have spent in calls between."""
    return float(np.mean([b - a for a, b in zip(before, now, strict=False)]))
