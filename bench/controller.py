"""What the driver costs: real `RolloutScheduler`, `Rewards`, `Fleet` and Ray actors, with results that cost their actors nothing.

    python -m bench.controller [8 32 128 256]

For each number of rollout actors: samples per second from asking to the learner, the driver's CPU time for each sample and its
share of the wall time, and what went into the object store. A batch is four groups of four responses for each actor; a scoring
actor for every eight. The actors share the machine with the driver, so the rate is a lower bound and the CPU time is the figure
to compare.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from actors.config import Decoding, RewardsConfig
from cluster.fleets.fleet import Fleet
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.fleets.scoring_fleet import ScoringFleet
from cluster.rl.prompt_stream import PromptStream
from cluster.rl.reward_aggregator import RewardAggregator
from cluster.rl.rollout_scheduler import RolloutScheduler
from common.ray_session import start_ray
from learners.rl.config import PPOConfig
from learners.rl.scored_parts import flatten_parts

PROMPT, RESPONSE, GROUPS, RESPONSES = (
    128,
    512,
    4,
    4,
)  # tokens, tokens, groups for each actor and batch, responses to a prompt
BLOCKS, BLOCK = 6, 4096  # of at least so many samples; the first is not counted


def measure(actors: int, staleness: int, folder: Path) -> str:
    here, size = "bench.simulated", actors * GROUPS
    rollouts = RolloutFleet(
        "rollout", f"{here}:Engine", [{"length": RESPONSE}] * actors, {"num_cpus": 0}, folder
    )
    scorers = ScoringFleet("scoring", f"{here}:Scorer", [{}] * max(1, actors // 8), {"num_cpus": 0}, folder)
    learners = Fleet("learner", f"{here}:Learner", [{}], {"num_cpus": 0}, folder)
    driver, prompt = psutil.Process(), list(range(PROMPT))
    rates, costs, shares, stored = [], [], [], []
    try:
        for fleet in (rollouts, scorers, learners):
            fleet.all("ready")
        rewards = RewardAggregator(RewardsConfig(), scorers, folder / "quarantine.jsonl")
        decoding = Decoding(temperature=1.0, max_tokens=RESPONSE)
        batches = -(-BLOCK // (size * RESPONSES))
        config = PPOConfig(
            prompts=size, responses=RESPONSES, staleness=staleness, iterations=BLOCKS * batches
        )
        prompts = PromptStream([{}] * size, [prompt] * size, config, seed=0)
        scheduler = RolloutScheduler(rollouts, rewards, prompts, config, decoding, 0)
        for block in range(BLOCKS):
            before, spent, started = created(), cpu(driver), time.perf_counter()
            for batch in range(block * batches, (block + 1) * batches):
                parts = scheduler.next_batch(version=batch).parts
                refs = [learners.submit(0, "iterate", *flatten_parts(parts))]
                tokens = scheduler.wait_while_rolling(learners, refs, "iterate")[0]
                if tokens != size * RESPONSES * (PROMPT + RESPONSE):
                    raise AssertionError(f"{tokens} tokens came")
                del parts, refs
            wall, samples = time.perf_counter() - started, batches * size * RESPONSES
            if block:
                rates.append(samples / wall)
                costs.append(1000 * (cpu(driver) - spent) / samples)
                shares.append((cpu(driver) - spent) / wall)
                stored.append((created() - before) / samples / 1024)
    finally:
        for fleet in (rollouts, scorers, learners):
            fleet.stop()
    cells = (spread(rates, ",.0f"), spread(costs, ".2f"), spread(shares, ".0%"), spread(stored, ".1f"))
    return f"| {actors} | {staleness} | {size * RESPONSES:,} | " + " | ".join(cells) + " |"


def cpu(process: psutil.Process) -> float:
    """Seconds of CPU time, all threads."""
    times = process.cpu_times()
    return times.user + times.system


def created() -> int:
    """Bytes that have gone into the object store so far."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.cumulative_created_bytes)


def spread(found: list[float], form: str) -> str:
    return f"{statistics.median(found):{form}} ({min(found):{form}} to {max(found):{form}})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("actors", nargs="*", type=int, default=[8, 32, 128, 256])
    parser.add_argument("--staleness", nargs="*", type=int, default=[0, 1])
    given = parser.parse_args()
    start_ray(object_store_gib=2)
    print(
        "| actors | staleness | samples a batch | samples/s | driver CPU, ms/sample | of wall time | stored, KiB/sample |"
    )
    print("|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for count in given.actors:
            for ahead in given.staleness:
                print(measure(count, ahead, Path(scratch)), flush=True)
    ray.shutdown()
