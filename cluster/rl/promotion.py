"""Promotion while PPO trains: every `ppo.promote_every` iterations the endpoint gets the policy."""

from __future__ import annotations

import logging
import time

import httpx

from cluster.context import Context
from common.errors import HeroError
from learners.rl.config import PPOConfig
from serve import promotion


def promotion_is_due(config: PPOConfig, step: int) -> bool:
    return config.promote_every > 0 and step % config.promote_every == 0


def promote_from_training(context: Context, step: int) -> dict[str, float]:
    """Exports the policy of an iteration, stores it as a version and promotes it at the endpoint
    that serves this run. Does nothing in the iterations between. Returns metrics.

    Training goes on if the endpoint refuses the version or cannot be reached; a warning says why.
    """
    if not promotion_is_due(context.config.ppo, step):
        return {}
    started = time.perf_counter()
    # With the moving average, as the model that the stage ends with.
    folder = context.run.paths.ppo_export
    context.fleets.learners().export(folder, use_ema=True)
    version = context.run.store_version("ppo", step, folder)
    reason = f"every {context.config.ppo.promote_every} iterations"
    try:
        row = promotion.promote(context.run.root, version, reason, who="hero run")
        outcome = row["outcome"]
        if "reason" in row:
            outcome += f": {row['reason']}"
    except (HeroError, httpx.HTTPError) as error:
        outcome = str(error)
    if outcome != "promoted":
        logging.warning("%s is not served: %s", version, outcome)
    seconds = time.perf_counter() - started
    return {"serve/promoted": float(outcome == "promoted"), "time/promotion": seconds}
