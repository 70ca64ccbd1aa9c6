"""`bench.bringup`: says where there is no GPU; its steps run on a CPU, one that fails ends no other."""

import subprocess
import sys

import pytest
import torch

from bench.bringup import LIMITS_S, TOTAL_S, ratios, run_apart
from bench.bringup_workload import Workload
from tests.runs import environment

COMMAND = [sys.executable, "-m", "bench.bringup"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_sentence():
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "has no CUDA device; `--device cpu --tiny` runs" in done.stdout
    assert not done.stderr


def test_a_step_that_fails_or_is_too_slow_is_a_line_with_its_reason(tmp_path):
    workload = Workload(device="cpu", tiny=True, folder=tmp_path)  # without its model
    failed = run_apart("loop", workload, LIMITS_S["loop"])["failed"]
    assert failed.startswith("exit code 1: ")
    assert str(tmp_path / "model") in failed
    assert run_apart("machine", workload, 0.5)["failed"].startswith("over its limit of 0 s")
    assert run_apart("machine", workload, -1)["failed"] == "not begun: 25 minutes are over"


def test_the_system_is_compared_with_what_was_measured_bare():
    results = {
        "engine": {"tokens/s": 200.0},
        "loop": {"failed": "exit code 1"},
        "apart": {"generation, tokens/s": 180.0, "learning, tokens/s": 90.0},
    }
    assert ratios(results) == {"generation of apart over the bare engine": 0.9}


@pytest.mark.slow
@pytest.mark.timeout(TOTAL_S + 60)
def test_every_step_on_a_cpu(tmp_path):
    command = [*COMMAND, "--device", "cpu", "--tiny", "--folder", str(tmp_path)]
    # Not in a Ray that another test has started: a run would join it.
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(LIMITS_S)} of {len(LIMITS_S)} steps worked" in done.stdout
    for line in (
        "| sleep | same tokens after level 1 | True |",
        "| learner | same bits after reload | True |",
        "| parallel | skipped | an engine over two GPUs needs two |",
        "generation of colocated over the bare engine",
        "learning of apart over the bare loop",
    ):
        assert line in done.stdout
