"""The Dockerfile: instructions, sources, versions; and docker's own check where there is a docker."""

import fnmatch
import shutil
import subprocess
import tomllib

import pytest

from tests.deploy.files import DEPLOY, ROOT, instructions, pinned

DOCKERFILE = DEPLOY / "Dockerfile"
KNOWN = {
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "LABEL",
    "RUN",
    "SHELL",
    "USER",
    "WORKDIR",
}


def test_instructions():
    parsed = instructions(DOCKERFILE)
    assert {name for name, _ in parsed} <= KNOWN
    assert parsed[0][0] == "FROM"
    names = [name for name, _ in parsed]
    assert names.count("CMD") == 1
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN"), "RUN needs root"
    for name, arguments in parsed:
        if name == "RUN":
            script = arguments.removeprefix("--mount=type=cache,target=/root/.cache/pip ")
            subprocess.run(["bash", "-n", "-c", script], check=True)


def test_copied_sources_exist_and_are_in_the_build_context():
    patterns = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    included = [line.removeprefix("!") for line in patterns if line.startswith("!")]
    copied = []
    for name, arguments in instructions(DOCKERFILE):
        if name == "COPY":
            *sources, _ = arguments.split()
            copied += sources
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in included), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(copied)


def test_versions_and_extras_are_those_of_the_project():
    text = DOCKERFILE.read_text()
    assert f"torch=={pinned('torch')}" in text
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"cpu", "gpu"} <= set(extras)


def test_docker_accepts_it():
    """`docker build --check` reads the file as a build does, and builds nothing."""
    if not shutil.which("docker"):
        pytest.skip("docker is not installed")
    if subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode:
        pytest.skip("docker has no buildx here, which makes the check")
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no docker daemon answers")
    command = ["docker", "build", "--check", "-f", str(DOCKERFILE), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
