"""The scripts for Slurm and SkyPilot, and every command and config that the files of configs/deploy name."""

import os
import re
import shlex
import subprocess

import jsonschema
import pytest
import typer.main
from ray.scripts import scripts, symmetric_run

from cluster.cli import app
from tests.deploy.files import CONFIG_NAME, DEPLOY, ROOT, manifest

SLURM = DEPLOY / "slurm.sbatch"
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$RAY_AUTH_MODE" "${#RAY_AUTH_TOKEN}" "$@"
"""
# Keys of a SkyPilot task (sky/utils/schemas.py) that are used here.
SKY = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "workdir": {"type": "string"},
        "num_nodes": {"type": "integer"},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "accelerators": {"type": "string"},
                "network_tier": {"enum": ["standard", "best"]},
                "disk_size": {"type": "integer"},
            },
        },
        "volumes": {"type": "object"},
        "envs": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "secrets": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "setup": {"type": "string"},
        "run": {"type": "string"},
    },
}


def hero_arguments(command):
    """Arguments of a `hero` command as its parser takes them. Raises click's errors for those it does not."""
    program = typer.main.get_command(app)
    name, *arguments = shlex.split(command, comments=True)[1:]
    subcommand = program.commands[name]
    return subcommand.make_context(name, arguments).params


def hero_commands(text):
    """Commands on lines of a script, in comments, and over lines that are continued or folded."""
    text = re.sub(r"\\\n#?\s*", " ", text)
    text = re.sub(r">-\n\s+(hero [^\n]*)\n\s+([^\n]*)", r"\n\1 \2", text)
    found = []
    for line in text.splitlines():
        match = re.match(
            r"(?:#|-)?\s*(?:\$ )?(hero (?:run|plan|submit|serve|key|chat|logs|status|stop|scale)\b.*)",
            line.strip(),
        )
        if match:
            found.append(match.group(1))
    return found


def test_commands_are_those_of_the_program_and_configs_exist():
    number_of_commands = {}  # that of Slurm has its own test, with what the shell makes of it
    for path in DEPLOY.iterdir():
        text = path.read_text()
        for name in CONFIG_NAME.findall(text):
            assert (ROOT / name).exists(), f"{path.name}: {name}"
        commands = hero_commands(text)
        for command in commands:
            assert hero_arguments(command), f"{path.name}: {command}"
        if commands:
            number_of_commands[path.name] = len(commands)
    assert number_of_commands == {
        "raycluster.yaml": 1,
        "rayjob.yaml": 1,
        "rayservice.yaml": 1,
        "sky.yaml": 1,
    }


def test_an_unknown_option_or_command_is_noticed():
    assert hero_commands("  hero run a.yaml --retry 3\n# hero submit b.yaml\n") == [
        "hero run a.yaml --retry 3",
        "hero submit b.yaml",
    ]
    with pytest.raises(Exception, match="No such option: --retry"):
        hero_arguments("hero run a.yaml --retry 3")


def test_the_entry_points_run_the_same_config():
    job = hero_arguments(manifest("rayjob.yaml")["spec"]["entrypoint"])
    assert (ROOT / job["config"].relative_to("/opt/zero2hero")).exists()
    assert job["retries"] == 3
    assert "cluster.address=auto" in job["overrides"]


def submitted(tmp_path, *arguments):
    """(auth mode, length of the token, arguments of srun) as the batch script calls it on one node."""
    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True, exist_ok=True)
    (binaries / "activate").write_text("")
    (binaries / "srun").write_text(SRUN)
    (binaries / "srun").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_CPUS_PER_TASK": "96",
        "SLURM_GPUS_ON_NODE": "8",
        "HEAD_IP": "127.0.0.1",
    }
    command = ["bash", str(SLURM), *arguments]
    printed = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return printed[0], int(printed[1]), printed[2:]


def test_slurm_script_starts_ray_on_every_node_and_the_run_on_the_head(tmp_path):
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    mode, token_length, arguments = submitted(tmp_path, "configs/gpu-8.yaml", "seed=1")
    assert (mode, token_length) == ("token", 64)
    start = arguments[arguments.index("symmetric-run") + 1 : arguments.index("--")]
    run = arguments[arguments.index("--") + 1 :]
    assert start[start.index("--address") + 1] == "127.0.0.1:23456"
    assert start[start.index("--min-nodes") + 1] == "4"
    # What is left of them is given to `ray start`, whose parser must take it.
    options = symmetric_run.curate_and_validate_ray_start_args(start)
    started = scripts.start.make_context("start", ["--head", *options]).params
    assert (started["num_cpus"], started["num_gpus"]) == (96, 8)
    params = hero_arguments(shlex.join(run))
    assert str(params["config"]) == "configs/gpu-8.yaml"
    assert params["overrides"] == ["cluster.address=127.0.0.1:23456", "seed=1"]


def test_slurm_script_without_arguments_takes_the_large_config(tmp_path):
    _, _, arguments = submitted(tmp_path)
    assert "configs/gpu-32.yaml" in arguments


def test_sky_task_is_valid_and_its_scripts_are_shell():
    task = manifest("sky.yaml")
    jsonschema.validate(task, SKY)
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)
    commands = hero_commands(task["run"])
    assert len(commands) == 1
    starts = [line.strip() for line in task["run"].splitlines() if line.strip().startswith("ray start")]
    assert len(starts) == 2
    for start in starts:
        arguments = [argument.replace("$SKYPILOT_NUM_GPUS_PER_NODE", "8") for argument in shlex.split(start)]
        assert scripts.start.make_context("start", arguments[2:]).params["num_gpus"] == 8
