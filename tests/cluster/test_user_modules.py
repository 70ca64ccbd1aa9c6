"""The user's modules that a job carries: as a user's directory has them, in a process of its own."""

import subprocess
import sys

import pytest

from common.plugins import child_environment

FILES = {
    "myreward.py": "import helper, tools.parts.numbers\ndef score(row, response, ended):\n    return 1\n",
    "helper.py": "import numpy, json, torch\n",
    "unused.py": "",
    "tools/__init__.py": "",
    "tools/parts/__init__.py": "",
    "tools/parts/numbers.py": "",
    "tools/words.txt": "hello",
    "tools/.hidden/x": "",
    "scripts/convert.py": "def problem(row):\n    return [row]\n",
}
PROGRAM = """
import sys
from pathlib import Path
from cluster.user_modules import carry_modules
from common.plugins import load_function
load_function("myreward:score", "key", "row", "response", "ended")
load_function("scripts.convert:problem", "key", "row")
load_function("cluster.recipes.gsm8k:problem", "key", "row")
print(*carry_modules(Path(sys.argv[1])))
"""


@pytest.fixture
def directory(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / "here" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "here"


def carry(directory):
    command = [sys.executable, "-c", PROGRAM, str(directory.parent / "job")]
    environment = {**child_environment(), "HERO_WORKING_DIRECTORY": ""}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)


def test_what_the_functions_import_is_carried_and_nothing_else(directory):
    done = carry(directory)
    assert done.stdout.split() == ["helper", "myreward", "scripts", "tools"], done.stderr
    job = directory.parent / "job"
    carried = sorted(str(path.relative_to(job)) for path in job.rglob("*") if path.is_file())
    expected = [name for name in FILES if name != "unused.py" and ".hidden" not in name]
    assert carried == sorted(expected)


def test_modules_that_are_too_large_are_refused(directory):
    with open(directory / "tools" / "weights.bin", "wb") as file:
        file.truncate(101 * 2**20)
    done = carry(directory)
    assert done.returncode != 0
    assert "have 101 MiB, over 100, most of it in" in done.stderr
    assert str(directory / "tools") in done.stderr
