"""Environment variables of libraries that reach every actor.

Actors of a run's own Ray inherit the environment of `hero run`. Those of a cluster that is already up
have the environment of `ray start` on their host, so what the user sets beside `hero run` or
`hero submit` is passed on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

PASSED_ON = ("NCCL_", "GLOO_", "HF_", "VLLM_", "TORCH_", "DEEPSPEED_", "DS_")
"""Beginnings of the names that are passed on, besides those of proxies."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OF_ONE_HOST = ("VLLM_HOST_IP",)
SET_BY_THE_PROGRAM = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "HERO_HOST_ADDRESS",
        "HERO_WORKING_DIRECTORY",
        "LOCAL_RANK",
        "LOCAL_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "RANK",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "WORLD_SIZE",
    }
)
"""What the config's other keys decide, so `cluster.env` may not."""


def passed_on(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of `environment` (this process's) that every actor gets."""
    chosen = {}
    for name, value in (os.environ if environment is None else environment).items():
        if name in SET_BY_THE_PROGRAM or name in OF_ONE_HOST:
            continue
        if name.startswith(PASSED_ON) or name.lower() in PROXIES:
            chosen[name] = value
    return chosen


def refused_reason(name: str) -> str | None:
    """Why a variable cannot be in `cluster.env`; None if it can."""
    if name in SET_BY_THE_PROGRAM:
        return "the program sets it itself, from other keys of the config"
    if name.startswith("RAY_"):
        return "Ray reads it where `ray start` and `hero` are called, so set it there"
    if not name or "=" in name or "\0" in name:
        return "that is no name of an environment variable"
    return None
