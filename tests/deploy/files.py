"""Reads the files of configs/deploy, for the tests of this folder."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "configs/deploy"
RAY_KINDS = {
    "raycluster.yaml": "RayCluster",
    "rayjob.yaml": "RayJob",
    "rayservice.yaml": "RayService",
}
CONFIG_NAME = re.compile(r"configs/[\w./-]+\.ya?ml")


def manifest(name):
    """The only document of a file."""
    (document,) = yaml.safe_load_all((DEPLOY / name).read_text())
    return document


def cluster_spec(document):
    """The part that describes a Ray cluster, which each kind has elsewhere."""
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(document):
    """(name, pod) of the head and of every group of workers."""
    spec = cluster_spec(document)
    groups = [(group["groupName"], group["template"]["spec"]) for group in spec["workerGroupSpecs"]]
    return [("head", spec["headGroupSpec"]["template"]["spec"]), *groups]


def pinned(package):
    """The version that pyproject.toml pins exactly."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name, _, version = requirement.partition("==")
        if name.partition("[")[0] == package:
            return version
    raise KeyError(package)


def instructions(path):
    """(instruction, arguments) of a Dockerfile: comments left out, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    parts = [line.partition(" ") for line in joined.splitlines()]
    return [(name, arguments.strip()) for name, _, arguments in parts]
