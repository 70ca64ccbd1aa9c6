"""The sizes of a run's models, as far as its memory and what it can do depend on them.

Those of a model that starts from random weights are arithmetic on the config. A model of
`model.path` is opened for them (`cluster.model_checks`), which takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import RunConfig
from learners.config import ModelConfig


@dataclass(frozen=True)
class ModelShape:
    """A causal language model, or a model with one output from the same backbone."""

    architecture: str
    """Class in transformers."""
    parameters: int
    vocabulary: int
    """Rows of the input embedding."""
    width: int
    """Hidden size."""
    layers: int
    mlp_width: int
    """Inner size of the feed-forward blocks."""
    tied: bool
    """Whether the output head is the input embedding."""
    positions: int | None
    """Longest sequence that the model is made for; None if it has no limit."""
    heads: int
    """Attention heads."""
    kv_heads: int
    """Heads of keys and values."""

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding."""
        return self.vocabulary * self.width

    @property
    def scalar_parameters(self) -> int:
        """Parameters of a reward model or critic made from this policy: one output instead of the
        vocabulary."""
        backbone = self.parameters
        if not self.tied:
            backbone -= self.embedding
        return backbone + self.width


def policy_shape(config: RunConfig) -> ModelShape:
    """The policy. Raises UserError for a `model.path` that cannot be opened."""
    if not config.model.path:
        return new_model_shape(config.model)
    # Imports torch and transformers: a plan of a model with random weights answers without them.
    from cluster.model_checks import open_policy

    return open_policy(config.model.path).shape


def scalar_parameters(config: RunConfig) -> int:
    """Parameters of the reward model, and of the critic, which mostly starts as its copy."""
    if config.reward_model.path and config.rewards.uses_reward_model:
        from cluster.model_checks import open_reward_model

        return open_reward_model(config.reward_model.path).shape.parameters
    return policy_shape(config).scalar_parameters


def critic_parameters(config: RunConfig) -> int:
    """Parameters of the critic: of the reward model, or of the policy where they have other tokens."""
    if config.reward_model.path and config.rewards.uses_reward_model and config.model.path:
        from cluster.model_checks import has_own_tokenizer

        if has_own_tokenizer(config):
            return policy_shape(config).scalar_parameters
    return scalar_parameters(config)


def reward_model_parameters(config: RunConfig) -> list[int]:
    """Parameters of each reward model of the scoring actors."""
    counts = []
    if config.rewards.uses_reward_model:
        counts.append(scalar_parameters(config))
    for path in config.rewards.model_paths.values():
        from cluster.model_checks import open_reward_model

        counts.append(open_reward_model(path).shape.parameters)
    return counts


def new_model_shape(model: ModelConfig) -> ModelShape:
    """A model that `learners.models.build_policy` makes: exact, but for a vocabulary of characters,
    whose size only the corpus says."""
    head_width = model.width // model.heads
    # Qwen3's layer: grouped queries, norms of queries and keys, a gated MLP three times as wide.
    queries_and_output = 2 * model.width * model.heads * head_width
    keys_and_values = 2 * model.width * model.kv_heads * head_width
    head_norms = 2 * head_width
    mlp_width = 3 * model.width
    mlp = 3 * model.width * mlp_width
    layer_norms = 2 * model.width
    layer = queries_and_output + keys_and_values + head_norms + mlp + layer_norms
    embeddings = model.approx_vocab_size * model.width
    if not model.tie_embeddings:
        embeddings *= 2
    return ModelShape(
        architecture="Qwen3ForCausalLM",
        parameters=embeddings + model.layers * layer + model.width,
        vocabulary=model.approx_vocab_size,
        width=model.width,
        layers=model.layers,
        mlp_width=mlp_width,
        tied=model.tie_embeddings,
        positions=model.context,
        heads=model.heads,
        kv_heads=model.kv_heads,
    )
