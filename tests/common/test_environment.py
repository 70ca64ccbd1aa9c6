"""Which environment variables reach the actors."""

import pytest

from cluster.config_loader import load_config
from cluster.fleets.manager import FleetManager
from common.environment import passed_on
from common.errors import UserError


def test_variables_of_communication_and_hub_are_passed_on():
    given = {
        "NCCL_IB_HCA": "mlx5",
        "GLOO_SOCKET_IFNAME": "ib0",
        "HF_HUB_OFFLINE": "1",
        "https_proxy": "http://proxy:3128",
        "NO_PROXY": "internal",
        "VLLM_ATTENTION_BACKEND": "FLASHINFER",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    of_this_process = {"PATH": "/bin", "RANK": "3", "VLLM_HOST_IP": "10.0.0.1", "RAY_ADDRESS": "a:1"}
    assert passed_on({**given, **of_this_process}) == given


def test_the_config_counts_more_than_the_environment_and_less_than_the_program(monkeypatch, tmp_path):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("NCCL_IB_HCA", "mlx4")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    settings = [f"run_dir={tmp_path}", "cluster.env.NCCL_IB_HCA=mlx5", "rollout.threads=3"]
    config = load_config(None, settings)
    manager = FleetManager(config, tmp_path)
    # Engines on CPU reserve nothing, so no Ray is asked.
    variables = manager._options("rollout", 0)["runtime_env"]["env_vars"]
    assert variables["NCCL_DEBUG"] == "WARN"
    assert variables["NCCL_IB_HCA"] == "mlx5"
    assert variables["VLLM_LOGGING_LEVEL"] == "DEBUG"  # in place of the program's default
    assert variables["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("OMP_NUM_THREADS", "from other keys of the config"),
        ("CUDA_VISIBLE_DEVICES", "from other keys of the config"),
        ("RAY_BACKEND_LOG_LEVEL", "set it there"),
    ],
)
def test_variables_that_the_program_sets_are_refused(name, reason):
    with pytest.raises(UserError, match=rf"cluster\.env.*{name} cannot be set here.*{reason}"):
        load_config(None, [f"cluster.env.{name}=4"])
