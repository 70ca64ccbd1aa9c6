"""An engine's process that cannot go on ends with its children, and the next one removes what is left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker, shared_memory

import psutil
import pytest

from actors.process_guard import clean_up, record_engine
from common.errors import is_device_failure

HANGING = """
import os, subprocess, sys, time
from multiprocessing import resource_tracker, shared_memory
from actors.process_guard import ProcessGuard
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
os.kill(child.pid, 19)
print(child.pid, segment.name, flush=True)
guard = ProcessGuard(0.5)
for _ in range(4):
    with guard.during("a short step"):
        time.sleep(0.2)
print("short steps are fine", flush=True)
with guard.during("a step"):
    time.sleep(600)
"""


def test_a_step_over_the_limit_ends_the_process_its_stopped_child_and_its_segment():
    process = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=120)
    assert process.returncode == 1
    pid, segment, rest = process.stdout.split(maxsplit=2)
    assert rest == "short steps are fine\n"
    assert "this engine ends: a step took longer than rollout.step_timeout_s=0.5" in process.stderr
    assert "Current thread" in process.stderr or "Thread 0x" in process.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        child, deadline = psutil.Process(int(pid)), time.monotonic() + 5
        while child.status() != psutil.STATUS_ZOMBIE:  # it was killed; the kernel ends it a moment later
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not os.path.exists(f"/dev/shm/{segment}")


def test_what_a_killed_engine_left_is_removed_and_a_living_one_is_left_alone(tmp_path):
    segment = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(segment._name, "shared_memory")
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        worker.send_signal(signal.SIGSTOP)
        record_engine(tmp_path)
        clean_up(tmp_path)  # this process is alive
        assert os.path.exists(f"/dev/shm/{segment.name}")
        record = next(tmp_path.glob("*.json"))
        dead = json.loads(record.read_text())
        assert f"/dev/shm/{segment.name}" in dead["segments"]
        # Another process of the same number; and what other tests have started is theirs.
        processes = {str(worker.pid): dead["processes"][str(worker.pid)]}
        dead |= {"created": 1.0, "processes": processes, "segments": [f"/dev/shm/{segment.name}"]}
        record.write_text(json.dumps(dead))
        clean_up(tmp_path)
        assert worker.wait(timeout=30) == -signal.SIGKILL
        assert not os.path.exists(f"/dev/shm/{segment.name}")
        assert not list(tmp_path.iterdir())
    finally:
        worker.kill()
        segment.close()


class AcceleratorError(RuntimeError):
    """By the name of torch's."""


class OutOfMemoryError(RuntimeError):
    """By the name of torch's."""


def caused_by(error):
    outer = RuntimeError("the update failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AcceleratorError("unspecified launch failure"), True),
        (RuntimeError("NCCL error: remote process exited"), True),
        (caused_by(AcceleratorError("ECC")), True),
        (OutOfMemoryError("CUDA out of memory"), False),
        (ValueError("no tokens"), False),
    ],
)
def test_errors_of_a_device_are_told_from_others(error, expected):
    assert is_device_failure(error) == expected
