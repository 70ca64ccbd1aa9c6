"""configs/gpu-*.yaml: `hero plan` accepts each on the cluster it is for, and its phases fit the GPUs."""

from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from cluster.config_loader import load_config
from cluster.gpu_memory import engine_gpu_memory, learner_gpu_memory, scoring_gpu_memory
from cluster.layout import groups
from cluster.memory_estimate import GIB, largest_task
from cluster.model_shape import policy_shape
from cluster.plan import print_plan
from cluster.precision import resolve
from cluster.stage_registry import fleets_of
from common.errors import UserError
from tests.deploy.files import ROOT
from tests.deploy.models import PARAMETERS, write_model, write_problems

CONFIGS = {
    "gpu-1": (1, "0.5B", 24e9),
    "gpu-8": (8, "7B", 80e9),
    "gpu-32": (32, "32B", 80e9),
    "gpu-32-72b": (32, "72B", 80e9),
}
"""GPUs, size of the model, and bytes of each GPU, by the name of the config."""


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
    settings = [f"model.path={folders[CONFIGS[name][1]]}", f"data.root={data}", f"run_dir={tmp_path / 'run'}"]
    return load_config(ROOT / f"configs/{name}.yaml", [*settings, *overrides])


def planned(config):
    console = Console(width=140, record=True)
    print_plan(config, console)
    return console.export_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_plan_accepts_the_config_and_it_uses_every_gpu(name, files, tmp_path):
    gpus, size, _ = CONFIGS[name]
    config = configured(name, files, tmp_path)
    assert policy_shape(config).parameters == PARAMETERS[size]
    text = planned(config)
    assert f"{PARAMETERS[size]:,}" in text
    # The picture: learners and engines on the first and on the last GPU.
    assert f"learner-{gpus - 1}, rollout-{config.rollout.actors - 1}" in text
    assert (f"host {gpus // 8}" in text) == (gpus >= 8)
    resolved, _ = resolve(config)
    assert (resolved.learners.dtype, resolved.ppo.dtype, resolved.rollout.dtype) == ("bfloat16",) * 3
    reserved = groups(resolved, fleets_of(resolved.stages))
    assert sum(bundle.gpus for group in reserved for bundle in group.bundles) == gpus


@pytest.mark.parametrize("name", CONFIGS)
def test_each_phase_fits_the_gpu(name, files, tmp_path):
    """What a process needs while the others are away, and the weights of an engine and a learner that meet in
    a sync."""
    _, _, gpu_bytes = CONFIGS[name]
    config, _ = resolve(configured(name, files, tmp_path))
    task = largest_task(config)
    assert task is not None
    learner = learner_gpu_memory(config, task)
    engine = engine_gpu_memory(config, gpu_bytes, cache_bytes=0.0)
    usable = 0.95 * gpu_bytes
    assert learner.peak < usable
    if config.uses_reference:
        assert scoring_gpu_memory(config).peak < usable
    assert learner.held - learner.states + engine.peak < usable
    cache_bytes = engine_gpu_memory(config, gpu_bytes).kv_cache
    assert cache_bytes > 8 * GIB, "an engine that can hold few sequences at a time"


@pytest.mark.parametrize(
    "variant",
    [
        ["rollout.actors=2", "rollout.tensor_parallel=4"],
        [
            "cluster.layout=apart",
            "learners.ranks=4",
            "rollout.actors=3",
            "scoring.actors=1",
            "ppo.staleness=1",
        ],
    ],
)
def test_other_ways_to_divide_a_host(variant, files, tmp_path):
    """Those of docs/cluster.md, as it writes them."""
    assert f"hero plan configs/gpu-8.yaml {' '.join(variant)}" in (ROOT / "docs/cluster.md").read_text()
    config, _ = resolve(configured("gpu-8", files, tmp_path, *variant))
    assert "host 1" in planned(config)
    reserved = groups(config, fleets_of(config.stages))
    assert sum(bundle.gpus for group in reserved for bundle in group.bundles) == 8


@pytest.mark.parametrize("name", CONFIGS)
def test_config_as_it_stands_names_a_model_of_the_hub(name, monkeypatch):
    config = load_config(ROOT / f"configs/{name}.yaml", [])
    assert config.model.path == f"Qwen/Qwen2.5-{CONFIGS[name][1]}-Instruct"
    # Where the hub cannot be reached, the plan says so in one sentence.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"model\.path=Qwen/.*no such model in the cache") as error:
        print_plan(config, Console(quiet=True))
    assert "\n" not in str(error.value)
