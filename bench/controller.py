"""What the driver costs: the real scheduler, rewards, fleets and Ray actors, with results that cost
the actors nothing (`bench.simulated`).

    python -m bench.controller [8 32 128 256] [--staleness 0 1]

For each number of rollout actors: samples per second from the scheduler to the learner, the
driver's CPU time for each sample and its share of the wall time, and what went into the object
store. A batch is four groups of four responses for each actor; there is one scoring actor for
every eight. The actors share the machine with the driver, so the rate is a lower bound and the CPU
time is the figure to compare.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from actors.config import Decoding
from actors.prompt_group import PromptGroup
from actors.reward_config import RewardsConfig
from bench.common import print_header, print_row, spread, start_parser
from cluster.fleets.fleet import Fleet
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.fleets.scoring_fleet import ScoringFleet
from cluster.rl.prompt_stream import PromptStream
from cluster.rl.reward_aggregator import RewardAggregator
from cluster.rl.rollout_scheduler import RolloutScheduler
from common.ray_session import start_ray
from learners.rl.config import PPOConfig

PROMPT_TOKENS, RESPONSE_TOKENS = 128, 512
GROUPS_PER_ACTOR = 4
"""Of each batch."""
RESPONSES = 4
"""To each prompt."""
BLOCKS = 6
"""Of which the first is not counted."""
SAMPLES_PER_BLOCK = 4096
"""At least; a block has whole batches."""

HEADINGS = (
    "actors",
    "staleness",
    "samples a batch",
    "samples/s",
    "driver CPU, ms/sample",
    "of wall time",
    "stored, KiB/sample",
)


class SamePrompt(PromptStream):
    """Every group answers a prompt of the same tokens."""

    def __init__(self) -> None:
        self.tokens = list(range(PROMPT_TOKENS))

    def __getitem__(self, index: int) -> PromptGroup:
        return PromptGroup(index, 0, self.tokens, list(range(RESPONSES)))

    # The scheduler looks rows up for reward functions; there are none here.
    rows = ({},)


@dataclass
class Figures:
    """One entry for each counted block."""

    samples_per_second: list[float] = field(default_factory=list)
    cpu_ms_per_sample: list[float] = field(default_factory=list)
    share_of_wall_time: list[float] = field(default_factory=list)
    stored_kib_per_sample: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        return [
            spread(self.samples_per_second, ",.0f"),
            spread(self.cpu_ms_per_sample, ".2f"),
            spread(self.share_of_wall_time, ".0%"),
            spread(self.stored_kib_per_sample, ".1f"),
        ]


class Controller:
    """Fleets of simulated actors, and the scheduler that keeps them at work."""

    def __init__(self, actors: int, staleness: int, folder: Path) -> None:
        rollout_arguments = [{"length": RESPONSE_TOKENS}] * actors
        scorer_arguments: list[dict[str, int]] = [{}] * max(1, actors // 8)
        options = {"num_cpus": 0}
        self.rollouts = RolloutFleet("rollout", "bench.simulated:Engine", rollout_arguments, options, folder)
        self.scorers = ScoringFleet("scoring", "bench.simulated:Scorer", scorer_arguments, options, folder)
        self.learners = LearnerFleet("learner", "bench.simulated:Learner", [{}], options, folder)
        self.samples_per_batch = actors * GROUPS_PER_ACTOR * RESPONSES
        self.batches_per_block = -(-SAMPLES_PER_BLOCK // self.samples_per_batch)
        self.staleness, self.folder = staleness, folder
        self.version = 0

    @property
    def fleets(self) -> list[Fleet]:
        return [self.rollouts, self.scorers, self.learners]

    def start(self) -> None:
        """Waits for all actors, so that no block pays for their start."""
        for fleet in self.fleets:
            fleet.all("ready")
        config = PPOConfig(
            prompts=self.samples_per_batch // RESPONSES,
            responses=RESPONSES,
            iterations=BLOCKS * self.batches_per_block,
            staleness=self.staleness,
        )
        rewards = RewardAggregator(RewardsConfig(), self.scorers, self.folder / "quarantine.jsonl")
        decoding = Decoding(temperature=1.0, max_tokens=RESPONSE_TOKENS)
        self.scheduler = RolloutScheduler(self.rollouts, rewards, SamePrompt(), config, decoding, end_token=0)

    def run_block(self) -> None:
        """Batches from the scheduler to the learner and, as after a weight sync, the next version."""
        for _ in range(self.batches_per_block):
            batch = self.scheduler.next_batch(self.version)
            refs = self.learners.submit_ppo_update(self.version + 1, 0.0, batch.parts)
            del batch  # or its samples would stay in the object store
            num_tokens = self.scheduler.wait_while_rolling(self.learners, refs, "ppo_update")[0]
            expected = self.samples_per_batch * (PROMPT_TOKENS + RESPONSE_TOKENS)
            if num_tokens != expected:
                raise AssertionError(f"the learner got {num_tokens} tokens instead of {expected}")
            self.version += 1

    def stop(self) -> None:
        for fleet in self.fleets:
            fleet.stop()


def measure(actors: int, staleness: int, folder: Path) -> list[str]:
    """A row of the table."""
    controller, figures, driver = Controller(actors, staleness, folder), Figures(), psutil.Process()
    try:
        controller.start()
        for block in range(BLOCKS):
            stored, cpu_s, started = stored_bytes(), total_cpu_s(driver), time.perf_counter()
            controller.run_block()
            wall_s, cpu_s = time.perf_counter() - started, total_cpu_s(driver) - cpu_s
            stored = stored_bytes() - stored
            samples = controller.batches_per_block * controller.samples_per_batch
            if block > 0:
                figures.samples_per_second.append(samples / wall_s)
                figures.cpu_ms_per_sample.append(1000 * cpu_s / samples)
                figures.share_of_wall_time.append(cpu_s / wall_s)
                figures.stored_kib_per_sample.append(stored / samples / 1024)
    finally:
        controller.stop()
    return [str(actors), str(staleness), f"{controller.samples_per_batch:,}", *figures.cells()]


def total_cpu_s(process: psutil.Process) -> float:
    """Seconds of CPU time of all threads so far."""
    times = process.cpu_times()
    return times.user + times.system


def stored_bytes() -> int:
    """Bytes that have gone into the object store so far."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.cumulative_created_bytes)


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("actors", nargs="*", type=int, default=[8, 32, 128, 256])
    parser.add_argument("--staleness", nargs="*", type=int, default=[0, 1])
    options = parser.parse_args()
    start_ray(object_store_gib=2)
    print_header(HEADINGS)
    with tempfile.TemporaryDirectory() as scratch:
        for actors in options.actors:
            for staleness in options.staleness:
                print_row(measure(actors, staleness, Path(scratch)))
    ray.shutdown()


if __name__ == "__main__":
    main()
