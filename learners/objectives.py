"""Every objective of the pipeline under one name: the public interface for users and checks.

The functions live where they are used: advantages and the KL controller in
`learners.rl.advantages`, the PPO losses in `learners.rl.losses`, the losses on rankings
in `learners.supervised.losses`, log-probabilities in `learners.logprobs`.
"""

from learners.logprobs import token_logprobs
from learners.rl.advantages import (
    adapted_kl_coef,
    dr_grpo,
    gae,
    groups_with_signal,
    grpo,
    kl_estimate,
    masked_mean,
    masked_whiten,
    overlong_penalty,
    reinforce,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
    token_rewards,
    turn_discounts,
)
from learners.rl.choices import Aggregation, Correction, KLEstimator
from learners.rl.losses import (
    aggregate,
    aggregation_size,
    importance_weights,
    log_linear_proximal,
    mismatch,
    policy_loss,
    value_loss,
)
from learners.supervised.losses import implicit_rewards, ranking_loss, ranking_pairs

__all__ = [
    "Aggregation",
    "Correction",
    "KLEstimator",
    "adapted_kl_coef",
    "aggregate",
    "aggregation_size",
    "dr_grpo",
    "gae",
    "groups_with_signal",
    "grpo",
    "implicit_rewards",
    "importance_weights",
    "kl_estimate",
    "log_linear_proximal",
    "masked_mean",
    "masked_whiten",
    "mismatch",
    "overlong_penalty",
    "policy_loss",
    "ranking_loss",
    "ranking_pairs",
    "reinforce",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "rloo",
    "token_logprobs",
    "token_rewards",
    "turn_discounts",
    "value_loss",
]
