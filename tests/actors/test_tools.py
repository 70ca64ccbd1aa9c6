"""Tools: what the policy is told of a function, and what a program of the tool `python` may not do."""

from typing import Literal

import pytest
from transformers.utils import get_json_schema

from actors.environments.python_tool import python, run_program
from actors.environments.tools import Tool, tool_schema
from common.errors import UserError


def weather(city: str, days: list[int], unit: Literal["C", "F"] = "C", exact: bool = False) -> str:
    """The weather of a city.

    Args:
        city: Its name.
        days: From today,
            which is 0.
        unit: Of the temperature.
        exact: With decimals.

    Returns:
        A sentence.
    """
    return f"{city} {days} {unit} {exact}"


def test_a_function_is_described_as_chat_templates_expect_it():
    expected = get_json_schema(weather)["function"]
    ours = tool_schema(weather)["function"]
    assert ours["name"] == expected["name"]
    assert ours["description"] == expected["description"]
    assert ours["parameters"]["required"] == expected["parameters"]["required"]
    for name, described in expected["parameters"]["properties"].items():
        for key in ("type", "description", "items"):
            # transformers leaves the type of a Literal out.
            if key in described and name != "unit":
                assert ours["parameters"]["properties"][name][key] == described[key], (name, key)
    assert ours["parameters"]["properties"]["unit"]["enum"] == ["C", "F"]


def undocumented(a: int):
    return a


def untyped(a):
    """Takes anything."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (undocumented, "tool undocumented: it has no docstring"),
        (untyped, "tool untyped: argument a has no type hint; expected for example a: int"),
    ],
)
def test_a_function_that_cannot_be_described_is_refused(function, message):
    with pytest.raises(UserError) as error:
        tool_schema(function)
    assert message in str(error.value)


def test_arguments_are_checked_against_the_type_hints():
    tool = Tool(weather)
    assert tool.call({"city": "Lima", "days": [0, 1]}) == ("Lima [0, 1] C False", True)
    assert tool.call({"city": "Lima", "days": "soon"}) == (
        "error: weather: days: Input should be a valid list",
        False,
    )
    assert tool.call({"city": "Lima", "days": [], "unit": "K"})[0].startswith(
        "error: weather: unit: Input should"
    )
    assert tool.call("{broken") == ("error: the arguments of weather are not a JSON object", False)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print(6 * 7)", "42"),
        ("pass", "[no output]"),
        ("import threading; t = threading.Thread(target=print, args=('x',)); t.start(); t.join()", "x"),
        ("1 / 0", "ZeroDivisionError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import os; os.execv('/bin/sh', ['sh'])", "PermissionError"),
        ("import subprocess; subprocess.run(['ls'])", "PermissionError"),
        ("x = bytearray(2 * 10**9)", "MemoryError"),
        ("import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))", "['HOME', 'OMP_NUM_THREADS', 'PATH']"),
    ],
)
def test_a_program_has_no_network_and_no_processes(program, expected):
    assert expected in python(program)


def test_a_program_has_little_time(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    assert run_program("while True: pass", seconds=1).startswith("[")
    assert run_program("import time; time.sleep(60)", seconds=1) == "[stopped after 2 s]"


def test_a_program_that_prints_for_ever_is_cut():
    text = run_program("while True: print('x' * 1000)", seconds=2)
    assert len(text) < 2200
    assert "[…]" in text
