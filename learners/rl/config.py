"""The section of the run configuration that says how PPO and its relatives learn."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from common.config import DType, Section
from learners.config import OptimizerConfig


class AdvantageSpec(NamedTuple):
    """What an advantage is made from beside the rewards."""

    critic: bool = False
    """A value for every token."""
    group: bool = False
    """Several responses to each prompt."""
    tokens: bool = False
    """Rewards token by token; else only their sum over the response matters."""


# By name of a function of `learners.rl.advantages`; a new advantage is a function there and a
# line here.
ADVANTAGES = {
    "gae": AdvantageSpec(critic=True, tokens=True),
    "grpo": AdvantageSpec(group=True),
    "dr_grpo": AdvantageSpec(group=True),
    "rloo": AdvantageSpec(group=True),
    "reinforce": AdvantageSpec(tokens=True),
    "reinforce_pp": AdvantageSpec(tokens=True),
    "reinforce_pp_baseline": AdvantageSpec(group=True),
}


class PPOConfig(Section):
    iterations: int = Field(40, ge=1)
    """Rounds of rollout, scoring, learning and weight sync."""
    prompts: int = Field(128, ge=1)
    """Prompts of one iteration."""
    responses: int = Field(2, ge=1)
    """Responses sampled for each prompt."""
    max_response_tokens: int = Field(32, ge=1)
    """Longest response, the end token included."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of rollouts; every log-probability is taken of the logits divided by
    it."""
    epochs: int = Field(2, ge=1)
    """Passes over each batch of responses."""
    minibatches: int = Field(2, ge=1)
    """Optimizer steps of one pass; must divide prompts x responses."""
    advantage: str = "gae"
    """The algorithm: gae (PPO with a critic), grpo, dr_grpo, rloo, reinforce, reinforce_pp or
    reinforce_pp_baseline."""
    dtype: DType = "float32"
    """Arithmetic of policy, critic and rollout engine alike."""
    kl_coef: float = Field(0.35, ge=0)
    """Weight of the per-token KL penalty to the SFT policy; with kl_target, the weight it starts
    from."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the penalty goes: into the reward of each token, or into the loss (GRPO's paper, with
    k3)."""
    kl_target: float | None = Field(None, gt=0)
    """KL of a response, in nats, that the weight is adapted to hold (Ziegler 2019). Empty: the
    weight stays."""
    kl_horizon: int = Field(10000, ge=1)
    """Responses over which an adaptive weight changes by the relative error of the KL."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL penalty."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Taken off the score of a response that does not end by itself."""
    bootstrap_truncated: bool = False
    """Let a response that was cut at max_response_tokens be worth, from there on, what the critic
    expects; else nothing."""
    overlong_buffer: int = Field(0, ge=0)
    """Tokens before max_response_tokens over which a penalty on length grows from 0 (DAPO). 0:
    off."""
    overlong_penalty: float = Field(1.0, gt=0)
    """That penalty at max_response_tokens."""
    dynamic_sampling: int = Field(0, ge=0)
    """Most times that an iteration samples further prompts for groups whose scores are all equal
    (DAPO). 0: off."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation."""
    whiten_rewards: bool = False
    """Scale token rewards to unit variance over the batch, keeping their mean."""
    aggregation: Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "fixed_length"] = (
        "token_mean"
    )
    """How the policy's loss is averaged; fixed_length divides by sequences x max_response_tokens
    (Dr. GRPO)."""
    ratio: Literal["token", "sequence"] = "token"
    """Policy ratio of each token, or one for the whole response (GSPO, with clips near 3e-4)."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """How far below 1 the policy ratio is clipped."""
    clip_high: float = Field(0.2, gt=0)
    """How far above 1 the policy ratio is clipped; more than clip_low is DAPO's clip-higher."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound on the loss of a token with negative advantage, in advantages (usually 3). Empty:
    off."""
    correction: Literal["none", "tis", "icepop", "sequence", "decoupled"] = "none"
    """Weight for responses that other weights or arithmetic sampled: truncated, masked, by
    sequence, or decoupled PPO."""
    correction_low: float = Field(0.5, gt=0)
    """Smallest weight that icepop lets through."""
    correction_high: float = Field(2.0, gt=0)
    """Largest weight: truncated to it by tis and sequence, left out above it by icepop."""
    value_clip: float = Field(0.2, gt=0)
    """Clip range of the value around its old estimate."""
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=2e-4, schedule="linear", warmup_steps=5, eps=1e-5, final_ratio=0.1
    )
    """AdamW settings of the policy."""
    critic_optimizer: OptimizerConfig = OptimizerConfig(
        lr=5e-4, schedule="linear", warmup_steps=5, eps=1e-5, final_ratio=0.1
    )
    """AdamW settings of the critic."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of the next-token loss on the pretraining corpus added to the policy's (Ouyang 2022,
    Eq. 2). 0: off."""
    ptx_tokens: int = Field(2048, ge=16)
    """Pretraining tokens of each optimizer step."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the policy's weights, saved as the stage's
    result. Empty: off."""
    evaluate_every: int = Field(10, ge=1)
    """Iterations between evaluations on held-out prompts."""
    evaluate_prompts: int = Field(128, ge=1)
    """Held-out prompts of those evaluations."""
    best_of: int = Field(16, ge=1)
    """Responses of the SFT policy to each of them before the first iteration: the best-of-N
    baseline. 1: off."""
    proximal: Literal["recompute", "log_linear", "behaviour"] = "recompute"
    """The policy that ratios are taken to and clipped around: the learner's before the update
    (decoupled PPO, Hilton et al. 2022) by a forward pass or, without one, by interpolation from
    the versions of the tokens; or the one that wrote the response, of whatever version."""
    staleness: int = Field(0, ge=0)
    """Versions that the weights which wrote a response may be older than those that learn from
    it. 0: synchronous; over 0 rollouts run ahead while the learners work."""
    checkpoint_every: int = Field(1, ge=1)
    """Iterations between checkpoints of the learners: what a death can cost."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints kept on disk; older ones are removed."""
    publish_every: int = Field(10, ge=1)
    """Iterations between policies that are kept as versions to serve."""
    promote_every: int = Field(0, ge=0)
    """Iterations between promotions of the policy to the endpoint that serves the run. 0: never."""
    max_logprob_error: float | None = Field(None, gt=0)
    """Largest mean difference of probe log-probabilities between learner and engine. Empty: 1e-5
    (bfloat16: 0.05)."""

    @property
    def advantage_spec(self) -> AdvantageSpec:
        return ADVANTAGES[self.advantage]

    @field_validator("advantage")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ADVANTAGES:
            raise ValueError(f"expected one of {', '.join(ADVANTAGES)}")
        return name

    def inactive_keys(self) -> dict[str, str]:
        critic, tokens = (
            ", ".join(n for n, a in ADVANTAGES.items() if getattr(a, what)) for what in ("critic", "tokens")
        )
        penalized = self.kl_coef > 0
        rules = (
            (
                self.advantage_spec.critic,
                ("lam", "value_clip", "critic_optimizer", "bootstrap_truncated"),
                f"ppo.advantage: {critic}",
            ),
            (self.advantage_spec.tokens, ("gamma", "whiten_rewards"), f"ppo.advantage: {tokens}"),
            (penalized, ("kl_in", "kl_target", "kl_estimator"), "ppo.kl_coef over 0"),
            (penalized and self.kl_target is not None, ("kl_horizon",), "ppo.kl_target"),
            (self.overlong_buffer > 0, ("overlong_penalty",), "ppo.overlong_buffer over 0"),
            (self.correction == "icepop", ("correction_low",), "ppo.correction: icepop"),
            (
                self.correction in ("tis", "icepop", "sequence"),
                ("correction_high",),
                "ppo.correction: tis, icepop, sequence",
            ),
            (self.ptx_coef > 0, ("ptx_tokens",), "ppo.ptx_coef over 0"),
        )
        return {key: wanted for used, keys, wanted in rules if not used for key in keys}

    @model_validator(mode="after")
    def _consistent(self) -> PPOConfig:
        if self.responses == 1 and (self.advantage_spec.group or self.dynamic_sampling):
            what = f"advantage {self.advantage}" if self.advantage_spec.group else "dynamic_sampling"
            raise ValueError(
                f"responses is 1, but {what} compares the responses to one prompt; set it to 2 or more"
            )
        if self.overlong_buffer >= self.max_response_tokens:
            raise ValueError(
                f"overlong_buffer {self.overlong_buffer} must be below max_response_tokens {self.max_response_tokens}"
            )
        if self.dynamic_sampling and self.staleness:
            raise ValueError(
                "dynamic_sampling decides what to ask next by the batch before: it needs staleness 0"
            )
        if self.proximal == "behaviour" and self.correction != "none":
            raise ValueError(
                f"proximal behaviour takes ratios to what the engine says, which correction {self.correction} would count twice"
            )
        if self.correction == "icepop" and self.correction_low >= self.correction_high:
            raise ValueError(
                f"correction_low {self.correction_low} must be below correction_high {self.correction_high}"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> PPOConfig:
        batch = self.prompts * self.responses
        if batch % self.minibatches:
            near = [
                m
                for m in range(1, batch + 1)
                if batch % m == 0 and abs(m - self.minibatches) <= self.minibatches
            ]
            raise ValueError(
                f"prompts {self.prompts} x responses {self.responses} = {batch} is not divisible by minibatches "
                f"{self.minibatches}; these would work: {', '.join(map(str, near))}"
            )
        return self
