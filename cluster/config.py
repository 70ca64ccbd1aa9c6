"""The whole configuration of a run, in typed sections; `cluster.config_loader` reads it from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from actors.config import RolloutConfig, ScoringConfig, SyncConfig
from actors.environments.config import EnvironmentConfig
from actors.reward_config import RewardsConfig
from actors.vllm_arguments import CHUNKED_PREFILL
from cluster.environment_checks import check_environment, with_environment
from cluster.layout_config import Layout
from cluster.quickstart.config import QuickstartConfig
from cluster.rounds.config import RoundsConfig
from cluster.sampling_config import CollectConfig, EvaluateConfig, SampleConfig
from cluster.stage_registry import DEFAULT_STAGES, STAGES
from common.config import LocalPath, Section
from common.environment import refused_reason
from label.config import LabelConfig
from learners.config import (
    LearnerConfig,
    ModelConfig,
    PretrainConfig,
    RewardModelConfig,
    SFTConfig,
)
from learners.data.config import DataConfig
from learners.rl.config import PPOConfig
from learners.supervised.config import BestOfNConfig, DPOConfig
from serve.config import ServeConfig


class ClusterConfig(Section):
    address: str | None = None
    """Ray cluster to join ("auto" or host:port). Empty: RAY_ADDRESS if it is set, else the run
    starts a local Ray."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device that the models run on. Actors of a run on cpu see no GPU, also where there are some."""
    layout: Layout = "apart"
    """Who has which GPUs. apart: every actor its own. colocated: engines and scoring actors are on the
    learners' GPUs, and the phases of an iteration take turns (ppo.staleness: 0). hybrid: scoring actors
    alone are there, engines have GPUs of their own. Or hosts and sharing of each fleet."""
    patience_s: float = Field(600.0, ge=0)
    """Seconds to wait until a cluster that the run has joined has the GPUs and cores that it needs: for an
    autoscaler, for another run that ends, for a node in place of a lost one."""
    env: dict[str, str] = Field({})
    """Environment variables of every actor, on all hosts, for example {NCCL_IB_HCA: mlx5}. They count more
    than those of the same name where `hero run` is called, of which NCCL_*, GLOO_*, HF_*, VLLM_*, TORCH_*,
    DEEPSPEED_* and proxies are passed on."""
    mirror: str | None = None
    """URL of a folder in an object store (s3://BUCKET/RUN) or on another disk (file:///FOLDER), one for each
    run. What the run directory holds is copied there after every checkpoint, stage and stored version, and
    after every state of a round; a run that starts in an empty directory continues from it."""
    cpus: int | None = Field(None, ge=1)
    """CPU cores that a Ray started by this run may use. Empty: all of this machine."""
    object_store_gib: float = Field(0.5, gt=0.08)
    """Shared memory (GiB) of a Ray started by this run."""
    max_restarts: int = Field(10, ge=0)
    """How often a stage may replace actors that died or hang. One more failure stops the run."""
    heartbeat_timeout_s: float = Field(60.0, gt=3)
    """Seconds without a heartbeat after which an actor counts as hung and is replaced."""
    call_timeout_s: float = Field(3600.0, gt=3)
    """Seconds that one call to an actor may take. An actor that takes longer counts as hung and is
    replaced."""

    @field_validator("env", mode="before")
    @classmethod
    def _variables_of_the_user(cls, env: Any) -> Any:
        if not isinstance(env, dict):
            return env
        # YAML reads 22 as a number.
        env = {name: str(value) if type(value) in (int, float) else value for name, value in env.items()}
        for name in env:
            reason = refused_reason(name)
            if reason:
                raise ValueError(f"{name} cannot be set here: {reason}")
        return env


AlarmName = Literal["kl", "entropy", "ended", "length", "overoptimization", "disagreement"]


class AlarmsConfig(Section):
    kl: float | None = Field(None, gt=0)
    """Fires when the mean KL of a response to the SFT policy is over this, in nats. Empty: 10 with
    ppo.kl_coef over 0; without a penalty the KL is then not measured, which saves the reference
    policy."""
    entropy: float = Field(0.1, ge=0, lt=1)
    """Fires when the entropy of a token falls below this share of the first iteration's."""
    ended: float = Field(0.5, ge=0, le=1)
    """Fires when fewer than this share of the responses end with the end token."""
    length: float = Field(2.0, gt=1)
    """Fires when responses are longer than this many times those of the first iteration."""
    overoptimization: float = Field(2.0, gt=0)
    """Fires when the judge's score is this many standard errors below its best while the reward
    model's has risen."""
    disagreement: float = Field(2.0, gt=1)
    """Fires when the reward models that rewards.combine combines disagree about a response by more than this
    many times as much as in the first iteration (mean standard deviation of their scores)."""
    stop: list[AlarmName] = Field(default_factory=list)
    """Alarms that stop the run (exit code 3). The others only warn."""


class RunConfig(Section):
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: its W&B group, and the default of its directory."""
    run_dir: LocalPath | None = None
    """Directory of the run. Empty: runs/NAME."""
    seed: int = Field(0, ge=0)
    """Seed of all random draws."""
    stages: list[str] = Field(list(DEFAULT_STAGES), min_length=1)
    """Stages to run, in order. Beside the default ones there are best_of_n and dpo."""
    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster, and how failures are handled."""
    data: DataConfig = DataConfig()
    """The user's own files. Kinds of data that are left out come from the quickstart's
    generator."""
    quickstart: QuickstartConfig = QuickstartConfig()
    """The generator of the quickstart's data."""
    model: ModelConfig = ModelConfig()
    """The policy."""
    learners: LearnerConfig = LearnerConfig()
    """DeepSpeed ranks."""
    rollout: RolloutConfig = RolloutConfig()
    """vLLM engines."""
    sync: SyncConfig = SyncConfig()
    """How weights go from the learners to the engines."""
    scoring: ScoringConfig = ScoringConfig()
    """Actors that hold the reward model and the reference policy."""
    pretrain: PretrainConfig = PretrainConfig()
    """Next-token training on the corpus."""
    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning on demonstrations."""
    collect: CollectConfig = CollectConfig()
    """Sampling responses and ranking them."""
    sample: SampleConfig = SampleConfig()
    """Sampling responses of several policies, for people to rank."""
    reward_model: RewardModelConfig = RewardModelConfig()
    """Training the reward model."""
    best_of_n: BestOfNConfig = BestOfNConfig()
    """Fine-tuning on the best of n responses by the reward."""
    dpo: DPOConfig = DPOConfig()
    """Training the policy on the rankings directly."""
    environment: EnvironmentConfig | None = None
    """What the policy converses with in PPO and evaluation. Empty: every prompt has one response."""
    rewards: RewardsConfig = RewardsConfig()
    """Reward sources of PPO and of best_of_n, and their weights. With an environment and without sources:
    the environment."""
    ppo: PPOConfig = PPOConfig()
    """Reinforcement learning against the reward model."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Every policy on held-out prompts."""
    alarms: AlarmsConfig = AlarmsConfig()
    """Conditions that PPO is watched for."""
    serve: ServeConfig = ServeConfig()
    """The chat endpoint."""
    label: LabelConfig = LabelConfig()
    """The workplace of people who label."""
    rounds: RoundsConfig = RoundsConfig()
    """New labels, new reward model, new policy, again: `hero rounds`."""

    @property
    def uses_reference(self) -> bool:
        """Whether the reference policy is loaded and run: for the KL penalty, or for an alarm on the
        KL."""
        return self.ppo.uses_reference or self.alarms.kl is not None

    @property
    def scoring_reads_rows(self) -> bool:
        """Whether scoring actors need the rows of the prompt file: sources that read texts do, and reward
        models that may have tokens of their own."""
        has_path = self.reward_model.path is not None or bool(self.rewards.model_paths)
        return has_path or self.rewards.reads_texts

    @property
    def directory(self) -> Path:
        return Path(self.run_dir or f"runs/{self.name}").absolute()

    @field_validator("stages")
    @classmethod
    def _known_and_in_order(cls, stages: list[str]) -> list[str]:
        for stage in stages:
            if stage not in STAGES:
                raise ValueError(f"no stage is named {stage}; the stages are {', '.join(STAGES)}")
        if stages != sorted(set(stages), key=STAGES.index):
            raise ValueError(f"give each stage at most once and in this order: {', '.join(STAGES)}")
        return stages

    @model_validator(mode="after")
    def _environment_fits(self) -> RunConfig:
        self.rewards, self.serve = with_environment(self.environment, self.rewards, self.serve)
        check_environment(self.environment, self.rewards, self.ppo, self.rollout, self.model.context)
        return self

    @model_validator(mode="after")
    def _judge_knows_the_prompts(self) -> RunConfig:
        """The default judge is the quickstart's oracle, which would measure nonsense on other
        prompts, and on the end of a conversation."""
        is_own = bool(self.data.heldout) or self.environment is not None
        if is_own and "judge" not in self.evaluate.model_fields_set:
            self.evaluate = self.evaluate.model_copy(update={"judge": None})
        return self

    @model_validator(mode="after")
    def _no_chunked_prefill_on_cpu(self) -> RunConfig:
        on_cpu = self.cluster.device == "cpu" and not self.rollout.gpus
        if on_cpu and "enable_chunked_prefill" in self.rollout.vllm:
            raise ValueError(f"rollout.vllm: enable_chunked_prefill cannot be passed on: {CHUNKED_PREFILL}")
        return self

    @model_validator(mode="after")
    def _stopping_alarm_is_measured(self) -> RunConfig:
        if "kl" in self.alarms.stop and not self.uses_reference:
            raise ValueError(
                "alarms.stop has kl, but with ppo.kl_coef=0 the KL is measured only if alarms.kl is set; "
                "set it or leave kl out"
            )
        return self

    @model_validator(mode="after")
    def _disagreement_is_measured(self) -> RunConfig:
        # The default is written to config.yaml, which must load again.
        is_changed = self.alarms.disagreement != AlarmsConfig.model_fields["disagreement"].default
        if self.rewards.combine == "sum" and (is_changed or "disagreement" in self.alarms.stop):
            raise ValueError(
                "alarms: disagreement is measured between the reward models that rewards.combine combines, "
                "and combine is sum; leave it out, or give several sources of kind model and combine them"
            )
        return self

    @model_validator(mode="after")
    def _transport_fits(self) -> RunConfig:
        if self.sync.transport == "ipc" and self.cluster.device != "cuda":
            raise ValueError(
                "sync.transport=ipc maps memory of GPUs, which needs cluster.device: cuda; choose auto, "
                "file, object_store or broadcast"
            )
        if self.sync.adapters_only and self.model.lora is None:
            raise ValueError("sync.adapters_only sends the adapters of model.lora, which is not set")
        return self

    @model_validator(mode="after")
    def _sequences_fit(self) -> RunConfig:
        """In the stages that are run, a pretraining sequence fits the context and a micro-batch, and a
        response leaves room for a prompt."""
        context = self.model.context
        if "pretrain" in self.stages:
            self._pretraining_fits()
        # The PPO stage evaluates with the settings of the evaluate stage.
        limits = {
            "collect": {"collect"},
            "sample": {"sample"},
            "best_of_n": {"best_of_n"},
            "ppo": {"ppo"},
            "evaluate": {"ppo", "evaluate"},
        }
        for section, stages in limits.items():
            limit = getattr(self, section).max_response_tokens
            if limit >= context and stages & set(self.stages):
                raise ValueError(
                    f"{section}.max_response_tokens={limit} leaves no room for a prompt in "
                    f"model.context={context}"
                )
        return self

    def _pretraining_fits(self) -> None:
        length, context = self.pretrain.sequence_length, self.model.context
        if length > context:
            raise ValueError(f"pretrain.sequence_length={length} is over model.context={context}")
        if length > self.learners.micro_batch_tokens:
            raise ValueError(
                f"pretrain.sequence_length={length} is over "
                f"learners.micro_batch_tokens={self.learners.micro_batch_tokens}; "
                "a sequence must fit a micro-batch"
            )
