"""Values of rows as they are in any format: what counts as absent, and what counts as equal."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from learners.data.conversations import InvalidRow


def present_values(value: Any, key: str = "") -> Any:
    """The value without the keys, at every depth, whose value is null.

    A table has a value in every column of every row and at every depth, so a reader cannot tell null
    from an absent key there; hence null means absent in every format. Raises InvalidRow, which names
    the key, for a text that is no Unicode."""
    if isinstance(value, dict):
        present = {}
        for name, inner in value.items():
            if inner is not None:
                _check_unicode(name, key)
                present[name] = present_values(inner, f"{key}.{name}".lstrip("."))
        return present
    if isinstance(value, list):
        # Items are told by their place, so those that are null stay.
        return [present_values(inner, f"{key}[{i}]") for i, inner in enumerate(value)]
    _check_unicode(value, key)
    return value


def _check_unicode(value: Any, key: str) -> None:
    # JSON can write half of a character ("\ud83d" without what follows), where a text was cut. No
    # tokenizer takes it.
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise InvalidRow(
                f"key '{key}': expected Unicode text, found half of a character ({half} at position "
                f"{error.start}); cut texts between characters"
            ) from None


def whole_number(value: Any) -> Any:
    """1 for 1.0, which a table has where a number of its column is null; any other value as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def comparable_text(*values: Any) -> str:
    """Equal for values that differ only in case, in the amount of white space between words and at the
    ends of texts, and in how accents are composed."""
    # Dates and the like, in extra keys of messages, are compared by their text.
    return json.dumps(_comparable(values), sort_keys=True, default=str)


def _comparable(value: Any) -> Any:
    if isinstance(value, str):
        # White space is collapsed and not removed: "1 12" is not "11 2". NFC and not NFKC, to which
        # "2²" is "22".
        return " ".join(unicodedata.normalize("NFC", value).casefold().split())
    if isinstance(value, (list, tuple)):
        return [_comparable(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _comparable(inner) for name, inner in value.items()}
    return value
