"""The section of the run configuration that says how PPO and its relatives learn."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from common.config import DType, Section
from learners.config import OptimizerConfig
from learners.rl.choices import Aggregation, Correction, KLEstimator, RatioLevel


class AdvantageSpec(NamedTuple):
    """What an advantage needs beside the rewards."""

    critic: bool = False
    """A value for every token."""
    group: bool = False
    """Several responses to each prompt."""
    tokens: bool = False
    """Rewards of single tokens; without it, only their sum over the response counts."""


# Keys are names of functions in `learners.rl.advantages`: a new advantage is a function there and
# a line here.
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
    """Sampling temperature of rollouts. It divides the logits in every log-probability, of
    engines, learners and scoring actors alike."""
    epochs: int = Field(2, ge=1)
    """Passes over each batch of responses."""
    minibatches: int = Field(2, ge=1)
    """Optimizer steps of one pass; the number must divide prompts x responses."""
    advantage: str = "gae"
    """The algorithm: gae (PPO with a critic), grpo, dr_grpo, rloo, reinforce, reinforce_pp or
    reinforce_pp_baseline."""
    dtype: DType = "auto"
    """Precision of policy and critic, and of rollout engines and scoring actors that do not say
    otherwise. auto: what the machine multiplies fast."""
    kl_coef: float = Field(0.35, ge=0)
    """Weight of the per-token KL penalty to the SFT policy. With kl_target: its first value. 0: no
    penalty, and the SFT policy is neither loaded for it nor run, unless alarms.kl is set."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the penalty goes: into the reward of each token, or into the loss (as in the GRPO
    paper, which uses k3)."""
    kl_target: float | None = Field(None, gt=0)
    """Mean KL of a response, in nats, to which kl_coef is adapted (Ziegler 2019). Empty: kl_coef
    is constant."""
    kl_horizon: int = Field(10000, ge=1)
    """Responses over which an adaptive kl_coef changes by the relative error of the KL."""
    kl_estimator: KLEstimator = "k1"
    """Estimator of the KL penalty."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Subtracted from the score of a response without an end token."""
    bootstrap_truncated: bool = False
    """Value after the last token of a response truncated at max_response_tokens: what the critic
    predicts there (true) or 0 (false)."""
    overlong_buffer: int = Field(0, ge=0)
    """Number of tokens before max_response_tokens over which a penalty on length grows linearly
    from 0 (DAPO). 0: no penalty."""
    overlong_penalty: float = Field(1.0, gt=0)
    """Size of that penalty at max_response_tokens."""
    dynamic_sampling: int = Field(0, ge=0)
    """How often at most an iteration samples further prompts to replace groups whose scores are
    all equal (DAPO). 0: never."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount factor per token."""
    gamma_per: Literal["token", "turn"] = "token"
    """What gamma counts in the episodes of an environment. turn: the discount is between two turns of the
    policy, and there is none inside a turn."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation."""
    whiten_rewards: bool = False
    """Scale token rewards to unit variance over the batch, keeping their mean."""
    aggregation: Aggregation = "token_mean"
    """How the policy's loss is averaged. token_mean: over all tokens; seq_mean_token_mean: over
    tokens, then over responses; seq_mean_token_sum: sum over tokens, mean over responses;
    fixed_length: sum divided by responses x max_response_tokens (Dr. GRPO)."""
    ratio: RatioLevel = "token"
    """Policy ratio of each token, or one for the whole response (GSPO, whose clip ranges are near
    3e-4)."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """How far below 1 the policy ratio is clipped."""
    clip_high: float = Field(0.2, gt=0)
    """How far above 1 the policy ratio is clipped; more than clip_low is DAPO's clip-higher."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound on the loss of a token with negative advantage, as a multiple of the advantage
    (usually 3). Empty: no bound."""
    correction: Correction = "none"
    """Importance weights for responses that were sampled with other weights or another
    arithmetic: truncated (tis), masked (icepop), of the whole response (sequence), or those of
    decoupled PPO."""
    correction_low: float = Field(0.5, gt=0)
    """Smallest importance weight with icepop; below it a token has no loss."""
    correction_high: float = Field(2.0, gt=0)
    """Largest importance weight. Above it tis and sequence truncate to it, and with icepop a
    token has no loss."""
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
    """Weight of the next-token loss on the pretraining corpus that is added to the policy's loss
    (PTX, Ouyang 2022, Eq. 2). 0: no such loss."""
    ptx_tokens: int = Field(2048, ge=16)
    """Pretraining tokens of each optimizer step."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the policy's weights, which becomes the stage's
    result. Empty: the last weights are the result."""
    evaluate_every: int = Field(10, ge=1)
    """Iterations between evaluations on held-out prompts."""
    evaluate_prompts: int = Field(128, ge=1)
    """Number of held-out prompts in those evaluations."""
    best_of: int = Field(16, ge=1)
    """Responses of the SFT policy to each evaluation prompt before the first iteration, for the
    best-of-N baseline. 1: no baseline."""
    proximal: Literal["recompute", "log_linear", "behaviour"] = "recompute"
    """The proximal policy, which is the denominator of the clipped ratios (decoupled PPO, Hilton
    et al. 2022). recompute: the learner's policy before the update, by a forward pass (by none where
    one optimizer step learns from a batch and the reward has no KL penalty); log_linear:
    the same by interpolation from the versions of the tokens, without that pass; behaviour: the
    policy that sampled the response, of any version."""
    staleness: int = Field(0, ge=0)
    """How many versions older the weights that sampled a response may be than those that learn
    from it. 0: synchronous; above 0, rollouts continue while the learners work."""
    checkpoint_every: int = Field(1, ge=1)
    """Iterations between checkpoints of the learners: at most so many are repeated after a
    crash."""
    checkpoint_minutes: float | None = Field(None, gt=0)
    """Least time between two checkpoints, minutes, for models whose state takes long to write (12 bytes a
    parameter): of the iterations that checkpoint_every names, those that come sooner write none. A resumed
    run repeats what came after its checkpoint, with the same results. Empty: no least time."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of checkpoints on disk; older ones are deleted."""
    publish_every: int = Field(10, ge=1)
    """Iterations between policies that are stored as versions for serving."""
    promote_every: int = Field(0, ge=0)
    """Iterations between promotions of the policy to the endpoint that serves this run. 0:
    never."""
    max_logprob_error: float | None = Field(None, gt=0)
    """Largest mean difference between the learner's and an engine's log-probabilities of the
    probe sequences after a weight sync, in nats. Empty: 1e-5 (on GPUs 5e-3), in bfloat16 0.05."""

    @property
    def uses_reference(self) -> bool:
        """Whether learning needs the reference policy, which is for the KL penalty alone."""
        return self.kl_coef > 0

    @property
    def advantage_spec(self) -> AdvantageSpec:
        return ADVANTAGES[self.advantage]

    @property
    def learns_in_one_step(self) -> bool:
        """Whether the policy of the only optimizer step of an iteration is the proximal policy itself,
        and nothing before that step needs its log-probabilities: a forward pass less."""
        penalizes_tokens = self.kl_coef > 0 and self.kl_in == "reward"
        return self.epochs * self.minibatches == 1 and self.proximal == "recompute" and not penalizes_tokens

    @property
    def passes_before_update(self) -> bool:
        """Whether the learners compute the policy's log-probabilities in a forward pass of its own."""
        return self.proximal != "log_linear" and not self.learns_in_one_step

    @field_validator("advantage")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ADVANTAGES:
            raise ValueError(f"expected one of {', '.join(ADVANTAGES)}")
        return name

    def inactive_keys(self) -> dict[str, str]:
        spec = self.advantage_spec
        with_critic = [name for name, other in ADVANTAGES.items() if other.critic]
        with_tokens = [name for name, other in ADVANTAGES.items() if other.tokens]
        penalized = self.kl_coef > 0
        truncates = self.correction in ("tis", "icepop", "sequence")
        # Per group of keys: whether they have an effect, and the setting that they need.
        rules = {
            ("lam", "value_clip", "critic_optimizer", "bootstrap_truncated"): (
                spec.critic,
                f"ppo.advantage: {', '.join(with_critic)}",
            ),
            ("gamma", "gamma_per", "whiten_rewards"): (
                spec.tokens,
                f"ppo.advantage: {', '.join(with_tokens)}",
            ),
            ("kl_in", "kl_target", "kl_estimator"): (penalized, "ppo.kl_coef over 0"),
            ("kl_horizon",): (penalized and self.kl_target is not None, "ppo.kl_target"),
            ("overlong_penalty",): (self.overlong_buffer > 0, "ppo.overlong_buffer over 0"),
            ("correction_low",): (self.correction == "icepop", "ppo.correction: icepop"),
            ("correction_high",): (truncates, "ppo.correction: tis, icepop, sequence"),
            ("ptx_tokens",): (self.ptx_coef > 0, "ppo.ptx_coef over 0"),
        }
        inactive = {}
        for keys, (has_effect, needed) in rules.items():
            if not has_effect:
                inactive.update(dict.fromkeys(keys, needed))
        return inactive

    @model_validator(mode="after")
    def _consistent(self) -> PPOConfig:
        if self.responses == 1:
            self._check_single_response()
        # A buffer as long as the response would penalize every response.
        if self.overlong_buffer >= self.max_response_tokens:
            raise ValueError(
                f"overlong_buffer {self.overlong_buffer} must be below max_response_tokens "
                f"{self.max_response_tokens}"
            )
        # Sampling ahead would have to know which prompts the present batch lacks.
        if self.dynamic_sampling and self.staleness:
            raise ValueError(
                "dynamic_sampling chooses further prompts by the scores of the batch, so nothing "
                "can be sampled ahead: it needs staleness 0"
            )
        if self.proximal == "behaviour" and self.correction != "none":
            raise ValueError(
                "with proximal behaviour the ratios are taken to the engine's log-probabilities; "
                f"correction {self.correction} would correct for them a second time"
            )
        if self.correction == "icepop" and self.correction_low >= self.correction_high:
            raise ValueError(
                f"correction_low {self.correction_low} must be below correction_high {self.correction_high}"
            )
        return self

    def _check_single_response(self) -> None:
        comparing = None
        if self.advantage_spec.group:
            comparing = f"advantage {self.advantage}"
        elif self.dynamic_sampling:
            comparing = "dynamic_sampling"
        if comparing:
            raise ValueError(
                f"responses is 1, but {comparing} compares the responses to one prompt; set it to 2 or more"
            )

    @model_validator(mode="after")
    def _divisible(self) -> PPOConfig:
        batch = self.prompts * self.responses
        if batch % self.minibatches == 0:
            return self
        near = []
        for count in range(1, min(batch, 2 * self.minibatches) + 1):
            if batch % count == 0:
                near.append(str(count))
        raise ValueError(
            f"prompts {self.prompts} x responses {self.responses} = {batch} is not divisible by "
            f"minibatches {self.minibatches}; these would work: {', '.join(near)}"
        )
