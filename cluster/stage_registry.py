"""The stages of a run, in their order: one row for each. Everything that depends on a stage asks
this table.

A new stage is one module with `run(context) -> results` and one row here (and a section of
`RunConfig` if it has keys of its own). The module is imported when the stage runs: it may need Ray
and torch, and this table must not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.plugins import load_object


@dataclass(frozen=True)
class StageSpec:
    """What the rest of the program knows about a stage."""

    name: str
    """Its name in `stages` of the config, and its folder in the run directory."""
    title: str
    """What the stage makes, as the report shows it."""
    run: str
    """module:function of `run(context) -> results`."""
    reads: tuple[str, ...] = ()
    """Kinds of data that the stage takes from section data of the config, or else from the
    quickstart's generator. The rankings are not among them: without a file of the user's they come
    from the collect stage."""
    depends_on: tuple[str, ...] = ()
    """Sections and keys of the config that the result depends on, beside its data and those of
    EVERY_STAGE. A run does not go on with a stage when one of them has changed
    (`cluster.run.stage_inputs`)."""
    fleets: tuple[str, ...] = ("learner",)
    """Kinds of actors that it uses."""
    result: str = "model"
    """File or folder in the stage's own that later stages read."""
    exports_policy: bool = False
    """Whether STAGE/model is a policy, which the evaluate stage can sample from."""
    from_sft: bool = False
    """Whether that policy is made from the SFT policy, and so is an alternative to the others that are."""
    is_default: bool = True
    """Whether it is among the stages of a config that names none."""

    def load(self) -> Callable[[Any], dict[str, Any]]:
        """Imports the stage's module and returns its `run`."""
        runner: Callable[[Any], dict[str, Any]] = load_object(self.run)
        return runner


STAGE_SPECS = (
    StageSpec(
        name="pretrain",
        title="tokenizer and language model",
        run="cluster.stages.pretrain:run",
        reads=("corpus",),
        depends_on=("pretrain", "learners.dtype", "data.documents"),
        exports_policy=True,
    ),
    StageSpec(
        name="sft",
        title="policy fine-tuned on demonstrations",
        run="cluster.stages.sft:run",
        reads=("demonstrations",),
        depends_on=("sft", "learners.dtype", "data.split_key"),
        exports_policy=True,
    ),
    StageSpec(
        name="collect",
        title="ranked responses",
        run="cluster.stages.collect:run",
        reads=("prompts",),
        depends_on=("collect", "rollout.dtype"),
        fleets=("rollout",),
        result="rankings.jsonl",
    ),
    StageSpec(
        name="sample",
        title="responses of several policies",
        run="cluster.stages.sample:run",
        depends_on=("sample", "rollout.dtype"),
        fleets=("rollout", "scoring"),
        result="responses.jsonl",
        is_default=False,
    ),
    StageSpec(
        name="reward",
        title="reward model",
        run="cluster.stages.reward:run",
        depends_on=("reward_model", "learners.dtype", "data.split_key", "data.rankings"),
    ),
    StageSpec(
        name="best_of_n",
        title="policy fine-tuned on the best of n responses",
        run="cluster.stages.best_of_n:run",
        reads=("prompts",),
        depends_on=(
            *("best_of_n", "rewards", "rollout.dtype", "scoring.dtype", "learners.dtype"),
            *("reward_model.path", "reward_model.chat_template", "data.split_key"),
        ),
        fleets=("learner", "rollout", "scoring"),
        exports_policy=True,
        from_sft=True,
        is_default=False,
    ),
    StageSpec(
        name="dpo",
        title="policy trained by DPO",
        run="cluster.stages.dpo:run",
        depends_on=("dpo", "learners.dtype", "data.split_key", "data.rankings"),
        exports_policy=True,
        from_sft=True,
        is_default=False,
    ),
    StageSpec(
        name="ppo",
        title="policy trained by PPO",
        run="cluster.stages.ppo:run",
        reads=("prompts", "heldout"),
        depends_on=(
            *("rewards", "environment", "ppo", "rollout.dtype", "scoring.dtype", "data.corpus"),
            *("reward_model.path", "reward_model.chat_template"),
        ),
        fleets=("learner", "rollout", "scoring"),
        exports_policy=True,
        from_sft=True,
    ),
    StageSpec(
        name="evaluate",
        title="every policy on held-out prompts",
        run="cluster.stages.evaluate:run",
        reads=("heldout",),
        depends_on=("evaluate", "environment", "rewards"),
        fleets=("rollout", "scoring"),
        result="results.json",
    ),
)
# What every stage's result depends on.
EVERY_STAGE = ("seed", "model", "data.deduplicate", "data.overlong")

WITHOUT_EFFECT = (
    "model.attention",
    "model.gradient_checkpointing",
    "pretrain.checkpoint_every",
    "sft.checkpoint_every",
    "reward_model.checkpoint_every",
    "best_of_n.checkpoint_every",
    "dpo.checkpoint_every",
    "environment.step_timeout_s",
    "environment.workers",
    "environment.threads",
    "rewards.quarantine_share",
    "rewards.sources.retries",
    "rewards.sources.timeout_s",
    "rewards.sources.workers",
    "rewards.sources.concurrency",
    "rewards.sources.batch_size",
    "rewards.sources.cache",
    "rewards.sources.api_key_env",
    "ppo.evaluate_every",
    "ppo.checkpoint_every",
    "ppo.checkpoint_minutes",
    "ppo.keep_checkpoints",
    "ppo.publish_every",
    "ppo.promote_every",
    "ppo.max_logprob_error",
)
"""Keys inside those sections that change how a stage works, and how often it writes something, but
not its result: somebody changes them to get past a failure, and the work until then must count."""

# Names of the stages in their order.
STAGES = tuple(spec.name for spec in STAGE_SPECS)
DEFAULT_STAGES = tuple(spec.name for spec in STAGE_SPECS if spec.is_default)


def stage_spec(name: str) -> StageSpec:
    """The row of a stage; `name` is one of STAGES."""
    return STAGE_SPECS[STAGES.index(name)]


def fleets_of(stages: Sequence[str]) -> tuple[str, ...]:
    """Kinds of actors that these stages use."""
    used = [kind for stage in stages for kind in stage_spec(stage).fleets]
    return tuple(kind for kind in ("learner", "rollout", "scoring") if kind in used)


def stages_from(name: str) -> tuple[str, ...]:
    """The stage and all that come after it."""
    return STAGES[STAGES.index(name) :]


def policy_stages() -> tuple[str, ...]:
    """Stages whose model is a policy, in their order."""
    return tuple(spec.name for spec in STAGE_SPECS if spec.exports_policy)
