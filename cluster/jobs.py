"""`hero submit`, `status`, `logs`, `stop`: a run as a Ray job on a cluster that is already up.

The job carries this package's code and the resolved config. Its id is made from the run's name and directory, so the
same run submitted again is the same job: it continues from the run directory, which every node must be able to see. A
driver that is killed, or fails for no fault of the user's, is started again and goes on from there too.
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
from common.errors import UserError

PACKAGES = ("common", "cluster", "actors", "learners", "serve")
AGENT_SECONDS = 60  # for a cluster's first node to be ready for jobs
STOP_SECONDS = 60  # between SIGTERM and SIGKILL: enough to end a W&B run
# Ends with the run, and with what another start would not mend: 2 is bad input, 130 a stop that was asked for.
RETRYING = """trap stopped=1 TERM
for turn in {turns}; do
  [ $turn = 0 ] || echo "the driver ended with exit code $code; start $turn of {retries} after it"
  {command}
  code=$?
  [ "$stopped" ] && break
  case $code in 0|2|130) break;; esac
done
exit $code"""


def client(address: str | None) -> Any:
    """A client of the cluster's job server (its dashboard, http://HOST:8265)."""
    # A cluster that was started where ~/.ray/auth_token exists asks for that token. A client sends it only if told to,
    # and reads that when ray is first imported.
    if "RAY_AUTH_MODE" not in os.environ and (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_MODE"] = "token"
    from ray.job_submission import JobSubmissionClient

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    try:
        return JobSubmissionClient(address)
    except Exception as fault:
        raise UserError(
            f"{address}: no Ray job server answers there ({str(fault).splitlines()[0]}); start one with `ray start --head` "
            "and give its dashboard's URL with --address"
        ) from None


def job_id(config: RunConfig) -> str:
    """The same for the same run, whoever submits it."""
    return f"hero-{config.name}-{hashlib.sha256(str(config.directory).encode()).hexdigest()[:8]}"


def submit(config: RunConfig, address: str | None, retries: int = 3) -> str:
    """Submits the run; one that has ended is continued under the same id. Its driver is started again up to `retries` times.
    Returns the id."""
    jobs, identity = client(address), job_id(config)
    known = {job.submission_id: job for job in jobs.list_jobs()}
    if identity in known:
        if not known[identity].status.is_terminal():
            raise UserError(
                f"job {identity} is {known[identity].status.value.lower()} already; see `hero status` or `hero stop {identity}`"
            )
        jobs.delete_job(identity)
    data = config.data.model_copy(update={"root": str(Path(config.data.root).expanduser().absolute())})
    config = config.model_copy(update={"run_dir": str(config.directory), "data": data})
    with tempfile.TemporaryDirectory(prefix="hero-job-") as folder:
        root = Path(__file__).resolve().parent.parent
        for package in PACKAGES:
            shutil.copytree(
                root / package, Path(folder) / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        (Path(folder) / "config.yaml").write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        )
        # On this host the job runs in this very environment; elsewhere in the one that Ray was started in.
        local = any(host in (address or "127.0.0.1") for host in ("127.0.0.1", "localhost"))
        python = shlex.quote(sys.executable) if local else "python"
        turns, command = " ".join(map(str, range(retries + 1))), f"{python} -m cluster.cli run config.yaml"
        _submit_patiently(
            jobs,
            entrypoint=RETRYING.format(turns=turns, retries=retries, command=command),
            submission_id=identity,
            runtime_env={"working_dir": folder, "env_vars": _environment()},
            metadata={"name": config.name, "run_dir": str(config.directory)},
        )
    return identity


def _submit_patiently(jobs: Any, **job: Any) -> None:
    """A head that has just started answers before its node can take a job: asks again for a while."""
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return jobs.submit_job(**job)
        except RuntimeError as fault:
            if "No available agent" not in str(fault):
                raise
            if time.monotonic() > deadline:
                raise UserError(
                    f"no node of the cluster took the job in {AGENT_SECONDS} s; see `ray status`"
                ) from None
            time.sleep(1)


def _environment() -> dict[str, str]:
    """What the job needs from the environment of whoever submits it."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if k.startswith("WANDB_") or k in ("HF_HOME", "HF_TOKEN")
    }
    return {**kept, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}


def find(jobs: Any, identity: str | None) -> Any:
    """The named job, or the newest of ours."""
    ours = [j for j in jobs.list_jobs() if j.submission_id and j.submission_id.startswith("hero-")]
    chosen = (
        [j for j in ours if j.submission_id == identity]
        if identity
        else sorted(ours, key=lambda j: j.start_time or 0)
    )
    if not chosen:
        raise UserError(
            f"no job {identity}; `hero status` lists them"
            if identity
            else "no hero job on this cluster yet; use `hero submit`"
        )
    return chosen[-1]


def status(address: str | None) -> list[tuple[str, str, str, str]]:
    """(id, status, run directory, message) of our jobs, newest last."""
    jobs = client(address)
    ours = [j for j in jobs.list_jobs() if j.submission_id and j.submission_id.startswith("hero-")]
    ours.sort(key=lambda j: j.start_time or 0)
    return [
        (j.submission_id, j.status.value, (j.metadata or {}).get("run_dir", ""), j.message or "")
        for j in ours
    ]


def logs(identity: str | None, address: str | None, follow: bool, console: Console) -> None:
    """Prints a job's output, and goes on while it runs if asked to."""
    jobs = client(address)
    job = find(jobs, identity)
    if not follow:
        console.print(jobs.get_job_logs(job.submission_id), end="", markup=False, highlight=False)
        return

    async def tail() -> None:
        async for lines in jobs.tail_job_logs(job.submission_id):
            console.print(lines, end="", markup=False, highlight=False)

    asyncio.run(tail())


def stop(identity: str | None, address: str | None) -> str:
    """Asks a job to stop; what it has finished stays in the run directory."""
    jobs = client(address)
    job = find(jobs, identity)
    jobs.stop_job(job.submission_id)
    return str(job.submission_id)
