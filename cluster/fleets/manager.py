"""Starts Ray and the three fleets of a run, and keeps them while stages come and go.

The pipeline makes one manager; stages ask it for `learners()`, `rollouts(...)` and `scorers(...)`.
A fleet is started when a stage first asks for it and reused by later stages: the processes stay,
their tasks and weights change. Who runs where is the config's layout (`cluster.layout`); its placement
groups are reserved for all fleets of the run when the first of them starts
(`cluster.fleets.reservation`).

It waits for Ray in two places: the start of Ray itself, and the placement groups. It does not wait for
actors to start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.config import EngineDevices, RolloutConfig
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
from cluster.fleets.actor_options import actor_options
from cluster.fleets.environment_arguments import environment_arguments, rollout_target
from cluster.fleets.fleet import Fleet
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.lost_hosts import wait_for_hosts
from cluster.fleets.model_copies import ModelFolder
from cluster.fleets.reservation import Reservations
from cluster.fleets.reward_settings import judge_keys, reward_settings
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.fleets.scaling import ArgumentsOf, Scaling
from cluster.fleets.scoring_fleet import ScoringFleet
from cluster.fleets.storage import check_run_directory
from cluster.layout import (
    SECTIONS,
    device_of,
    executor,
    fleet_layout,
    groups,
    shares_learners,
    turn_takers,
)
from cluster.stage_registry import fleets_of
from cluster.turns import Turns
from common.environment import passed_on
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


class FleetManager:
    """The fleets of one run."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        self.config, self.paths = config, RunPaths(root)
        self._weights_directory = weights_directory(root, config.learners.weights_dir)
        self._fleets: dict[str, Fleet] = {}
        self._scorer_models: tuple[str, str | None] | None = None
        self._kinds = fleets_of(config.stages)
        self._reservations = Reservations(config.cluster.patience_s)
        self.turns = Turns(self._fleets, turn_takers(config), config.rollout.sleep_level)
        self.scaling = Scaling(config, self.paths, self._fleets)
        # Of the run directory, on a cluster whose hosts may not share it; empty on a Ray of our own.
        self._session = ""

    def start(self, stages: Sequence[str] | None = None) -> None:
        """Joins the configured Ray cluster, or starts one of this run's own. `stages` are those that will
        run; None: all of the config."""
        if stages is not None:
            self._kinds = fleets_of(stages)
        # Requests hold for one run; its config says how it starts.
        self.paths.scale.unlink(missing_ok=True)
        cluster = self.config.cluster
        is_own = start_ray(cluster.address, cluster.cpus, cluster.object_store_gib, self.paths.logs)
        self._reservations = Reservations(cluster.patience_s, is_own)
        if not is_own:
            self._session = begin_session(self.paths.root)
            check_run_directory(self.paths.root, self._session, fleet_layout(self.config, "learner").hosts)

    def learners(self) -> LearnerFleet:
        """DeepSpeed ranks, joined into one process group."""
        fleet = self._fleets.get("learner")
        if isinstance(fleet, LearnerFleet):
            return fleet
        settings = self.config.learners
        arguments = []
        for rank in range(settings.ranks):
            arguments.append(
                {
                    "rank": rank,
                    "config": settings,
                    "model": self.config.model,
                    "device": device_of(self.config, "learner"),
                }
            )
        how = self._how_to_start("learner")
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
        how = self._how_to_start("rollout")
        fleet = RolloutFleet("rollout", rollout_target(self.config), arguments, *how)
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
            "policy": self._folder(models[0]),
            "reward_model": models[1] and self._folder(models[1]),
            "model": self.config.model,
            "config": settings,
            "rewards": reward_settings(self.config, self.paths),
            "uses_reference": self.config.uses_reference,
            "device": device_of(self.config, "scoring"),
        }
        arguments = [argument] * settings.actors
        how = self._how_to_start("scoring")
        fleet = ScoringFleet("scoring", "actors.scoring:ScoringActor", arguments, *how)
        self.adopt(fleet, lambda index: argument)
        self._scorer_models = models
        return fleet

    def adopt(self, fleet: Fleet, arguments_of: ArgumentsOf | None = None) -> None:
        """Makes this manager responsible for a fleet: restarts, scale requests and the end.
        `arguments_of` gives the arguments of actors that are added; without it, the fleet keeps its
        size."""
        self._fleets[fleet.kind] = fleet
        fleet.before_call = self.turns.before(fleet.kind)
        self.turns.started(fleet.kind)
        if arguments_of is not None:
            self.scaling.arguments_of[fleet.kind] = arguments_of

    def transport_kind(self) -> Kind:
        """How weights go to the engines now: what `sync.transport` means on the hosts that are there."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        config = self.config
        weights_dir = config.learners.weights_dir
        return choose_transport(
            config.sync.transport,
            config.cluster.device,
            shares_learners(config, "rollout"),
            len(alive),
            weights_dir,
        )

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
        lost: dict[str, list[int]] = {}
        silent: set[str] = set()
        for kind, fleet in list(self._fleets.items()):
            indexes = fleet.dead_or_hung()
            names += [fleet.names[index] for index in indexes]
            silent |= fleet.nodes_of_hung()
            if indexes and kind == "learner":
                self._stop(kind)
            elif indexes:
                lost[kind] = indexes
        wait_for_hosts(silent, self.config.cluster.patience_s, self._reservations.report)
        if not lost:
            return names
        self._reservations.restore()
        # Where fleets share GPUs, those that live leave them, and the replacements start one kind after
        # the other.
        self.turns.vacate(lost)
        for kind, indexes in lost.items():
            for index in indexes:
                self._fleets[kind].restart(index)
            if kind in self.turns.takers:
                self._fleets[kind].busy()  # waits until they have started
                self.turns.vacate()
        return names

    def apply_scale_requests(self) -> list[str]:
        """Starts or removes actors as `hero scale` requested; returns what was done as messages. Called by
        the PPO stage before each weight update, because new engines hold old weights."""
        return self.scaling.apply(self._reservations)

    def close(self) -> None:
        """Stops all actors and Ray."""
        for fleet in self._fleets.values():
            fleet.stop()
        self._fleets.clear()
        # Also if another transport was used: a stage that has no learners sends files.
        FileTransport(self._weights_directory).close()
        self._reservations.release_all()
        ray.shutdown()

    def _stop(self, kind: str) -> None:
        # The groups stay reserved, for the fleet that is started in its place.
        self._fleets.pop(kind).stop()
        self.turns.ended(kind)

    def _rollout_arguments(self, model: Path, settings: RolloutConfig, index: int) -> dict[str, Any]:
        return {
            **environment_arguments(self.config),
            "name": f"rollout-{index}",
            "model_path": self._folder(str(model)),
            "config": settings,
            "seed": derived_seed(self.config.seed, Stream.ENGINES, index),
            "devices": EngineDevices(
                device_of(self.config, "rollout"),
                executor(self.config),
                shares_learners(self.config, "rollout"),
            ),
        }

    def _folder(self, model: str) -> str | ModelFolder:
        """A model for an actor that may be on a host without the run directory."""
        if not self._session or not Path(model).is_dir():
            return model
        return ModelFolder(model, ray.get_runtime_context().get_node_id())

    def _how_to_start(self, kind: str) -> tuple[Callable[[int], dict[str, Any]], Path, ClusterConfig]:
        """The arguments `options`, `logs` and `limits` of a fleet, once its groups are reserved, together
        with those of the other fleets of this run. Raises UserError or FleetError if the Ray cluster has no
        room for all of them."""
        # One after the other where they share GPUs: an engine measures the free memory when it starts.
        self.turns.vacate()
        kinds = [known for known in SECTIONS if known in (*self._kinds, kind)]
        self._reservations.reserve(groups(self.config, kinds))
        return partial(self._options, kind), self.paths.logs, self.config.cluster

    def _options(self, kind: str, index: int) -> dict[str, Any]:
        """Ray's options for one actor."""
        variables = {
            **QUIET,
            **passed_on(),
            **self.config.cluster.env,
            **child_environment(),
            SESSION: f"{self._session} {self.paths.root}",
        }
        if kind == "scoring":
            variables |= judge_keys(self.config.rewards)
        return actor_options(self.config, self._reservations, kind, index, variables)


def model_name(model: Path) -> str:
    """One name for one model: the whole path of a folder; a hub name stays as it is."""
    return str(model.resolve()) if model.is_dir() else str(model)
