"""What this machine multiplies fast: that is what `dtype: auto` of the configuration becomes.

The driver resolves every `auto` once, before anything depends on it (`cluster.precision`); the endpoint
does where it serves. No other module compares a dtype with "auto": `precise` is the guard of those that
compute. torch is imported only where the hardware is asked.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from functools import cache
from typing import Literal, NamedTuple

from common.config import DType, Precision
from common.errors import UserError

FASTER = 1.2
"""bfloat16 is taken on a CPU that multiplies it at least so many times as fast as float32: it rounds
more, so equal speed is no reason."""
SLOWER = 0.8
"""Below this factor a CPU is told to emulate bfloat16. Measured: 0.01 where it has AVX2 alone, 0.2 with
AVX-512, 4 with AMX."""
PROBE_SIZE = 256
"""Rows of the square matrices: few milliseconds where bfloat16 is emulated, and large enough for the units
that multiply it elsewhere."""
PROBE_ROUNDS = 5
PROBE_S = 0.03
"""No further round after this time and three rounds."""


class Choice(NamedTuple):
    """A precision and why it is this one."""

    dtype: Precision
    reason: str


def choose(setting: DType, device: str, inherited: Choice | None = None) -> Choice:
    """The setting itself; where it is auto, `inherited`, or else what the hardware multiplies fast."""
    if setting != "auto":
        return Choice(setting, "set in the config")
    return inherited or fast_dtype(device)


def precise(dtype: DType) -> Precision:
    """The dtype, which must not be auto any more. Raises ValueError: somebody passed an unresolved config."""
    if dtype == "auto":
        raise ValueError("dtype is still auto here; resolve the config first (cluster.precision.resolve)")
    return dtype


def device_of(gpus: float | None) -> Literal["cpu", "cuda"]:
    """The device of a process that asks Ray for so many GPUs."""
    return "cuda" if gpus else "cpu"


def is_slow(setting: DType, device: str) -> bool:
    """Whether the config asks a CPU for bfloat16 that it emulates."""
    return setting == "bfloat16" and device == "cpu" and bfloat16_factor() < SLOWER


def slow_warning(keys: list[str]) -> str:
    """What to tell about the keys for which `is_slow` holds."""
    return f"warning: {' and '.join(keys)}: bfloat16, but {cpu_reason()}; set float32 or auto there"


@cache
def fast_dtype(device: str) -> Choice:
    """What the device multiplies fast: by a measurement on a CPU, by its compute capability on a GPU."""
    if device == "cpu":
        faster = bfloat16_factor() >= FASTER
        return Choice("bfloat16" if faster else "float32", cpu_reason())
    gpus = _gpus()
    if not gpus:
        return Choice(
            "bfloat16", "this host has no GPU to ask; those of compute capability 8.0 on are fast in it"
        )
    capability, name = min(gpus)
    reason = f"{name} has compute capability {capability:.1f}; bfloat16 is fast from 8.0 on"
    return Choice("bfloat16" if capability >= 8 else "float32", reason)


def count_gpus() -> int:
    """GPUs of this host that processes may use, without asking torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(_gpus())
    if visible is None:
        return count
    return min(count, len([name for name in visible.split(",") if name.strip()]))


def gpu_memory_bytes() -> float | None:
    """Of this host's smallest GPU, without asking torch; None if there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(float(line) for line in printed.splitlines()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def require_device(device: str) -> None:
    """Raises UserError in an actor that is to compute on a GPU and sees none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise UserError(
            f"cluster.device is cuda, but this process on {socket.gethostname()} sees no GPU "
            f"(CUDA_VISIBLE_DEVICES={visible!r}, torch {torch.__version__}); install torch and vLLM for CUDA "
            "on every host, or set cluster.device=cpu"
        )


def require_free_memory(needed: int, who: str) -> None:
    """Raises RuntimeError if this process's GPU has fewer bytes free: somebody who shares it has not left."""
    import torch

    free, total = torch.cuda.mem_get_info()
    if free < needed:
        gib = 2**30
        raise RuntimeError(
            f"{who} need {needed / gib:.1f} GiB of the GPU and {free / gib:.1f} of {total / gib:.1f} GiB are "
            "free; another process has not left it"
        )


def _gpus() -> list[tuple[float, str]]:
    """(compute capability, name) of the GPUs of this host. Not asked of torch, which would hold memory of
    a GPU in the driver from then on."""
    command = ["nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        gpus = []
        for line in printed.splitlines():
            capability, _, name = line.partition(", ")
            gpus.append((float(capability), name))
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return gpus


def cpu_reason() -> str:
    return f"this CPU multiplies bfloat16 {bfloat16_factor():.2g} times as fast as float32"


@cache
def bfloat16_factor() -> float:
    """How many times as fast as float32 one thread of this CPU multiplies bfloat16 matrices.

    Measured and not read from the CPU's flags: it depends on torch's build and its library as well. The
    rounds alternate and the best of each counts, so that other work on the machine affects both alike.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single = torch.full((PROBE_SIZE, PROBE_SIZE), 0.5)
        half = single.to(torch.bfloat16)
        # The first product of a kind compiles its kernel.
        torch.mm(single, single)
        torch.mm(half, half)
        singles: list[float] = []
        halves: list[float] = []
        started = time.perf_counter()
        while len(halves) < 3 or (len(halves) < PROBE_ROUNDS and time.perf_counter() - started < PROBE_S):
            singles.append(_seconds(single))
            halves.append(_seconds(half))
    finally:
        torch.set_num_threads(threads)
    return min(singles) / min(halves)


def _seconds(matrix: object) -> float:
    import torch

    started = time.perf_counter()
    torch.mm(matrix, matrix)  # type: ignore[arg-type]
    return time.perf_counter() - started
