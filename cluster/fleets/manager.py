"""Starts Ray and the three fleets of a run, and keeps them while stages come and go.

The pipeline makes one manager; stages ask it for `learners()`, `rollouts(...)` and `scorers(...)`.
A fleet is started when a stage first asks for it and reused by later stages: the processes stay,
their tasks and weights change. On CPU the phases of an iteration take turns, so learners reserve
the cores and the other fleets run beside them; on GPUs every actor reserves its own.

It waits for Ray in two places: the start of Ray itself, and resources that actors of a stopped
fleet have not yet returned (`_check_resources`). It does not wait for actors to start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.config import RolloutConfig
from actors.weights.ipc import IpcTransport
from actors.weights.payload import Kind
from actors.weights.transport import (
    FileTransport,
    ObjectStoreTransport,
    WeightTransport,
    choose_transport,
    weights_directory,
)
from cluster.config import ClusterConfig, RunConfig
from cluster.fleets.fleet import Fleet
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.fleets.scale import scale_requests
from cluster.fleets.scoring_fleet import ScoringFleet
from cluster.fleets.storage import check_run_directory
from common.environment import passed_on
from common.errors import UserError
from common.plugins import child_environment
from common.random_streams import Stream, derived_seed
from common.ray_session import start_ray
from common.run_paths import RunPaths
from common.session import SESSION, begin_session

# Passed on to every actor: without a hub, transformers must not try the network; torch and vLLM
# stay terse.
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}

SECTIONS = {"learner": "learners", "rollout": "rollout", "scoring": "scoring"}
"""Config section of each kind of fleet."""

ArgumentsOf = Callable[[int], dict[str, Any]]
"""Constructor arguments of the i-th actor of a fleet."""

RELEASE_S = 20.0
"""How long Ray may take to return the resources of actors that were stopped."""


class FleetManager:
    """The fleets of one run."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        self.config, self.paths = config, RunPaths(root)
        self._weights_directory = weights_directory(root, config.learners.weights_dir)
        self._fleets: dict[str, Fleet] = {}
        self._arguments_of: dict[str, ArgumentsOf] = {}
        self._scorer_models: tuple[str, str | None] | None = None
        # The scale request that was last applied, by kind of fleet.
        self._applied: dict[str, int] = {}
        # When actors were last stopped; their resources are free a moment later. At first this may
        # be the driver before this one, whose actors Ray stops after its death.
        self._stopped_at = time.monotonic()
        # Of the run directory, on a cluster whose hosts may not share it; empty on a Ray of our own.
        self._session = ""

    def start(self) -> None:
        """Joins the configured Ray cluster, or starts one of this run's own."""
        # Requests hold for one run; its config says how it starts.
        self.paths.scale.unlink(missing_ok=True)
        cluster = self.config.cluster
        is_own = start_ray(cluster.address, cluster.cpus, cluster.object_store_gib, self.paths.logs)
        if not is_own:
            self._session = begin_session(self.paths.root)
            check_run_directory(self.paths.root, self._session)

    def learners(self) -> LearnerFleet:
        """DeepSpeed ranks, joined into one process group."""
        fleet = self._fleets.get("learner")
        if isinstance(fleet, LearnerFleet):
            return fleet
        settings = self.config.learners
        arguments = []
        for rank in range(settings.ranks):
            arguments.append({"rank": rank, "config": settings, "model": self.config.model})
        how = self._how_to_start("learner", settings.ranks, settings.threads, settings.gpus)
        fleet = LearnerFleet("learner", "actors.learner:LearnerActor", arguments, *how)
        # Before `join`, so that its actors are stopped if one of them fails there.
        self.adopt(fleet)
        fleet.join()
        return fleet

    def rollouts(self, model: Path) -> RolloutFleet:
        """vLLM engines. `model` gives the architecture; a fleet that is up already keeps its
        weights (see `cluster.rl.weight_sync`)."""
        fleet = self._fleets.get("rollout")
        if isinstance(fleet, RolloutFleet):
            return fleet
        max_model_len = self.config.rollout.max_model_len or self.config.model.context
        settings = self.config.rollout.model_copy(update={"max_model_len": max_model_len})
        arguments_of = partial(self._rollout_arguments, model, settings)
        arguments = [arguments_of(index) for index in range(settings.actors)]
        # The engine runs inside the actor's process: a weight update is then a plain function call.
        env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        how = self._how_to_start("rollout", settings.actors, settings.threads, settings.gpus, env)
        fleet = RolloutFleet("rollout", "actors.rollout:RolloutActor", arguments, *how)
        self.adopt(fleet, arguments_of)
        return fleet

    def scorers(self, reference: Path, reward_model: Path | None) -> ScoringFleet:
        """Reward sources and, where something uses it, the reference policy; the actors are stopped
        and new ones started when the models change."""
        models: tuple[str, str | None] = (model_name(reference), None)
        if reward_model is not None:
            models = (models[0], model_name(reward_model))
        fleet = self._fleets.get("scoring")
        if isinstance(fleet, ScoringFleet):
            if models == self._scorer_models:
                return fleet
            self._stop("scoring")
        settings = self.config.scoring
        argument = {
            "policy": models[0],
            "reward_model": models[1],
            "model": self.config.model,
            "config": settings,
            "rewards": self.config.rewards,
            "uses_reference": self.config.uses_reference,
        }
        arguments = [argument] * settings.actors
        how = self._how_to_start("scoring", settings.actors, settings.threads, settings.gpus)
        fleet = ScoringFleet("scoring", "actors.scoring:ScoringActor", arguments, *how)
        self.adopt(fleet, lambda index: argument)
        self._scorer_models = models
        return fleet

    def adopt(self, fleet: Fleet, arguments_of: ArgumentsOf | None = None) -> None:
        """Makes this manager responsible for a fleet: restarts, scale requests and the end.
        `arguments_of` gives the arguments of actors that are added; without it, the fleet keeps its
        size."""
        self._fleets[fleet.kind] = fleet
        if arguments_of is not None:
            self._arguments_of[fleet.kind] = arguments_of

    def transport_kind(self) -> Kind:
        """How weights go to the engines now: what `sync.transport` means on the hosts that are there."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        config = self.config
        weights_dir = config.learners.weights_dir
        return choose_transport(config.sync.transport, config.cluster.device, False, len(alive), weights_dir)

    def bucket_transport(self, kind: Kind) -> WeightTransport:
        """The transport that sends buckets of this kind. Of broadcast, which needs learners, the one for
        weights that the driver sends."""
        max_bytes, adapters_only = self.config.sync.bucket_mib << 20, self.config.sync.adapters_only
        if kind == "ipc":
            return IpcTransport(max_bytes, adapters_only)
        if kind == "file":
            return FileTransport(self._weights_directory, max_bytes, adapters_only)
        # A bucket that does not fit beside the one before it would be written to a disk.
        if not self.config.cluster.address:
            max_bytes = min(max_bytes, int(self.config.cluster.object_store_gib * 2**30 / 4))
        return ObjectStoreTransport(max_bytes, adapters_only)

    def replace_lost(self) -> list[str]:
        """Restarts the actors that are dead or hung, and returns their names. Called by the
        pipeline after a stage has failed. Learners lose their process group with the first of them,
        so all of them are stopped, and start again when a stage asks for them."""
        names = []
        for kind, fleet in list(self._fleets.items()):
            lost = fleet.dead_or_hung()
            names += [fleet.names[index] for index in lost]
            if lost and kind == "learner":
                self._stop(kind)
                continue
            for index in lost:
                fleet.restart(index)
        return names

    def target_size(self, kind: str) -> int:
        """Number of actors that a fleet is to have: what `hero scale` last requested, else what it
        has."""
        return scale_requests(self.paths).get(kind, self._fleets[kind].expected_size)

    def apply_scale_requests(self) -> list[str]:
        """Starts or removes actors as requested, admits those that have started, and returns what
        was done as messages. Called by the PPO stage before each weight update, because new engines
        hold old weights."""
        messages = []
        for kind, arguments_of in self._arguments_of.items():
            fleet, target = self._fleets[kind], self.target_size(kind)
            if target == self._applied.get(kind, fleet.expected_size):
                # A request is applied once: actors that cannot start would be tried again in every
                # iteration.
                target = fleet.expected_size
            else:
                messages.append(f"{kind} fleet: from {fleet.expected_size} to {target}")
                self._applied[kind] = target
            if target < fleet.expected_size:
                fleet.remove(min(target, len(fleet)))
            while fleet.expected_size < target:
                fleet.add(arguments_of(fleet.expected_size))
            messages += fleet.admit_started()
        return messages

    def close(self) -> None:
        """Stops all actors and Ray."""
        for fleet in self._fleets.values():
            fleet.stop()
        self._fleets.clear()
        # Also if another transport was used: a stage that has no learners sends files.
        FileTransport(self._weights_directory).close()
        ray.shutdown()

    def _stop(self, kind: str) -> None:
        self._fleets.pop(kind).stop()
        self._stopped_at = time.monotonic()

    def _rollout_arguments(self, model: Path, settings: RolloutConfig, index: int) -> dict[str, Any]:
        return {
            "name": f"rollout-{index}",
            "model_path": str(model),
            "config": settings,
            "seed": derived_seed(self.config.seed, Stream.ENGINES, index),
        }

    def _how_to_start(
        self, kind: str, size: int, threads: int, gpus: float, env: dict[str, str] | None = None
    ) -> tuple[dict[str, Any], Path, ClusterConfig]:
        """The arguments `options`, `logs` and `limits` of a fleet of `size` actors. Raises UserError
        if the Ray cluster has no room for all of them."""
        # On CPU the phases of an iteration take turns. Were the cores reserved for each fleet, three
        # times as many would be needed as are ever at work.
        cpus = 0
        if kind == "learner":
            cpus = threads
        self._check_resources(kind, "CPU", cpus * size)
        self._check_resources(kind, "GPU", gpus * size)
        variables = {
            **QUIET,
            **passed_on(),
            **self.config.cluster.env,
            **child_environment(),
            "OMP_NUM_THREADS": str(threads),
            **(env or {}),
            SESSION: f"{self._session} {self.paths.root}",
        }
        options = {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}
        return options, self.paths.logs, self.config.cluster

    def _check_resources(self, kind: str, resource: str, needed: float) -> None:
        """Raises UserError for a fleet that Ray would otherwise wait for without a message."""
        total = ray.cluster_resources().get(resource, 0)
        free = ray.available_resources().get(resource, 0)
        while free < needed <= total and time.monotonic() < self._stopped_at + RELEASE_S:
            time.sleep(0.5)
            free = ray.available_resources().get(resource, 0)
        if needed > free:
            raise UserError(
                f"the {kind} fleet needs {needed:g} {resource} and the Ray cluster has {free:g} free "
                f"of {total:g}; lower the numbers in section {SECTIONS[kind]} or add nodes"
            )


def model_name(model: Path) -> str:
    """One name for one model: the whole path of a folder; a hub name stays as it is."""
    return str(model.resolve()) if model.is_dir() else str(model)
