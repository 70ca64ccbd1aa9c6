"""Starts Ray and the three fleets of a run, and keeps them while stages come and go.

A fleet is started when a stage first asks for it and reused by later stages: the processes stay, their tasks and
weights change. On CPU the phases of an iteration take turns, so learners reserve the cores and the other fleets
run beside them; on GPUs every actor reserves its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.config import Decoding
from actors.weights.transport import make_transport
from cluster.config import RunConfig
from cluster.fleets.fleet import Fleet
from cluster.fleets.scale import SCALE_FILE
from common.errors import UserError
from common.files import read_json
from common.ray_session import start_ray

# Passed on to every actor: without a hub, transformers must not try the network; torch and vLLM stay terse.
QUIET = {"TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}


class FleetManager:
    """The fleets of one run."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        self.config, self.logs, self.wishes = config, root / "logs", root / SCALE_FILE
        self.transport = make_transport(config.learners.transport, root)
        self._fleets: dict[str, Fleet] = {}
        self._makers: dict[
            str, Callable[[int], dict[str, Any]]
        ] = {}  # what the i-th actor of a fleet is started with
        self._followed: dict[str, int] = {}  # the last wish for each
        self._scorers_of: tuple[str, str | None] | None = None
        # When actors were last stopped, whose room Ray takes a moment to give back: at first maybe by the death of a driver.
        self._freed = time.monotonic()

    def start(self) -> None:
        """Joins the configured Ray cluster, or starts one of this run's own."""
        self.wishes.unlink(missing_ok=True)
        start_ray(self.config.cluster.address, self.config.cluster.cpus, self.config.cluster.object_store_gib)

    def learners(self) -> Fleet:
        """DeepSpeed ranks, joined into one process group."""
        if "learner" not in self._fleets:
            settings = self.config.learners
            arguments = [
                {"rank": rank, "config": settings, "model": self.config.model}
                for rank in range(settings.ranks)
            ]
            fleet = self._start(
                "learner", "actors.learner:LearnerActor", arguments, settings.threads, settings.gpus
            )
            address, port = fleet.get([fleet.submit(0, "address")], "address")[0]
            fleet.all("join", address, port)
        return self._fleets["learner"]

    def rollouts(self, model: Path) -> Fleet:
        """vLLM engines. `model` gives the architecture; a fleet that is up already keeps its weights (see `Policy`)."""
        if "rollout" not in self._fleets:
            settings = self.config.rollout.model_copy(
                update={
                    "dtype": self.config.ppo.dtype,
                    "max_model_len": self.config.rollout.max_model_len or self.config.model.context,
                }
            )
            self._makers["rollout"] = lambda i: {
                "name": f"rollout-{i}",
                "model_path": str(model),
                "config": settings,
                "seed": self.config.seed * 1000 + i,
            }
            arguments = [self._makers["rollout"](i) for i in range(settings.actors)]
            env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
            self._start(
                "rollout", "actors.rollout:RolloutActor", arguments, settings.threads, settings.gpus, env
            )
        return self._fleets["rollout"]

    def scorers(self, reference: Path, reward: Path | None) -> Fleet:
        """Reward model and reference policy; started anew when asked for other models."""
        wanted = (str(reference.resolve()), str(reward.resolve()) if reward else None)
        if self._scorers_of != wanted:
            if "scoring" in self._fleets:
                self._fleets.pop("scoring").stop()
                self._freed = time.monotonic()
            settings = self.config.scoring
            models = {"reference": wanted[0], "reward": wanted[1], "model": self.config.model}
            argument = {**models, "config": settings, "rewards": self.config.rewards}
            self._makers["scoring"] = lambda i: argument
            arguments = [argument] * settings.actors
            self._start("scoring", "actors.scoring:ScoringActor", arguments, settings.threads, settings.gpus)
            self._scorers_of = wanted
        return self._fleets["scoring"]

    def _start(
        self,
        kind: str,
        target: str,
        arguments: list[dict[str, Any]],
        threads: int,
        gpus: float,
        env: dict[str, str] | None = None,
    ) -> Fleet:
        cpus = threads if kind == "learner" else 0
        variables = {**QUIET, "OMP_NUM_THREADS": str(threads), **(env or {})}
        options = {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}
        self._check_room(kind, cpus * len(arguments), gpus * len(arguments))
        self._fleets[kind] = Fleet(kind, target, arguments, options, self.logs, self.config.cluster)
        return self._fleets[kind]

    def heal(self) -> list[str]:
        """Replaces the actors that are dead or hang, and returns their names. Learners lose their process group with the
        first of them, so all of them are stopped, and start again when a stage asks for them."""
        names = []
        for kind, fleet in list(self._fleets.items()):
            lost = fleet.lost()
            names += [fleet.names[i] for i in lost]
            if lost and kind == "learner":
                self._fleets.pop(kind).stop()
                self._freed = time.monotonic()
            elif lost:
                for i in lost:
                    fleet.replace(i)
        return names

    def wanted(self, kind: str) -> int:
        """Actors that a fleet is to have: what `hero scale` last asked for, else what it has."""
        return (read_json(self.wishes) or {}).get(kind, self._fleets[kind].expected)

    def resize(self) -> list[str]:
        """Starts or lets go of actors as wished, takes in those that have started, and says what was done. New engines hold
        old weights: call this before a weight update."""
        told = []
        for kind in self._makers:
            fleet, count = self._fleets[kind], self.wanted(kind)
            if count == self._followed.get(kind, fleet.expected):
                count = (
                    fleet.expected
                )  # a wish is followed once, or one that cannot start would be tried for ever
            else:
                told.append(f"{kind} fleet: from {fleet.expected} to {count}")
                self._followed[kind] = count
            if count < fleet.expected:
                fleet.shrink(min(count, len(fleet)))
            while fleet.expected < count:
                fleet.grow(self._makers[kind](fleet.expected))
            told += fleet.settle()
        return told

    def _check_room(self, kind: str, cpus: float, gpus: float) -> None:
        """Refuses what Ray would wait for in silence."""
        for what, need in (("CPU", cpus), ("GPU", gpus)):
            free = ray.available_resources()
            while (
                free.get(what, 0) < need <= ray.cluster_resources().get(what, 0)
                and time.monotonic() < self._freed + 20
            ):
                time.sleep(0.5)
                free = ray.available_resources()
            if need > free.get(what, 0):
                key = "learners" if kind == "learner" else kind
                raise UserError(
                    f"the {kind} fleet needs {need:g} {what} and the Ray cluster has {free.get(what, 0):g} free of "
                    f"{ray.cluster_resources().get(what, 0):g}; lower the numbers in section {key} or add nodes"
                )

    def close(self) -> None:
        for fleet in self._fleets.values():
            fleet.stop()
        self._fleets.clear()
        self.transport.close()
        ray.shutdown()


def generate(
    rollouts: Fleet,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[int],
    decoding: Decoding,
    end_token: int,
    n: int = 1,
    seeds: Sequence[int] | None = None,
) -> list[ray.ObjectRef]:
    """Starts sampling n responses to each prompt over the whole fleet; one Samples reference per engine, in order."""
    share = -(-len(prompts) // len(rollouts))
    refs = []
    for i, start in enumerate(range(0, len(prompts), share)):
        part = slice(start, start + share)
        part_seeds = list(seeds[start * n : (start + share) * n]) if seeds is not None else None
        asked = ([list(p) for p in prompts[part]], list(prompt_ids[part]), decoding, end_token)
        refs.append(rollouts.submit(i, "generate", *asked, n=n, seeds=part_seeds))
    return refs
