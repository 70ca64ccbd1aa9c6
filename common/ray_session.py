"""Joins a Ray cluster, or starts one of our own that leaves nothing behind in the home directory."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import worker
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from common.errors import FleetError, UserError, one_line
from common.logs import keep_output
from common.plugins import PROJECT_ROOT

LOG_NAME = "ray.log"
"""File of what Ray's own processes, and actors before `common.logs.log_to`, print."""

CONNECT_S = 5.0
"""How long a cluster may take to accept a connection."""

_print_worker_output = worker.print_to_stdstream


def start_ray(
    address: str | None = None,
    cpus: int | None = None,
    object_store_gib: float = 0.25,
    logs: Path | None = None,
) -> bool:
    """Connects to `address` or RAY_ADDRESS; without either starts a local Ray. Returns whether it is
    our own. `logs` is the folder for what other processes print; without it Ray prints it here. Raises
    UserError for an address where no cluster can be joined, FleetError if Ray does not start here."""
    if logs is not None:
        _keep_worker_output(logs / LOG_NAME)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # When one call of several fails, nobody waits for the others any more; Ray would print their errors.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    existing = address or os.environ.get("RAY_ADDRESS") or "local"
    if existing != "local":
        _join(existing, "cluster.address" if address else "RAY_ADDRESS")
        return False
    # Ray protects a new local cluster with a token and would keep it in ~/.ray, where it changes how
    # every later cluster of this user starts. Ours lives as long as this process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # What this process read earlier, such as the token in the home directory, is not that of this cluster.
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        with _keep_sigterm_handler():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=int(object_store_gib * 2**30),
                logging_level="ERROR",
                job_config=_job_config(),
            )
    except Exception as error:  # Ray has no class for it: on a busy machine it gives up after 30 s
        reason = one_line(error, 200)
        raise FleetError(
            f"Ray did not start on this machine ({reason}); the same command tries again"
        ) from None
    return True


def _join(address: str, setting: str) -> None:
    """Connects to a cluster. Raises UserError if none answers: Ray itself would try for more than a minute,
    and fill the terminal."""
    remedy = f"start one with `ray start --head`, or correct {setting} (without it a run starts its own Ray)"
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"{setting}={address}: expected auto or HOST:PORT")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"{setting}={address}: no Ray cluster answers there ({reason}); {remedy}"
            ) from None
    has_token = send_token()
    try:
        with _keep_sigterm_handler():
            ray.init(address=address, logging_level="ERROR", job_config=_job_config())
    except ConnectionError as error:
        reason = str(error).partition(".")[0]
        if address == "auto":
            raise UserError(f"{setting}={address}: no Ray cluster to join ({reason}); {remedy}") from None
        token = "the token here is not that of its head" if has_token else "there is no token here"
        raise UserError(
            f"{setting}={address}: something answers, but no Ray cluster that can be joined ({reason}); "
            f"either the port is not that of its head, or it asks for a token and {token}: copy "
            "~/.ray/auth_token of the head's host, or set RAY_AUTH_TOKEN"
        ) from None


def send_token() -> bool:
    """Whether this process has a token of Ray's (~/.ray/auth_token, RAY_AUTH_TOKEN), which is then sent.

    `ray start` requires it of everybody as soon as that file exists on the head, but Ray sends it by
    itself to a cluster of this host only. A cluster without tokens does not read it.
    """
    setup = logging.getLogger("ray._private.authentication.authentication_token_setup")
    level = setup.level
    setup.setLevel(logging.ERROR)  # it would warn that the cluster is protected
    try:
        return bool(maybe_enable_token_auth_if_token_available(warn_if_disabled=False))
    finally:
        setup.setLevel(level)


def _keep_worker_output(path: Path) -> None:
    """What Ray prints here for other processes goes to a file, and errors also to the terminal."""

    def keep(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        if data.get("pid") == "autoscaler":  # what a cluster of the user's does about this run
            _print_worker_output(data, ignore_prefix)
            return
        source = f"{data.get('actor_name') or data.get('task_name') or ''} {data['pid']}".strip()
        keep_output(path, source, data["lines"], is_message=data["pid"] == "raylet")

    # Ray has no public way: log_to_driver=False would hide errors too, and not its own messages.
    worker.print_to_stdstream = keep


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
