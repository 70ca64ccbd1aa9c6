"""Live promotion while PPO trains: `ppo.promote_every: N` moves the served policy every N iterations."""

from __future__ import annotations

import logging
import time

import httpx

from cluster.context import Context
from common.errors import UserError
from serve import promotion


def promote_served(context: Context, step: int) -> dict[str, float]:
    """Exports the policy of an iteration and has the endpoint of this run try it and take it. Returns metrics.

    A version that is refused, or an endpoint that goes away meanwhile, is told and logged; training goes on.
    """
    every = context.config.ppo.promote_every
    if not every or step % every:
        return {}
    started = time.perf_counter()
    folder = context.run.stage("ppo") / "served"
    context.fleets.learners().all("export", folder, averaged=True)
    context.run.keep("ppo", step, folder)
    try:
        row = promotion.promote(context.run.root, f"ppo-{step}", f"every {every} iterations", who="hero run")
        outcome = row["outcome"] + (f": {row['reason']}" if "reason" in row else "")
    except (UserError, httpx.HTTPError) as fault:
        outcome = str(fault)
    if outcome != "promoted":
        logging.warning("ppo-%d is not served: %s", step, outcome)
    return {"serve/promoted": float(outcome == "promoted"), "time/promotion": time.perf_counter() - started}
