"""The whole configuration of a run: typed sections, a YAML file, dotted overrides, errors that name the key.

`load_config` is the only way in. A key that does not exist is refused and its nearest neighbours are named.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from actors.config import RewardsConfig, RolloutConfig, ScoringConfig
from cluster.quickstart.config import QuickstartConfig
from common.config import Section
from common.errors import UserError
from learners.config import LearnerConfig, ModelConfig, PretrainConfig, RewardModelConfig, SFTConfig
from learners.data.config import DataConfig
from learners.rl.config import PPOConfig
from serve.config import ServeConfig

Stage = Literal["pretrain", "sft", "collect", "reward", "ppo", "evaluate"]
STAGES: tuple[Stage, ...] = ("pretrain", "sft", "collect", "reward", "ppo", "evaluate")


class ClusterConfig(Section):
    address: str | None = None
    """Ray cluster to join ("auto" or host:port). Empty: RAY_ADDRESS if it is set, else a Ray of this run's own."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What the models run on."""
    cpus: int | None = Field(None, ge=1)
    """CPU cores that a Ray of this run's own may use. Empty: all of this machine."""
    object_store_gib: float = Field(0.5, gt=0.08)
    """Shared memory of a Ray of this run's own."""
    max_restarts: int = Field(10, ge=0)
    """How often a stage may bring back actors that died or hang; over that the run stops."""
    heartbeat_timeout_s: float = Field(60.0, gt=3)
    """Seconds without a heartbeat after which an actor is taken for hung and replaced."""
    call_timeout_s: float = Field(3600.0, gt=3)
    """Seconds that one call to an actor may take; over that it is taken for hung and replaced."""


class CollectConfig(Section):
    prompts: int = Field(6000, ge=1)
    """Prompts to collect responses for (at most as many as there are)."""
    responses: int = Field(6, ge=4, le=9)
    """Responses per prompt (K)."""
    max_response_tokens: int = Field(32, ge=1)
    """Longest response, the end token included."""
    labelers: int = Field(8, ge=1)
    """Simulated labelers."""
    error_rate: float = Field(0.22, ge=0, le=0.8)
    """Share of the responses that a simulated labeler misjudges; 0.22 gives a pairwise agreement near 73%."""
    overlap: float = Field(0.1, ge=0, le=1)
    """Share of the prompts that a second labeler ranks too, to measure agreement."""


class EvaluateConfig(Section):
    prompts: int | None = Field(None, ge=1)
    """Held-out prompts to use. Empty: all."""
    max_response_tokens: int = Field(32, ge=1)
    """Longest response, the end token included."""
    judge: str | None = "cluster.quickstart.oracle:judge"
    """module:function (row, response, ended) -> the score, a number, or a mapping of measures, "score" among them. Empty:
    reward and KL only."""
    samples: int = Field(1, ge=1)
    """Responses sampled to each prompt. More than one give pass@k, and mean@k is the mean over all of them."""
    pass_metric: str = "factual"
    """The judge's measure that pass@k counts: a response is right if it is at least 1 (or true)."""

    def inactive_keys(self) -> dict[str, str]:
        counted = self.samples > 1 and self.judge is not None
        return {} if counted else {"pass_metric": "evaluate.judge and evaluate.samples over 1"}


AlarmName = Literal["kl", "entropy", "ended", "length", "overoptimization"]


class AlarmsConfig(Section):
    kl: float = Field(10.0, gt=0)
    """Rings when the mean KL of a response to the SFT policy is over this, in nats."""
    entropy: float = Field(0.1, ge=0, lt=1)
    """Rings when the entropy of a token falls below this share of the first iteration's."""
    ended: float = Field(0.5, ge=0, le=1)
    """Rings when fewer than this share of the responses end by themselves."""
    length: float = Field(2.0, gt=1)
    """Rings when responses are longer than this many times those of the first iteration."""
    overoptimization: float = Field(2.0, gt=0)
    """Rings when the judge's score is this many standard errors below its best while the reward model's has risen."""
    stop: list[AlarmName] = Field(default_factory=list)
    """Alarms that stop the run; the others warn."""


class RunConfig(Section):
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: its W&B group, and the default of its directory."""
    run_dir: str | None = None
    """Directory of the run. Empty: runs/NAME."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    stages: list[Stage] = Field(list(STAGES), min_length=1)
    """Stages to run, in order."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the run happens."""
    data: DataConfig = DataConfig()
    """The user's own files; what is left out comes from the built-in world."""
    quickstart: QuickstartConfig = QuickstartConfig()
    """The built-in world."""
    model: ModelConfig = ModelConfig()
    """The policy."""
    learners: LearnerConfig = LearnerConfig()
    """DeepSpeed ranks."""
    rollout: RolloutConfig = RolloutConfig()
    """vLLM engines."""
    scoring: ScoringConfig = ScoringConfig()
    """Actors that hold the reward model and the reference policy."""
    pretrain: PretrainConfig = PretrainConfig()
    """Next-token training on the corpus."""
    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning on demonstrations."""
    collect: CollectConfig = CollectConfig()
    """Sampling responses and ranking them."""
    reward_model: RewardModelConfig = RewardModelConfig()
    """Training the reward model."""
    rewards: RewardsConfig = RewardsConfig()
    """What PPO is rewarded for."""
    ppo: PPOConfig = PPOConfig()
    """Reinforcement learning against the reward model."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Every stage's model on held-out prompts."""
    alarms: AlarmsConfig = AlarmsConfig()
    """Signs of trouble that PPO is watched for."""
    serve: ServeConfig = ServeConfig()
    """The chat endpoint."""

    @property
    def directory(self) -> Path:
        return Path(self.run_dir or f"runs/{self.name}").absolute()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.stages != sorted(set(self.stages), key=STAGES.index):
            raise ValueError(f"stages: give each at most once and in this order: {', '.join(STAGES)}")
        if self.pretrain.sequence_length > self.model.context:
            raise ValueError(
                f"pretrain.sequence_length={self.pretrain.sequence_length} is over model.context={self.model.context}"
            )
        if self.pretrain.sequence_length > self.learners.micro_batch_tokens:
            raise ValueError(
                f"pretrain.sequence_length={self.pretrain.sequence_length} is over learners.micro_batch_tokens="
                f"{self.learners.micro_batch_tokens}; a sequence must fit a micro-batch"
            )
        for key, limit in (
            ("ppo.max_response_tokens", self.ppo.max_response_tokens),
            ("collect.max_response_tokens", self.collect.max_response_tokens),
            ("evaluate.max_response_tokens", self.evaluate.max_response_tokens),
        ):
            if limit >= self.model.context:
                raise ValueError(
                    f"{key}={limit} leaves no room for a prompt in model.context={self.model.context}"
                )
        return self


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Reads a YAML file, applies `dotted.key=value` overrides (values are YAML; none: the default), validates. Raises
    UserError. Without a file there are the defaults and the overrides."""
    path = Path(path or os.devnull)
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: no such config file; the recipes are in configs/")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(fault, 'problem', fault)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override {override!r}: expected dotted.key=value, for example ppo.kl_coef=0.1")
        _set(values, key.split("."), text, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as fault:
        raise UserError("\n".join(_explain(path, error) for error in fault.errors())) from None


def _set(values: dict[str, Any], keys: list[str], text: str, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {key} is a value, not a section")
    if text:
        values[keys[-1]] = yaml.safe_load(text)
    else:
        values.pop(keys[-1], None)


def _explain(path: Path, error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        found = "" if isinstance(error.get("input"), dict) else f" (found {error.get('input')!r})"
        return f"{path}: {where or 'the config'}: {error['msg'].removeprefix('Value error, ')}{found}"
    known = all_keys(RunConfig)
    *section, last = [part for part in error["loc"] if isinstance(part, str)]
    siblings = {k: k for k in known if k.split(".")[:-1] == section}
    by_leaf = {k.split(".")[-1]: k for k in known if k not in siblings} | {
        k.split(".")[-1]: k for k in siblings
    }
    near = [by_leaf[leaf] for leaf in difflib.get_close_matches(last, by_leaf, n=3, cutoff=0.5)]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"keys here: {', '.join(siblings) or ', '.join(known)}"
    )
    return f"{path}: unknown key {where}; {hint}"


def all_keys(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every dotted key of the configuration with its one-line documentation."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = " ".join((field.description or "").split())
        for section in _sections(field.annotation):
            found |= all_keys(section, f"{prefix}{name}.")
    return found


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field holds: one, or what a list or an option is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]
