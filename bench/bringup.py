"""First check of a GPU host, step by step, beside bare vLLM and a bare training loop.

    python -m bench.bringup [--folder DIR] [--steps STEP …]   # at most 25 minutes on one GPU
    python -m bench.bringup --device cpu --tiny               # the same steps, small, without a GPU

Installs and downloads nothing: the model has the sizes of Qwen2.5-0.5B, random weights and a tokenizer
made here. Steps:
- machine: GPUs, memory, versions;
- engine: bare vLLM, compiled and captured as in a run: tokens/s;
- sleep: what an engine frees at level 1 and 2, seconds to sleep and to wake, the same tokens afterwards;
- loop: a bare torch loop with the passes of a GRPO iteration: tokens/s;
- learner: the same batch by a learner under DeepSpeed: tokens/s, utilization; what it frees when it is
  offloaded, seconds, the same bits afterwards;
- apart: `hero run` of a few GRPO iterations, learner and engine on shares of the GPU, weights by files;
- colocated: the same in turns on the whole GPU, weights by CUDA IPC (on a CPU by files);
- parallel: with two GPUs, colocated with two learners and an engine that is split over both.
Each step is a process with a time limit, so one that fails or hangs takes nothing with it. The exit code
is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.common import print_header, print_row, start_parser

if TYPE_CHECKING:  # with DeepSpeed, vLLM and Ray: they warn without a GPU, before this program can say so
    from bench.bringup_workload import Workload

LIMITS_S = {
    "machine": 120,
    "engine": 300,
    "sleep": 300,
    "loop": 180,
    "learner": 240,
    "apart": 420,
    "colocated": 420,
    "parallel": 420,
}
"""Steps in their order, with the seconds that each may take."""
TOTAL_S = 25 * 60
RESULT = "result.json"


def main() -> int:
    options = parse_arguments()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "bench.bringup: this machine has no CUDA device; `--device cpu --tiny` runs the steps without one"
        )
        return 1
    from bench.bringup_workload import Workload, build_model

    folder = options.folder or Path(tempfile.mkdtemp(prefix="hero-bringup-"))
    workload = Workload(device=options.device, tiny=options.tiny, folder=folder)
    # Ended by somebody, it ends the step that is at work too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.only:
        return run_here(options.only, workload)
    print(f"model, runs and logs are in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    build_model(workload)
    results: dict[str, dict[str, Any]] = {}
    print_header(("step", "figure", "value"))
    deadline = time.monotonic() + TOTAL_S
    for name in options.steps:
        results[name] = run_apart(name, workload, min(LIMITS_S[name], deadline - time.monotonic()))
        for figure, value in results[name].items():
            print_row((name, figure, shown(value)))
    for figure, value in ratios(results).items():
        print_row(("compared", figure, shown(value)))
    failed = [name for name, figures in results.items() if "failed" in figures]
    print(f"{len(results) - len(failed)} of {len(results)} steps worked")
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = start_parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model and a small batch")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", nargs="+", choices=LIMITS_S, default=list(LIMITS_S))
    parser.add_argument("--only", choices=LIMITS_S, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_here(name: str, workload: Workload) -> int:
    """The child's part: runs a step and leaves its figures in a file."""
    from bench import bringup_runs, bringup_steps
    from bench.bringup_workload import Skipped

    module = bringup_runs if hasattr(bringup_runs, name) else bringup_steps
    try:
        figures = getattr(module, name)(workload)
    except Skipped as reason:
        figures = {"skipped": str(reason)}
    (workload.step_folder(name) / RESULT).write_text(json.dumps(figures))
    return 0


def run_apart(name: str, workload: Workload, limit_s: float) -> dict[str, Any]:
    """Runs a step as a process; returns its figures, or {"failed": why}."""
    if limit_s <= 0:
        return {"failed": f"not begun: {TOTAL_S // 60} minutes are over"}
    folder = workload.step_folder(name)
    command = [sys.executable, "-m", "bench.bringup", "--only", name, "--device", workload.device]
    command += ["--folder", str(workload.folder), *(["--tiny"] if workload.tiny else [])]
    started = time.monotonic()
    log = folder / "log.txt"
    with open(log, "w") as output:
        # In a group of its own, with which its engines and actors end too.
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            end_group(process)
            return {"failed": f"over its limit of {limit_s:.0f} s; see {log}"}
        except KeyboardInterrupt:
            end_group(process)
            raise
    result = folder / RESULT
    if code or not result.exists():
        return {"failed": f"exit code {code}: {last_line(log)}; see {log}"}
    return {**json.loads(result.read_text()), "step took, s": time.monotonic() - started}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, by which `hero run` stops its actors, then SIGKILL."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the whole system reaches of the bare parts, where both were measured."""
    found = {}
    pairs = {
        "generation": ("engine", "tokens/s", "generation, tokens/s"),
        "learning": ("loop", "tokens/s", "learning, tokens/s"),
    }
    for run in ("apart", "colocated"):
        for phase, (bare, bare_figure, figure) in pairs.items():
            base, value = results.get(bare, {}).get(bare_figure), results.get(run, {}).get(figure)
            if base and value:
                found[f"{phase} of {run} over the bare {bare}"] = value / base
    return found


def shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
