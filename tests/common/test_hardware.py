"""The probe measures this machine; what it says decides; nobody computes with an unresolved dtype."""

import os
import subprocess
import sys

import pytest
import torch

from common import hardware
from common.hardware import bfloat16_factor, choose, fast_dtype, is_slow, precise, slow_warning

PROBE = "from common.hardware import *; print(bfloat16_factor(), *fast_dtype('cpu'), sep='|')"


def probe(**environment):
    """(factor, dtype, reason) in a new process."""
    command = [sys.executable, "-c", PROBE]
    printed = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    factor, dtype, reason = printed.stdout.strip().split("|")
    return float(factor), dtype, reason


@pytest.fixture
def set_factor(monkeypatch):
    """Gives the probe a result."""

    def replace(factor):
        monkeypatch.setattr(hardware, "bfloat16_factor", lambda: factor)
        fast_dtype.cache_clear()

    yield replace
    fast_dtype.cache_clear()


def test_cpu_without_bfloat16_units_gets_float32():
    # With AVX2 alone, oneDNN has no bfloat16 kernels, as on a CPU that has nothing more.
    factor, dtype, reason = probe(ONEDNN_MAX_CPU_ISA="AVX2")
    assert factor < 0.2
    assert dtype == "float32"
    assert reason == f"this CPU multiplies bfloat16 {factor:.2g} times as fast as float32"


def test_cpu_with_bfloat16_units_gets_bfloat16():
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512") or "amx_bf16" not in flags():
        pytest.skip("this CPU has no matrix units for bfloat16")
    factor, dtype, _ = probe()
    assert factor > 1.2
    assert dtype == "bfloat16"


def flags():
    with open("/proc/cpuinfo") as info:
        return info.read()


@pytest.mark.parametrize(
    ("factor", "dtype", "slow"),
    [(0.02, "float32", True), (0.9, "float32", False), (1.1, "float32", False), (1.3, "bfloat16", False)],
)
def test_factor_decides(set_factor, factor, dtype, slow):
    set_factor(factor)
    assert fast_dtype("cpu").dtype == dtype
    assert is_slow("bfloat16", "cpu") == slow
    assert not is_slow("float32", "cpu")
    assert not is_slow("bfloat16", "cuda")


def test_warning_has_keys_factor_and_remedy(set_factor):
    set_factor(0.0189)
    assert slow_warning(["learners.dtype", "ppo.dtype"]) == (
        "warning: learners.dtype and ppo.dtype: bfloat16, but this CPU multiplies bfloat16 0.019 times as "
        "fast as float32; set float32 or auto there"
    )


@pytest.fixture
def set_gpus(monkeypatch, tmp_path):
    """Puts an nvidia-smi on the path that lists these GPUs."""

    def replace(*gpus):
        program = tmp_path / "nvidia-smi"
        lines = "\n".join(gpus)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        fast_dtype.cache_clear()

    yield replace
    fast_dtype.cache_clear()


@pytest.mark.parametrize(
    ("gpus", "dtype", "reason"),
    [
        (["7.5, Tesla T4"], "float32", "Tesla T4 has compute capability 7.5"),
        (["8.0, NVIDIA A100-SXM4-40GB"], "bfloat16", "NVIDIA A100-SXM4-40GB has compute capability 8.0"),
        (["12.0, NVIDIA B, new"], "bfloat16", "NVIDIA B, new has compute capability 12.0"),
        (["9.0, NVIDIA H100", "7.0, Tesla V100"], "float32", "Tesla V100 has compute capability 7.0"),
        (["No devices were found"], "bfloat16", "no GPU to ask"),
    ],
)
def test_compute_capability_decides_on_gpus(set_gpus, gpus, dtype, reason):
    set_gpus(*gpus)
    choice = fast_dtype("cuda")
    assert choice.dtype == dtype
    assert reason in choice.reason


def test_probe_gives_the_threads_back():
    threads = torch.get_num_threads()
    bfloat16_factor.cache_clear()
    bfloat16_factor()
    assert torch.get_num_threads() == threads


def test_setting_wins_and_auto_must_be_resolved():
    assert choose("bfloat16", "cpu").dtype == precise("bfloat16") == "bfloat16"
    with pytest.raises(ValueError, match="still auto"):
        precise("auto")
