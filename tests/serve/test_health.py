"""A health check answers at once, also while a version of many gigabytes is read; and what one replica
takes of its GPU and how long it may take to start."""

import asyncio
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import UserError
from serve import deployment, manifest
from serve.config import ServeConfig
from serve.deployment import ChatEndpoint
from serve.engine import engine_arguments
from serve.launch import START_TIMEOUT_S, head_address, start_timeout_s
from serve.versions import current_policy, set_current


@pytest.fixture
def copy(files, tmp_path):
    return shutil.copytree(files.root, tmp_path / "copy")


def replica(root: Path):
    """A replica as far as its health is concerned: without engines, whose weights `swap` stands for."""
    current = SimpleNamespace(version=current_policy(root))

    async def swap(version):
        current.version = version

    current.swap = swap
    endpoint = object.__new__(ChatEndpoint.func_or_class)
    values = {"target": root, "failure": "", "models": {}, "current": current, "_following": None}
    vars(endpoint).update(values, swap_lock=asyncio.Lock())
    return endpoint


def test_a_health_check_does_not_wait_for_a_version_to_be_read(copy, monkeypatch):
    is_read = threading.Event()

    def slow_verify(*folders):
        is_read.wait(60)
        manifest.verify(*folders)

    monkeypatch.setattr(deployment, "verify", slow_verify)

    async def scenario():
        endpoint = replica(copy)
        set_current(copy, "ppo-2")
        for _ in range(3):
            await endpoint.check_health()
            assert endpoint.current.version.name != "ppo-2"
        is_read.set()
        await endpoint._following
        assert endpoint.current.version.name == "ppo-2"
        await endpoint.check_health()
        # The next check after a failed attempt says so, and Serve replaces the replica.
        (copy / "versions" / "ppo-1" / "model.safetensors").write_bytes(b"changed")
        set_current(copy, "ppo-1")
        await endpoint.check_health()
        await asyncio.wait([endpoint._following])
        with pytest.raises(UserError, match="changed since it was stored"):
            await endpoint.check_health()

    asyncio.run(scenario())


def test_files_are_hashed_once_until_they_change(copy, monkeypatch):
    versions, hashed = copy / "versions", []
    sha256 = manifest._sha256

    def counted(file):
        hashed.append(file)
        return sha256(file)

    monkeypatch.setattr(manifest, "_sha256", counted)
    manifest.verify(versions / "ppo-1", versions / "sft-0")
    count = len(hashed)
    assert count > 1
    manifest.verify(versions / "ppo-1", versions / "sft-0")
    assert len(hashed) == count
    weights = versions / "ppo-1" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="changed since it was stored"):
        manifest.verify(versions / "ppo-1", versions / "sft-0")


@pytest.mark.parametrize(
    ("settings", "gpus", "share"),
    [
        ({"gpus": 0.5}, 0.5, 0.45),
        ({"gpus": 1, "models": {"sft": {"path": "sft"}}}, 1, 0.45),
        ({"gpus": 1, "tensor_parallel": 4}, 4, 0.9),
    ],
)
def test_a_replica_takes_the_share_of_memory_that_it_has_of_a_gpu(settings, gpus, share):
    config = ServeConfig(**settings, dtype="float32")
    arguments = engine_arguments(config, Path("model"), "hero")
    assert config.replica_gpus == gpus
    assert float(arguments[arguments.index("--gpu-memory-utilization") + 1]) == pytest.approx(share)
    assert ("--distributed-executor-backend" in arguments) == (config.tensor_parallel > 1)


def test_large_models_may_take_longer_to_start(copy):
    folder = current_policy(copy).folder
    with open(folder / "model-00002.safetensors", "wb") as file:
        file.truncate(10_000_000_000)  # takes no space
    assert start_timeout_s(copy, ServeConfig()) == pytest.approx(START_TIMEOUT_S + 100, abs=1)
    assert start_timeout_s(copy, ServeConfig(start_timeout_s=5)) == 5


def test_the_endpoint_is_at_the_address_that_the_cluster_has_of_its_head():
    worker = {"Alive": True, "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 4.0}}
    head = {**worker, "NodeManagerAddress": "10.0.0.1", "Resources": {"node:__internal_head__": 1.0}}
    assert head_address([worker, head]) == "10.0.0.1"
    assert head_address([{**head, "Alive": False}]) not in ("10.0.0.1", "0.0.0.0")
