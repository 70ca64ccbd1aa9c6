"""`hero submit`, `status`, `logs`, `stop`: a run as a Ray job on a cluster that is already up.

The job carries this package's code, the user's modules that the config names
(`cluster.user_modules`) and the resolved config. Its id is made from the run's name and
directory, so the same run submitted again is the same job: it continues from the run directory, which
every node must be able to see. The job is `hero run --retries N`, which starts a failed driver again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from cluster.config import RunConfig
from cluster.config_paths import absolute_paths
from cluster.plan import check_feasible
from cluster.precision import resolve
from cluster.user_modules import carry_modules
from common.environment import passed_on
from common.errors import UserError
from common.plugins import PACKAGES, PROJECT_ROOT, USER_MODULES, WORKING_DIRECTORY

# How long a cluster's first node may take until it accepts jobs.
AGENT_SECONDS = 60
# Between SIGTERM and SIGKILL: enough to close a W&B run.
STOP_SECONDS = 60


def client(address: str | None) -> Any:
    """A client of the cluster's job server (its dashboard, http://HOST:8265)."""
    from ray.job_submission import JobSubmissionClient

    from common.ray_session import send_token

    # A cluster that was started where ~/.ray/auth_token exists requires that token.
    send_token()
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    try:
        return JobSubmissionClient(address)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{address}: no Ray job server answers there ({reason}); start one with `ray start --head` "
            "and give its dashboard's URL with --address"
        ) from None


def job_id(config: RunConfig) -> str:
    """The same id for the same run, whoever submits it."""
    return f"hero-{config.name}-{hashlib.sha256(str(config.directory).encode()).hexdigest()[:8]}"


def submit(config: RunConfig, address: str | None, retries: int = 3, command: str = "run") -> str:
    """Submits the run, or with command "rounds run" its rounds, and returns the job's id; a job that has
    ended continues under the same id.

    Raises UserError if the job is still running, or for a config that could not work.
    """
    # Cores and memory are the cluster's; files and functions are those of here.
    on_cluster = config.cluster.model_copy(update={"address": "auto"})
    # What the job takes is resolved where it runs.
    resolved, _ = resolve(config.model_copy(update={"cluster": on_cluster}))
    check_feasible(resolved)
    jobs, identity = client(address), job_id(config)
    existing = {job.submission_id: job for job in jobs.list_jobs()}
    if identity in existing:
        status = existing[identity].status
        if not status.is_terminal():
            raise UserError(
                f"job {identity} is {status.value.lower()} already; see `hero status` or "
                f"`hero stop {identity}`"
            )
        jobs.delete_job(identity)
    # On this host the job runs in this very environment, elsewhere in the one that Ray was started in.
    target = address or "127.0.0.1"
    python = "python"
    if "127.0.0.1" in target or "localhost" in target:
        python = shlex.quote(sys.executable)
    with tempfile.TemporaryDirectory(prefix="hero-job-") as folder:
        _write_working_dir(Path(folder), config)
        _submit_when_ready(
            jobs,
            entrypoint=f"exec {python} -m cluster.cli {command} config.yaml --retries {retries}",
            submission_id=identity,
            runtime_env={"working_dir": folder, "env_vars": _environment()},
            metadata={"name": config.name, "run_dir": str(config.directory)},
        )
    return identity


def _write_working_dir(folder: Path, config: RunConfig) -> None:
    """The code, the user's modules that the config names, and the resolved config with absolute paths: a
    job has another working directory."""
    ignored = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(PROJECT_ROOT / package, folder / package, ignore=ignored)
    carry_modules(folder / USER_MODULES.name)
    # Relative paths mean the directory of whoever submits.
    absolute = absolute_paths(config, Path.cwd()).model_copy(update={"run_dir": str(config.directory)})
    text = yaml.safe_dump(absolute.model_dump(mode="json"), sort_keys=False)
    (folder / "config.yaml").write_text(text)


def _submit_when_ready(jobs: Any, **job: Any) -> None:
    """Submits, and repeats for AGENT_SECONDS: a new head answers before its node accepts jobs."""
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return jobs.submit_job(**job)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise UserError(
                    f"no node of the cluster accepted the job in {AGENT_SECONDS} s; see `ray status`"
                ) from None
            time.sleep(1)


def _environment() -> dict[str, str]:
    """What the job needs from the environment of whoever submits it."""
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), WORKING_DIRECTORY: os.getcwd(), **passed_on()}
    for name, value in os.environ.items():
        if name.startswith("WANDB_"):
            variables[name] = value
    return variables


def _our_jobs(jobs: Any) -> list[Any]:
    """Jobs that `hero submit` made, oldest first."""
    ours = [job for job in jobs.list_jobs() if (job.submission_id or "").startswith("hero-")]
    return sorted(ours, key=lambda job: job.start_time or 0)


def find(jobs: Any, identity: str | None) -> Any:
    """The named job, or the newest of ours. Raises UserError if there is none."""
    ours = _our_jobs(jobs)
    if identity is None:
        if not ours:
            raise UserError("no hero job on this cluster yet; use `hero submit`")
        return ours[-1]
    for job in ours:
        if job.submission_id == identity:
            return job
    raise UserError(f"no job {identity}; `hero status` lists them")


def status(address: str | None) -> list[tuple[str, str, str, str]]:
    """(id, status, run directory, message) of our jobs, newest last."""
    rows = []
    for job in _our_jobs(client(address)):
        run_dir = (job.metadata or {}).get("run_dir", "")
        rows.append((job.submission_id, job.status.value, run_dir, job.message or ""))
    return rows


def logs(identity: str | None, address: str | None, follow: bool, console: Console) -> None:
    """Prints a job's output; with `follow` until the job ends."""
    jobs = client(address)
    job = find(jobs, identity)
    if follow:
        asyncio.run(_follow(jobs, job, console))
    else:
        console.print(jobs.get_job_logs(job.submission_id), end="", markup=False, highlight=False)


async def _follow(jobs: Any, job: Any, console: Console) -> None:
    async for lines in jobs.tail_job_logs(job.submission_id):
        console.print(lines, end="", markup=False, highlight=False)


def stop(identity: str | None, address: str | None) -> str:
    """Stops a job and returns its id; what it has finished stays in the run directory."""
    jobs = client(address)
    job = find(jobs, identity)
    jobs.stop_job(job.submission_id)
    return str(job.submission_id)
