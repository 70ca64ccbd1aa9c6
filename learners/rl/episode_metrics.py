"""Metrics of a batch of episodes, logged beside those of the responses in them."""

from __future__ import annotations

import numpy as np

from learners.data.episodes import EpisodeStatus
from learners.data.samples import Samples


def episode_metrics(samples: Samples) -> dict[str, float]:
    """Turns, tokens of the environment, shares of the endings, and means of the numbers that the
    environment tells of an episode."""
    episodes = samples.episodes
    assert episodes is not None
    num_prompt = float(samples.prompt_lengths_B.sum())
    of_environment = float(samples.offsets[-1] - episodes.policy_mask_N.sum()) - num_prompt
    metrics = {
        "episode/turns": float(episodes.turns_B.mean()),
        "episode/environment_tokens": of_environment / samples.size,
        "episode/return": float(episodes.returns_B(samples.offsets).mean()),
    }
    for status in EpisodeStatus:
        metrics[f"episode/{status.name.lower()}"] = float((episodes.status_B == status).mean())
    for name in sorted({name for info in episodes.infos_B for name in info}):
        metrics[f"environment/{name}"] = float(
            np.mean([info[name] for info in episodes.infos_B if name in info])
        )
    return metrics
