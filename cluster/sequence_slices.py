"""Learner ranks that share the rows of a forward pass (`learners.sequence_parallel`): whether they can, and
what each of them computes, for `hero plan`."""

from __future__ import annotations

from cluster.config import RunConfig
from cluster.model_shape import ModelShape, policy_shape
from cluster.stage_registry import fleets_of
from common.errors import UserError


def slice_figures(config: RunConfig) -> list[tuple[str, str]]:
    """(quantity, calculation) of what a rank has of a micro-batch; nothing where each has rows of its own."""
    learners = config.learners
    size, tokens = learners.sequence_parallel, learners.micro_batch_tokens
    if not _is_used(config):
        return []
    heads = policy_shape(config).heads
    return [
        ("ranks that share rows", f"{learners.ranks} ranks = {learners.data_ranks} groups x {size}"),
        ("  tokens of a micro-batch, a rank", f"{tokens} / {size} = {tokens / size:g}"),
        ("  attention heads, a rank", f"{heads} / {size} = {heads / size:g}"),
    ]


def check_sequence_parallel(config: RunConfig) -> None:
    """Raises UserError unless the ranks of a group can divide the attention heads of every model."""
    if not _is_used(config):
        return
    size = config.learners.sequence_parallel
    key = f"learners.sequence_parallel={size}"
    if config.model.attention == "eager":
        raise UserError(
            f"{key} with model.attention=eager: ranks that share rows exchange them inside sdpa and "
            "flash_attention_2; leave model.attention out or set one of these"
        )
    for name, shape in _shapes(config).items():
        if shape.heads % size or (shape.kv_heads % size and size % shape.kv_heads):
            raise UserError(
                f"{key}: {name} has {shape.heads} attention heads and {shape.kv_heads} of keys and values; "
                "the first must be a multiple of it, the second a multiple or a divisor"
            )


def _is_used(config: RunConfig) -> bool:
    return config.learners.sequence_parallel > 1 and "learner" in fleets_of(config.stages)


def _shapes(config: RunConfig) -> dict[str, ModelShape]:
    """The models that learners train; a reward model that is made from the policy has its heads."""
    shapes = {"the policy": policy_shape(config)}
    if config.reward_model.path and config.rewards.uses_reward_model:
        from cluster.model_checks import open_reward_model

        shapes["reward_model.path"] = open_reward_model(config.reward_model.path).shape
    return shapes
