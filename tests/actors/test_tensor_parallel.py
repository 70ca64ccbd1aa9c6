"""An engine with two workers (tensor parallelism) on CPU: every transport reaches both, and a worker that
hangs or dies ends the engine's process.

The engine runs in a process of its own, whose end is part of the test. It takes half a minute to start, so
one engine serves all transports and then meets one fault; further faults are marked slow.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from actors.config import Decoding, RolloutConfig
from actors.process_guard import SEGMENT
from actors.weights.transport import FileTransport
from learners.config import LoRAConfig
from learners.data.tokenizer import train_tokenizer
from learners.lora import add_adapters
from learners.models import build_policy
from learners.weight_buckets import adapter_bucket
from tests.actors.test_rollout import plain_logprobs
from tests.actors.updates import buckets_of, perturb, update
from tests.learners.fixtures import MODEL, TEXTS

SEQUENCES = [list(range(8, 40)), list(range(100, 120))]
CONFIG = RolloutConfig(
    dtype="float32",
    tensor_parallel=2,
    kv_cache_gib=0.05,
    max_sequences=16,
    max_model_len=64,
    threads=1,
)

pytestmark = pytest.mark.timeout(600)


def exercise(actor, folder):
    """Largest error of a log-probability after an update by each transport."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    errors = {}
    for version, kind in enumerate(("file", "object_store", "broadcast"), start=1):
        before = np.concatenate(actor.prompt_logprobs(SEQUENCES))
        perturb(model, version)
        update(actor, model, kind, version, folder)
        after = np.concatenate(actor.prompt_logprobs(SEQUENCES))
        error = np.abs(after - plain_logprobs(model, SEQUENCES)).max()
        errors[kind] = (float(error), float(np.abs(after - before).max()))
    add_adapters(model, LoRAConfig(rank=2), None)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    base = folder / "base"
    weights = {name.replace(".base_layer.", "."): p.data for name, p in model.named_parameters()}
    weights = {name: weight for name, weight in weights.items() if ".lora_" not in name}
    base.mkdir()
    save_file(weights, base / "model.safetensors")
    [(bucket, _)] = adapter_bucket(model, lambda parameters: nullcontext())
    payload, _ = FileTransport(folder / "files").send(bucket, 4)
    actor.update_weights(replace(payload, base=str(base)), 4)
    before, after = after, np.concatenate(actor.prompt_logprobs(SEQUENCES))
    error = np.abs(after - plain_logprobs(model, SEQUENCES)).max()
    errors["adapters"] = (float(error), float(np.abs(after - before).max()))
    return errors


def meet_fault(actor, folder, fault):
    """A worker is killed or stopped while the engine samples or takes weights; does not return."""
    sent, doing = fault
    # Only now: a first step compiles kernels, which takes long on a busy machine.
    actor.engine.guard.timeout_s = 15
    children = psutil.Process().children(recursive=True)
    worker = next(child for child in children if "resource_tracker" not in " ".join(child.cmdline()))
    if doing == "busy":
        threading.Timer(0.3, worker.send_signal, [sent]).start()
        prompts = [[5, 6, 7]] * 16
        while True:
            actor.generate(prompts, range(16), Decoding(max_tokens=60), end_token=0)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    for number, bucket, _ in buckets_of(model):
        payload, _ = FileTransport(folder / "files").send(bucket, 9, number, last=False)
        actor.update_weights(payload, 9)
        if number == 1:
            worker.send_signal(sent)


def host_engine(folder, fault, queue):
    """The engine's process."""
    sys.stderr = open(folder / "engine.log", "w", buffering=1)  # noqa: SIM115 (for the process's life)
    # Workers then know the backend as where the package is on the path but not installed: not by its entry
    # point.
    os.environ["VLLM_PLUGINS"] = ""
    from actors.rollout import RolloutActor

    actor = RolloutActor("rollout-0", str(folder / "model"), CONFIG, version=0)
    pids = [child.pid for child in psutil.Process().children(recursive=True)]
    segments = SEGMENT.findall(Path("/proc/self/maps").read_text())
    errors = exercise(actor, folder) if fault[1] == "busy" and fault[0] == signal.SIGSTOP else {}
    queue.put({"errors": errors, "pids": pids, "segments": sorted(set(segments)), "time": time.time()})
    meet_fault(actor, folder, fault)


def run_engine(folder, fault):
    """What the engine's process found and how it ended."""
    tokenizer = train_tokenizer(TEXTS, MODEL.vocab_size)
    build_policy(MODEL.model_copy(update={"kv_heads": 2}), tokenizer, seed=1).save_pretrained(
        folder / "model"
    )
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=host_engine, args=(folder, fault, queue))
    process.start()
    try:
        results = queue.get(timeout=400)
        process.join(120)
        results["seconds"] = time.time() - results["time"]
        results["exit"] = process.exitcode
        results["log"] = (folder / "engine.log").read_text()
    finally:
        process.kill()
    return results


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_replaceable(results):
    """The process has ended by itself, with its workers and their shared memory."""
    assert results["exit"] == 1
    assert "this engine ends: " in results["log"]
    assert len(results["pids"]) >= 2
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in results["pids"]):  # a killed process takes a moment to end
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert results["segments"]
    assert not any(os.path.exists(segment) for segment in results["segments"])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_engine(tmp_path_factory.mktemp("tp"), (signal.SIGSTOP, "busy"))


@pytest.mark.parametrize("kind", ["file", "object_store", "broadcast", "adapters"])
def test_both_workers_hold_the_new_weights(results, kind):
    error, difference = results["errors"][kind]
    assert error < 1e-5
    assert difference > 1e-2  # the update changed something


def test_a_stopped_worker_ends_the_engine_within_the_limit_of_a_step(results):
    assert "took longer than rollout.step_timeout_s=15" in results["log"]
    assert_replaceable(results)
    print(f"\na worker stopped while busy: the engine ended after {results['seconds']:.0f} s")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [(signal.SIGKILL, "busy"), (signal.SIGKILL, "updating"), (signal.SIGSTOP, "updating")],
    ids=lambda fault: f"{fault[0].name}-{fault[1]}",
)
def test_other_faults_of_a_worker_end_the_engine_too(tmp_path, fault):
    results = run_engine(tmp_path, fault)
    assert_replaceable(results)
    print(f"\n{fault[0].name} of a worker while {fault[1]}: ended after {results['seconds']:.0f} s")
