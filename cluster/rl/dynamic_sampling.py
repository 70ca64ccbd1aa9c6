"""Dynamic sampling: further batches for an iteration whose groups teach too little.

After DAPO (Yu et al. 2025, section 3.2). A group whose responses all have the same score has
advantage 0 under a group baseline. `next_batch` counts the others and asks the scheduler for more
until there are `ppo.prompts` of them, at most `ppo.dynamic_sampling` times.
"""

from __future__ import annotations

from cluster.fleets.learner_fleet import LearnerFleet
from cluster.rl.rollout_scheduler import RolloutBatch, RolloutScheduler
from learners.rl.config import PPOConfig


class DynamicSampler:
    """Batches of a scheduler with enough groups to learn from. With ppo.dynamic_sampling 0 they
    are the scheduler's."""

    def __init__(self, scheduler: RolloutScheduler, learners: LearnerFleet, config: PPOConfig) -> None:
        self.scheduler, self.learners, self.config = scheduler, learners, config

    def next_batch(self, version: int) -> RolloutBatch:
        """Waits for engines and, if it counts, for rank 0 of the learners, which reads scores
        without the driver."""
        batch = self.scheduler.next_batch(version)
        for _ in range(self.config.dynamic_sampling):
            # Rank 0 counts, since samples and scores are references here.
            if self.learners.count_groups_with_signal(batch.parts) >= self.config.prompts:
                break
            batch = joined(batch, self.scheduler.next_batch(version))
        return batch


def joined(first: RolloutBatch, more: RolloutBatch) -> RolloutBatch:
    """Both batches as one, with the metrics of the later one: its counters are those of the run
    so far."""
    return RolloutBatch(
        first.parts + more.parts,
        first.prompt_ids + more.prompt_ids,
        more.metrics,
        first.generation_s + more.generation_s,
    )
