"""Stage 5: the actor-learner loop.

    prompts -> rollout actors (vLLM) -> scoring actors (reward, reference) -> learners (PPO) -> weights -> rollout actors

The driver moves references: samples go from actor to actor through the object store. Each iteration ends with new
weights in the engines and a proof that they arrived.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
import ray

from cluster.context import Context
from cluster.fleet import generate, utilization
from cluster.progress import progress
from cluster.promotion import promote_served
from cluster.run import Checkpoints
from cluster.stages.rollouts import judge_policy, prove_sync
from learners.errors import UserError
from learners.models import load_tokenizer
from learners.tokenizer import end_token


def run(context: Context) -> dict[str, Any]:
    config, seed, folder = context.config.ppo, context.config.seed, context.run.stage("ppo")
    policy, reward = context.run.model("sft"), context.run.model("reward")
    tokenizer = load_tokenizer(policy)
    rows, tokens = context.prompts("prompts", tokenizer, config.max_response_tokens)
    held_rows, held_tokens = context.prompts("heldout", tokenizer, context.config.evaluate.max_response_tokens)
    corpus = context.run.root / "pretrain" / "tokens.npz"
    if config.ptx_coef and not corpus.exists():
        raise UserError(
            f"ppo.ptx_coef={config.ptx_coef} needs the pretraining corpus, but {corpus} is missing; run pretrain or set it to 0"
        )

    learners = context.fleets.learners()
    starting = [
        learners.submit(i, "start_ppo", policy, reward, config, corpus if config.ptx_coef else None, seed)
        for i in range(len(learners))
    ]
    rollouts, scorers = context.fleets.rollouts(policy), context.fleets.scorers(policy, reward)
    learners.get(starting, "start_ppo")
    decoding = context.decoding("ppo", config.temperature)
    end = end_token(tokenizer)
    picked = np.random.default_rng([seed, 2]).permutation(len(held_rows))[: config.evaluate_prompts]
    probe = [np.array(held_tokens[i], dtype=np.int32) for i in picked[:8]]

    def sync(version: int) -> dict[str, float]:
        started = time.perf_counter()
        payload = learners.all("send_weights", context.fleets.transport, version)[0]
        rollouts.all("update_weights", payload, version)
        sent = time.perf_counter()
        errors = prove_sync(context, probe, version)
        return {**errors, "time/sync": sent - started, "time/probe": time.perf_counter() - sent}

    checkpoints = Checkpoints(folder, config.keep_checkpoints)
    saved = checkpoints.newest() or {"step": 0, "kl_coef": config.kl_coef}
    first, kl_coef = saved["step"], saved["kl_coef"]
    if first:
        learners.all("load", checkpoints.path(first) / "learner", "state")
    evaluated: dict[str, float] = {}
    fleets = {"rollout": rollouts, "scoring": scorers, "learner": learners}
    with context.monitor("ppo") as monitor, progress("ppo", total=config.iterations, done=first) as bar:
        monitor.truncate("ppo", first)
        sync(first)
        for iteration in range(first, config.iterations):
            busy = {name: fleet.busy() for name, fleet in fleets.items()}
            started = time.perf_counter()
            chosen = prompts_of(iteration, len(rows), config.prompts, seed)
            refs = generate(
                rollouts, [tokens[i] for i in chosen], chosen.tolist(), decoding, end, config.responses,
                sample_seeds(seed, iteration, config.prompts * config.responses),
            )  # fmt: skip
            ray.wait(refs, num_returns=len(refs), fetch_local=False)
            generated = time.perf_counter()
            scored = [scorers.submit(i, "score", ref, config.temperature) for i, ref in enumerate(refs)]
            ray.wait(scored, num_returns=len(scored), fetch_local=False)
            judged = time.perf_counter()
            metrics, learning = learners.all("iterate", iteration, kl_coef, len(refs), *refs, *scored)[0]
            learned = time.perf_counter()
            step = iteration + 1
            synced = sync(step)
            seconds = time.perf_counter() - started
            learned_rate = config.epochs * metrics["tokens"] / (learned - judged)
            made = config.prompts * config.responses
            metrics |= synced | {
                "time/iteration": seconds,
                "time/generation": generated - started,
                "time/scoring": judged - generated,
                "time/learning": learning,
                "time/overhead": seconds - (judged - started) - learning - synced["time/sync"] - synced["time/probe"],
                "perf/generated_tokens_per_second": metrics["response/length"] * made / (generated - started),
                "perf/learned_tokens_per_second": learned_rate,
                "perf/samples_per_second": made / seconds,
                **{f"wait/{name}": seconds - fleet.busy() + busy[name] for name, fleet in fleets.items()},
                **utilization(learners, learned_rate),
            }  # fmt: skip
            if step % config.evaluate_every == 0 or step == config.iterations:
                rates, answers = judge_policy(
                    context, [held_rows[i] for i in picked], [held_tokens[i] for i in picked], "evaluate", 1.0
                )
                evaluated = {f"eval/{name}": value for name, value in rates.items()}
                metrics |= evaluated
                monitor.samples(
                    step,
                    [{"prompt": held_rows[i]["prompt"], **a} for i, a in zip(picked[:16], answers[:16], strict=True)],
                )
            metrics |= promote_served(context, step)
            monitor.log(step, metrics)
            shown = (metrics[name] for name in ("objective/scores", "objective/kl", "response/length"))
            bar.advance(1, "reward {:+.2f}  kl {:.2f}  length {:.0f}".format(*shown))
            if step % config.save_every == 0 and step < config.iterations:
                path = checkpoints.path(step)
                shutil.rmtree(path, ignore_errors=True)
                learners.all("save", path / "learner", "state")
                learners.all("export", path / "model")
                context.run.promote("ppo", step, path / "model")
                checkpoints.commit(step, {"kl_coef": kl_coef})
        learners.all("export", folder / "model", averaged=True)
        monitor.lineage([policy, reward, context.run.data("prompts")], [folder / "model"])
    context.run.promote("ppo", config.iterations, folder / "model")
    checkpoints.clear()
    return evaluated


def prompts_of(iteration: int, available: int, count: int, seed: int) -> np.ndarray:
    """The prompts of one iteration: `count` consecutive ones of an endless row of permutations of all of them."""
    places = np.arange(iteration * count, (iteration + 1) * count)
    epochs = np.unique(places // available)
    orders = {int(e): np.random.default_rng([seed, 3, int(e)]).permutation(available) for e in epochs}
    return np.array([orders[int(p // available)][p % available] for p in places])


def sample_seeds(seed: int, iteration: int, count: int) -> list[int]:
    """One seed for each response of an iteration: it belongs to the sample, whichever engine draws it."""
    return np.random.default_rng([seed, 4, iteration]).integers(0, 2**31, size=count).tolist()
