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
from ray.job_config import JobConfig

from common.plugins import PROJECT_ROOT


def start_ray(address: str | None = None, cpus: int | None = None, object_store_gib: float = 0.25) -> bool:
    """Connects to `address` or RAY_ADDRESS; without either starts a local Ray. Returns whether it is
    our own."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # When one call of several fails, nobody waits for the others any more; Ray would print their errors.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    existing = address or os.environ.get("RAY_ADDRESS")
    if existing:
        with _keep_sigterm_handler():
            ray.init(address=existing, logging_level="ERROR", job_config=_job_config())
        return False
    # Ray protects a new local cluster with a token and would keep it in ~/.ray, where it changes how
    # every later cluster of this user starts. Ours lives as long as this process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with _keep_sigterm_handler():
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=int(object_store_gib * 2**30),
            logging_level="ERROR",
            job_config=_job_config(),
        )
    return True


def _job_config() -> JobConfig:
    """Puts this project's packages first on the import path of every worker, and leaves out the
    directory of whoever starts the run, which Ray would put there: a file `serve.py` in it would hide
    the package. `common.plugins` finds the user's modules by other means."""
    # Ray has no public option for it. It reads _client_job for nothing else in this process.
    return JobConfig(_client_job=True, _py_driver_sys_path=[str(PROJECT_ROOT)])


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restores the handler of SIGTERM: Ray's start-up installs one that aborts with a stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if handler is not None:  # None: it was not set from Python, so Python cannot set it again
        signal.signal(signal.SIGTERM, handler)
