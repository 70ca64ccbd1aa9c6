"""The configuration of one round as a run of its own: RUN/rounds/NNN with the stages sample, reward, ppo and
evaluate. Everything that the config of the rounds does not say differently stays as it is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.rounds.flags import FLAGGED
from cluster.rounds.selection import method_of
from cluster.rounds.state import policy_of
from common.run_paths import RunPaths

SAMPLING = ("sample",)
STAGES = ("sample", "reward", "ppo", "evaluate")
SERVED = "served"
"""Name of the served policy in the answers of the evaluate stage, where it is not the SFT policy."""


def round_config(
    config: RunConfig, number: int, first: Path, served: Path, rankings: Sequence[Path] = ()
) -> RunConfig:
    """`first` is the SFT policy, `served` the folder of what is served, `rankings` the files of all rounds so
    far; without any, the round can only sample."""
    run = RunPaths(config.directory)
    paths = run.round(number)
    values: dict[str, Any] = config.model_dump(mode="json")
    stages = STAGES if rankings else SAMPLING
    values |= {"stages": list(stages), "run_dir": str(paths.root), "name": f"{config.name}-round-{number}"}
    model = {key: value for key, value in values["model"].items() if key not in OWN_SIZES}
    values["model"] = {**model, "path": str(first)}
    values["data"] |= {
        "root": ".",
        "prompts": [{"path": str(paths.training_prompts)}],
        "heldout": [{"path": str(paths.comparison_prompts)}],
        "rankings": [{"path": str(path)} for path in rankings] or None,
    }
    values["sample"] |= {
        "policies": sampled_policies(config, number, first),
        "prompts": str(paths.candidates),
    }
    if method_of(config, run, number)[0] == "fisher":
        values["sample"]["reward_model"] = str(run.round(number - 1).stage("reward").model)
    # Reward model k on the held-out pairs of round j, by groups of labelers, and on what they flagged.
    values["reward_model"]["accuracy_by"] = ["round", "group", FLAGGED]
    values["reward_model"]["compare"] = [
        {"name": f"reward-{k}", "path": str(run.round(k).stage("reward").model)} for k in range(1, number)
    ]
    values["evaluate"]["policies"] = []
    if served != first:
        values["evaluate"]["policies"] = [{"name": SERVED, "path": str(served)}]
    # The pointer of RUN moves after the gate and never while PPO trains.
    values["ppo"]["promote_every"] = 0
    # `hero rounds` copies RUN with its rounds.
    values["cluster"]["mirror"] = None
    return RunConfig.model_validate(values)


OWN_SIZES = ("layers", "width", "heads", "kv_heads", "vocab_size", "tie_embeddings")
"""Of a model that is made here; one that is loaded has them."""


def sampled_policies(config: RunConfig, number: int, first: Path) -> list[dict[str, Any]]:
    """The newest policy and the one before it, with how many responses each gives to a prompt."""
    run, rounds = RunPaths(config.directory), config.rounds
    newest = policy_of(run, number - 1, first)
    earlier = rounds.previous if number > 1 else 0
    policies = [_sampled(newest, rounds.responses - earlier)]
    if earlier:
        policies.append(_sampled(policy_of(run, number - 2, first), earlier))
    return policies


def _sampled(policy: tuple[str, Path], responses: int) -> dict[str, Any]:
    return {"name": policy[0], "path": str(policy[1]), "responses": responses}
