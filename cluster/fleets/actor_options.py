"""Ray's options for one actor: its place in the layout, and the variables of its process."""

from __future__ import annotations

from typing import Any

from cluster.config import RunConfig
from cluster.fleets.reservation import Reservations
from cluster.layout import SECTIONS, device_of, executor, place


def actor_options(
    config: RunConfig, reservations: Reservations, kind: str, index: int, variables: dict[str, str]
) -> dict[str, Any]:
    """For actor `index` of a fleet whose groups are reserved, with further environment variables."""
    device = device_of(config, kind)
    variables = {**variables, "OMP_NUM_THREADS": str(getattr(config, SECTIONS[kind]).threads)}
    if device == "cpu":
        # Ray hides no GPU from an actor that asks for none.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if kind == "learner":
        variables["DS_ACCELERATOR"] = device
    if kind == "rollout":
        # The engine runs inside the actor's process: a weight update is then a plain function call.
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0}
    where = place(config, kind, index)
    if where is not None:
        options = reservations.options(where)
        if kind == "rollout" and executor(config) == "ray":
            bundles = [str(bundle) for bundle in reservations.bundles(where)]
            variables["VLLM_RAY_BUNDLE_INDICES"] = ",".join(bundles)
            variables["VLLM_RAY_PER_WORKER_GPUS"] = f"{where.gpus:g}"
    return {**options, "runtime_env": {"env_vars": variables}}
