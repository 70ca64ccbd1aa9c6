"""What is said about a function of the user's that cannot be loaded, and whose modules win."""

import subprocess
import sys

import pytest

from common.errors import UserError
from common.plugins import PACKAGES, child_environment, load_function

MODULES = {
    "good": "def score(row, response, ended):\n    return 1\n",
    "broken": "\ndef score(row, response, ended)\n    return 1\n",
    "name_error": "import math\nx = undefined_name\n",
    "needs": "import not_there\n",
    "leaves": "import sys\n\nsys.exit('enough')\n",
    "deep": "import name_error_below\n",
    "name_error_below": "\n\n1 / 0\n",
    "two": "def score(row, response):\n    return 1\n\n\nTABLE = {}\n",
}
ARGUMENTS = ("row", "response", "ended")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"user_{name}.py").write_text(text.replace("name_error_below", "user_name_error_below"))
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("user_broken:score", "SyntaxError: expected ':' (FOLDER/user_broken.py, line 2)"),
        (
            "user_name_error:score",
            "NameError: name 'undefined_name' is not defined (FOLDER/user_name_error.py, line 2)",
        ),
        (
            "user_needs:score",
            "ModuleNotFoundError: No module named 'not_there' (FOLDER/user_needs.py, line 1)",
        ),
        ("user_leaves:score", "SystemExit: enough (FOLDER/user_leaves.py, line 3)"),
        (
            "user_deep:score",
            "ZeroDivisionError: division by zero (FOLDER/user_name_error_below.py, line 3)",
        ),
        ("user_absent:score", "there is no module user_absent; give module:function"),
        ("user_good:absent", "module 'user_good' has no attribute 'absent'; give module:function"),
        ("serve:score", "serve is a package of this program, so give a module of yours another name"),
        ("user_two:TABLE", "is dict; expected a function (row, response, ended)"),
        ("user_two:score", "its arguments are (row, response): too many positional arguments; expected"),
    ],
)
def test_failure_to_load_is_one_sentence_with_file_and_line(modules, path, message):
    with pytest.raises(UserError) as error:
        load_function(path, "some.key", *ARGUMENTS)
    assert message.replace("FOLDER", str(modules)) in str(error.value)
    assert str(error.value).startswith(f"some.key={path}: ")
    assert "\n" not in str(error.value)


def test_the_working_directory_comes_last_on_the_path(modules):
    assert load_function("user_good:score", "some.key", *ARGUMENTS)({}, "", True) == 1
    assert sys.path[-1] == str(modules)


def test_a_child_process_imports_the_projects_packages_and_then_the_users(tmp_path):
    for name in (*PACKAGES, "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    (tmp_path / "mine.py").write_text("def score(row, response, ended):\n    return 7\n")
    program = """
import json, serve.versions, actors.config, cluster.config, learners.config
from common.plugins import load_function
print(load_function("mine:score", "key", "row", "response", "ended")({}, "", True))
"""
    environment = {**child_environment(), "HERO_WORKING_DIRECTORY": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "7", done.stderr
