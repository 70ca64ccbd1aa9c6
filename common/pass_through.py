"""Sections of the config that are passed on to a library as they are (rollout.vllm, learners.deepspeed).

Keys that the program sets itself are refused when the config is read. What the library knows is asked of
the library itself, in a process of its own since it takes seconds to import, and only where such a
section is not empty.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from typing import Any

from common.errors import FleetError, UserError
from common.plugins import child_environment

ANSWER = "answer: "
"""What the line of the answer starts with; libraries print other lines."""


def refuse_reserved(values: Mapping[str, Any], reserved: Mapping[str, str]) -> None:
    """Raises ValueError for a key that the program sets; `reserved` says for each what to do instead."""
    for key in values:
        if key in reserved:
            raise ValueError(f"{key} cannot be passed on: {reserved[key]}")


def check_known(key: str, module: str, question: Mapping[str, Any]) -> None:
    """Has `module` check the section `key` in a new process: it reads the question from standard input
    and answers with the problems it finds. Raises UserError for the first one."""
    process = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        env=os.environ | child_environment(),
    )
    answers = [line for line in process.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        raise FleetError(f"{key} could not be checked: {process.stderr.strip()[-500:]}")
    for problem in json.loads(answers[-1].removeprefix(ANSWER)):
        raise UserError(f"{key}.{problem}")


def answer(problems: list[str]) -> None:
    """Ends a checking process."""
    print(f"\n{ANSWER}{json.dumps(problems)}", flush=True)


def unknown(name: str, known: Collection[str], library: str) -> str:
    """What to say about a name that the library does not know."""
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name}: {library} has no such argument{hint}"
