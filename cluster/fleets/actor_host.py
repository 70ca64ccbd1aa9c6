"""The Ray actor that every fleet consists of: redirects its output to a log file, then hosts one
plain object.

The hosted classes (`actors.learner`, `actors.rollout`, `actors.scoring`) do not know Ray. Their
modules are imported after the redirection, because vLLM and DeepSpeed print while they are
imported.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from pathlib import Path
from typing import Any

import ray

from cluster.fleets.heartbeat import HeartbeatSender
from cluster.fleets.model_copies import local_models
from common.errors import HeroError, StartError, is_device_failure, one_line
from common.logs import log_to
from common.network import announce_host, host_address
from common.plugins import load_object
from common.session import check_session, sees_run_directory


class ActorHost:
    """Hosts `target` ("module:Class") made with `arguments`. `heartbeat_key` is where its heartbeat
    is stored. `needs_run_directory`: it cannot work on a host that does not see the driver's.

    If the target cannot be made, the actor stays and answers every call with the error. Were it
    raised here, Ray would report a dead actor without the error's class, as if its process had been
    killed; and a dead actor is started again.
    """

    def __init__(
        self,
        name: str,
        target: str,
        log: str,
        arguments: dict[str, Any],
        heartbeat_key: str,
        needs_run_directory: bool = False,
    ) -> None:
        self.name = name
        self._busy_s = 0.0
        self._heartbeat = HeartbeatSender(heartbeat_key)
        self._start_error: HeroError | None = None
        # Before anything opens a connection, and for the processes that the hosted object starts.
        announce_host(ray.util.get_node_ip_address())
        try:
            # Before a log is written into a folder that is not the run's.
            is_shared = sees_run_directory()
            if is_shared:
                log_to(Path(log), name)
            elif needs_run_directory:
                check_session()
            # Without it, Ray brings what is printed here to the driver (`common.ray_session.LOG_NAME`).
            print(f"{name}: host {socket.gethostname()} ({host_address()}), process {os.getpid()}")
            # Loading a model counts as a call, so `cluster.call_timeout_s` bounds it too.
            with self._heartbeat.during("start"), local_models(arguments, is_shared) as local:
                self.hosted = load_object(target)(**local)
        except HeroError as error:
            traceback.print_exc()
            self._start_error = error
        except Exception as error:
            traceback.print_exc()
            what = f"{type(error).__name__}: {one_line(error)}"
            self._start_error = StartError(f"{name} failed to start ({what}); see {log}")

    def __repr__(self) -> str:
        return self.name  # Ray puts it before every line that it brings to the driver

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the hosted object; object references among the arguments arrive as
        their values."""
        self.check_started()
        started = time.perf_counter()
        try:
            with self._heartbeat.during(method):
                return getattr(self.hosted, method)(*args, **kwargs)
        except Exception as error:
            traceback.print_exc()  # into this actor's log; the driver prints one line
            if is_device_failure(error):
                # A dead actor is replaced; one that fails and lives would end the run.
                raise SystemExit(f"{method} failed on its device ({one_line(error)})") from error
            raise
        finally:
            self._busy_s += time.perf_counter() - started

    def check_started(self) -> None:
        """Raises the error of the start, if it failed."""
        if self._start_error is not None:
            # A new one: each raise adds to an error's traceback, and calls may be many.
            raise type(self._start_error)(str(self._start_error))

    def busy(self) -> float:
        """Seconds spent in calls so far; the rest of an actor's time is waiting for work."""
        return self._busy_s
