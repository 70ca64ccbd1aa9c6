"""configs/gpu-*.yaml: `hero plan` accepts each on the cluster that it is for."""

from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from cluster.config_loader import load_config
from cluster.model_shape import policy_shape
from cluster.placement import placement
from cluster.plan import print_plan
from cluster.precision import resolve
from common.errors import UserError
from tests.deploy.files import ROOT
from tests.deploy.models import PARAMETERS, write_model, write_problems

CLUSTERS = {"gpu-1": (1, "0.5B"), "gpu-8": (8, "7B"), "gpu-32": (32, "32B")}
"""GPUs and the size of the model, by the name of the config."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders of the models, by size, and the data root."""
    root = tmp_path_factory.mktemp("models")
    folders = {size: write_model(root / size, size) for size in PARAMETERS}
    return folders, write_problems(root / "data")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 96)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2000 * 2**30))


def configured(name, files, tmp_path, *overrides):
    folders, data = files
    size = CLUSTERS[name][1]
    settings = [f"model.path={folders[size]}", f"data.root={data}", f"run_dir={tmp_path / 'run'}"]
    return load_config(ROOT / f"configs/{name}.yaml", [*settings, *overrides])


def planned(config):
    console = Console(width=140, record=True)
    print_plan(config, console)
    return console.export_text()


@pytest.mark.parametrize("name", CLUSTERS)
def test_plan_accepts_the_config_and_it_uses_every_gpu(name, files, tmp_path):
    gpus, size = CLUSTERS[name]
    config = configured(name, files, tmp_path)
    assert config.model.path
    assert policy_shape(config).parameters == PARAMETERS[size]
    text = planned(config)
    assert f"{PARAMETERS[size]:,}" in text
    resolved, _ = resolve(config)
    assert (resolved.learners.dtype, resolved.ppo.dtype, resolved.rollout.dtype) == ("bfloat16",) * 3
    used = sum(fleet.actors * fleet.gpus for fleet in placement(resolved))
    assert used == pytest.approx(gpus)


@pytest.mark.parametrize("name", CLUSTERS)
def test_config_as_it_stands_names_a_model_of_the_hub(name, monkeypatch):
    config = load_config(ROOT / f"configs/{name}.yaml", [])
    assert config.model.path == f"Qwen/Qwen2.5-{CLUSTERS[name][1]}-Instruct"
    # Where the hub cannot be reached, the plan says so in one sentence.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"model\.path=Qwen/.*no such model in the cache") as error:
        print_plan(config, Console(quiet=True))
    assert "\n" not in str(error.value)
