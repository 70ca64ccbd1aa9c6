"""What cannot work about a layout, before anything starts. Called by `cluster.plan.check_feasible`."""

from __future__ import annotations

import os

import psutil

from cluster.config import RunConfig
from cluster.layout import (
    SECTIONS,
    gpus_each,
    groups,
    shares_learners,
    turn_takers,
)
from cluster.layout_fit import Host, NoRoomError, fit
from cluster.stage_registry import fleets_of
from common.errors import UserError
from common.hardware import count_gpus


def joins_a_cluster(config: RunConfig) -> bool:
    """Whether the run uses other machines, of which nothing is known before it starts."""
    return bool(config.cluster.address or os.environ.get("RAY_ADDRESS"))


def is_for_other_hosts(config: RunConfig) -> bool:
    """Whether the layout says nothing about this host. One without a GPU is where somebody plans for
    another; a run that starts here all the same is refused when it reserves its GPUs."""
    return joins_a_cluster(config) or (config.cluster.device == "cuda" and not count_gpus())


def this_host(config: RunConfig) -> Host:
    """What a Ray of this run's own would have."""
    cores = config.cluster.cpus or psutil.cpu_count() or 1
    gpus = count_gpus() if config.cluster.device == "cuda" else 0
    return Host("this host", cores, gpus, ("localhost", "127.0.0.1"))


def check_gpus(config: RunConfig) -> None:
    """The device of the config and the GPUs that each fleet asks for."""
    for kind in fleets_of(config.stages):
        section, gpus = SECTIONS[kind], gpus_each(config, kind)
        if gpus and config.cluster.device == "cpu":
            raise UserError(
                f"{section}.gpus={gpus:g}, but cluster.device is cpu; set cluster.device=cuda or leave it out"
            )
        if config.cluster.device == "cpu":
            continue
        given = getattr(config, section).gpus
        if given is not None and kind in turn_takers(config):
            raise UserError(
                f"{section}.gpus={given:g}, but with this cluster.layout it shares the learners' GPUs, one "
                f"each; leave {section}.gpus out"
            )
        if not gpus and kind != "scoring":
            raise UserError(
                f"cluster.device is cuda but {section}.gpus is 0; leave it out, or set cluster.device=cpu"
            )
    _check_workers(config)


def _check_workers(config: RunConfig) -> None:
    ranks, gpus = config.learners.ranks, config.learners.gpus
    if ranks > 1 and gpus is not None and 0 < gpus < 1:
        raise UserError(
            f"learners.gpus={gpus:g} with learners.ranks={ranks}: Ray would put ranks on the same GPU, where "
            "NCCL refuses them (Duplicate GPU detected); set learners.gpus=1 or learners.ranks=1"
        )
    rollout = config.rollout
    workers = f"rollout.tensor_parallel={rollout.tensor_parallel}"
    if rollout.pipeline_parallel > 1:
        workers += f" x rollout.pipeline_parallel={rollout.pipeline_parallel}"
    if rollout.gpus is not None and (
        rollout.gpus > 1 or (rollout.workers > 1 and rollout.gpus not in (0, 1))
    ):
        raise UserError(
            f"rollout.gpus={rollout.gpus:g} with {workers}: it is the number for each worker; set "
            "rollout.gpus=1 or leave it out"
        )
    if config.cluster.device == "cpu" and rollout.executor == "ray":
        raise UserError("rollout.executor=ray works on GPUs only; set rollout.executor=mp")
    if rollout.workers > 1 and rollout.executor == "mp" and _on_learners(config):
        raise UserError(
            f"rollout.executor=mp with {workers}: workers on the learners' GPUs are Ray actors; leave "
            "rollout.executor out"
        )


def check_sharing(config: RunConfig) -> None:
    """Fleets on the learners' GPUs find room there, and take turns."""
    if shares_learners(config, "scoring") and config.scoring.tensor_parallel > 1:
        raise UserError(
            f"scoring.tensor_parallel={config.scoring.tensor_parallel} on the learners' GPUs: cut models "
            "cannot move out; set scoring.tensor_parallel=1 or give the scoring actors GPUs of their own"
        )
    if "rollout" not in fleets_of(config.stages) or not shares_learners(config, "rollout"):
        return
    if config.ppo.staleness and "ppo" in config.stages:
        raise UserError(
            f"ppo.staleness={config.ppo.staleness} with engines on the learners' GPUs: rollouts cannot go on "
            "while the learners use the GPUs; set ppo.staleness=0, or cluster.layout=hybrid or apart"
        )
    rollout, ranks = config.rollout, config.learners.ranks
    workers = rollout.workers if config.cluster.device == "cuda" else 1
    if rollout.actors * workers > ranks:
        raise UserError(
            f"{rollout.actors} engines x {workers} GPUs = {rollout.actors * workers}, but the learners whose "
            f"GPUs they share have {ranks} (learners.ranks); lower rollout.actors or raise learners.ranks"
        )


def check_room(config: RunConfig) -> None:
    """A Ray of this run's own, which nobody adds hosts to, has room for everything at once."""
    if is_for_other_hosts(config):
        return
    try:
        fit(groups(config, fleets_of(config.stages)), [this_host(config)])
    except NoRoomError as error:
        raise UserError(
            f"{error}; lower the numbers in sections {', '.join(SECTIONS.values())}, share GPUs by "
            "cluster.layout, or join a cluster by cluster.address"
        ) from None


def _on_learners(config: RunConfig) -> bool:
    return config.cluster.device == "cuda" and shares_learners(config, "rollout")
