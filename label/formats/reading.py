"""JSON files as values with where they are, as errors name it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from label.formats.rows import InvalidRow

Entries = Iterator[tuple[str, Any]]
"""(where, value): what stands at each place of a file."""


def json_lines(path: Path) -> Entries:
    """The value of each line that is not blank; an InvalidRow where it is not JSON."""
    try:
        # utf-8-sig: Windows programs write a byte order mark, which is no part of the text. Not
        # splitlines(), which also splits at characters that JSON texts may hold.
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", _parsed(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start}); save it as UTF-8") from None


def json_list(path: Path, name: str) -> Entries:
    """The elements of a JSON list, each called `name` and its number; a file of JSON lines also
    does."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    if not text.lstrip().startswith("["):
        yield from json_lines(path)
        return
    values = _parsed(text)
    if isinstance(values, InvalidRow):
        raise UserError(f"{path}: {values}")
    for number, value in enumerate(values, 1):
        yield f"{path}, {name} {number}", value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return InvalidRow(f"not JSON ({error.msg} at line {error.lineno} column {error.colno})")
    except RecursionError:
        return InvalidRow("its values are nested too deeply to be read")


def an_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRow("expected a JSON object")
    return value
