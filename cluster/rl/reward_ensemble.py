"""Several reward models as one: a pure function of their scores.

A policy finds the mistakes of one reward model; several, trained from other seeds or data, make other ones
(Coste et al. 2023, arXiv:2310.02743, section 4). There the uncertainty penalty is the variance; here it is
the standard deviation, which has the unit of the scores.
"""

from __future__ import annotations

import numpy as np

from actors.reward_config import RewardsConfig

DISAGREEMENT = "disagreement"
"""Name of the standard deviation of the reward models' scores of a response, in metrics."""


def combined_models(config: RewardsConfig) -> list[int]:
    """Positions of the sources whose scores become one; none where each counts by itself."""
    return config.counting_models if config.combine != "sum" else []


def combine(scores_CB: np.ndarray, config: RewardsConfig) -> tuple[np.ndarray, np.ndarray]:
    """(reward_B, disagreement_B) of the scores of C reward models: their combination times their weight, and
    their standard deviation (biased, over the models)."""
    mean_B, std_B = scores_CB.mean(axis=0), scores_CB.std(axis=0)
    reward_B = mean_B
    if config.combine == "minimum":
        reward_B = scores_CB.min(axis=0)
    elif config.combine == "mean_minus_std":
        reward_B = mean_B - config.std_coef * std_B
    return config.sources[config.counting_models[0]].weight * reward_B, std_B
