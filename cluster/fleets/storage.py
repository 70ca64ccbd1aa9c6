"""Asks every node of the Ray cluster, before any stage starts, whether it sees the run directory.

Without this a run over hosts without a shared file system fails in a later stage, with a message about
a model that is missing, after its first models have been trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import UserError, one_line
from common.plugins import child_environment
from common.session import difference, refusal

ANSWER_S = 120.0
"""How long a node may take to start a worker process and answer."""


def check_run_directory(root: Path, session: str, learner_hosts: Sequence[str] = ()) -> None:
    """Raises UserError if a node of the cluster has another folder at the path of the run directory. If the
    layout names the hosts of the learners, only theirs count: other actors copy what they read
    (`cluster.fleets.model_copies`)."""
    here = ray.get_runtime_context().get_node_id()
    asked = {}
    for node in ray.nodes():
        names = (node["NodeManagerAddress"], node["NodeManagerHostname"], node["NodeName"])
        if learner_hosts and not set(names) & set(learner_hosts):
            continue
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
            environment = {"env_vars": child_environment()}
            task = ray.remote(_difference).options(
                num_cpus=0, scheduling_strategy=there, runtime_env=environment, max_retries=0
            )
            asked[task.remote(root, session)] = (
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            )
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
    # Of a node that is lost meanwhile, or busy, nobody knows; its actors check again when they start.
    for ref in ready:
        try:
            found = ray.get(ref)
        except RayError as error:
            raise UserError(
                f"host {asked[ref]} cannot run this program ({one_line(error)}); install it there as here, "
                "or submit the run with `hero submit`, which carries the code"
            ) from error
        if found:
            raise UserError(refusal(root, asked[ref], found))


def _difference(root: Path, session: str) -> str | None:
    return difference(root, session)
