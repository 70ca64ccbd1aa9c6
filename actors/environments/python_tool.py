"""The tool `python`: a program of the policy's, run in a process with limits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from actors.environments import python_child

SECONDS = 5
MEMORY_MIB = 512
MAX_CHARACTERS = 2000


def python(code: str) -> str:
    """Runs a Python program and gives what it prints. It has a few seconds and no network.

    Args:
        code: The program.
    """
    return run_program(code)


def run_program(code: str, seconds: int = SECONDS, memory_mib: int = MEMORY_MIB) -> str:
    """What the program printed and, if it failed, why. `seconds` are of processor time; of time on the clock
    it gets twice as many."""
    with tempfile.TemporaryDirectory(prefix="python-tool-") as folder:
        program, output = Path(folder) / "program.py", Path(folder) / "output"
        program.write_text(code, encoding="utf-8", errors="replace")
        command = [sys.executable, "-I", python_child.__file__, str(program), str(seconds), str(memory_mib)]
        # Into a file, whose size is limited, and not into a pipe, which a program could fill for ever.
        with open(output, "wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
                # Nothing of this process's: there may be keys among its variables.
                env={"PATH": "/usr/bin:/bin", "HOME": folder, "OMP_NUM_THREADS": "1"},
            )
            try:
                code_of_exit = process.wait(timeout=2 * seconds)
                end = "" if code_of_exit == 0 else f"\n[exit code {code_of_exit}]"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                end = f"\n[stopped after {2 * seconds} s]"
        text = output.read_bytes()[: 4 * MAX_CHARACTERS].decode("utf-8", errors="replace")
        text = text.replace(folder, ".")
        if len(text) > MAX_CHARACTERS:
            text = text[:MAX_CHARACTERS] + " […]"
        return (text.rstrip() + end).strip() or "[no output]"
