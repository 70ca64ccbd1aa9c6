"""Joins a Ray cluster, or starts one of our own that leaves nothing behind in the home directory."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray


def start_ray(address: str | None = None, cpus: int | None = None, object_store_gib: float = 0.25) -> bool:
    """Connects to `address` or RAY_ADDRESS; without either starts a local Ray. Returns whether it is our own."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault(
        "RAY_IGNORE_UNHANDLED_ERRORS", "1"
    )  # of calls nobody waits for any more, since another failed first
    joined = address or os.environ.get("RAY_ADDRESS")
    if joined:
        with _same_sigterm():
            ray.init(address=joined, logging_level="ERROR")
        return False
    # Ray guards a new local cluster with a token and would keep it in ~/.ray, where it changes how every later cluster
    # of this user starts. Ours lives as long as this process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with _same_sigterm():
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=int(object_store_gib * 2**30),
            logging_level="ERROR",
        )
    return True


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Ray's start-up makes SIGTERM abort the process with a stack trace; whoever handled it before does so again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None:  # set from Python, as it has to be to be set again
        signal.signal(signal.SIGTERM, before)
