"""What a person sends for an item, and the checks that it can be a label.

The types say what JSON may be sent; `check` knows the item. Every refusal names one key and says what was
expected. Responses are named by their ids and never by their place, which differs from person to person.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt

from common.files import to_json
from label.errors import BadInput
from label.vocabulary import PROMPT_FLAGS, RESPONSE_FLAGS

MAX_TEXT_BYTES = 100_000


def check_text(text: str) -> str:
    """The text, if a database and a file can hold it. Raises ValueError."""
    if "\0" in text:
        raise ValueError("has the character NUL, which no text needs; remove it")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair, which is no character") from None
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"is longer than {MAX_TEXT_BYTES // 1000} kB ({size // 1000} kB)")
    return text


CleanText = Annotated[str, AfterValidator(check_text)]
Identity = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Body(BaseModel):
    """Base of what requests send: no unknown keys."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Rating(Body):
    """What a person says of one response alone."""

    likert: Annotated[StrictInt, Field(ge=1, le=7)] | None = None
    """Overall quality, 1 (worst) to 7."""
    flags: list[CleanText] = []
    """Names of `vocabulary.RESPONSE_FLAGS`."""


class Submission(Body):
    """A label, or the draft of one, in which anything may still be missing."""

    ratings: dict[Identity, Rating] = {}
    """By response id."""
    ranks: dict[Identity, StrictInt] = {}
    """By response id; 1 is best, equal numbers are ties."""
    all_bad: StrictBool = False
    """No response is good enough to be ranked."""
    strength: Annotated[StrictInt, Field(ge=-3, le=3)] | None = None
    """Of two responses: how much better the first of the shown ones is (negative: the second)."""
    confidence: Annotated[StrictInt, Field(ge=1, le=9)] | None = None
    """How sure the person is, 1 to 9."""
    prompt_flags: list[CleanText] = []
    """Names of `vocabulary.PROMPT_FLAGS`."""
    comment: CleanText = ""
    """For the owner."""
    text: CleanText = ""
    """The demonstration."""
    edited_from: Identity | None = None
    """The response that the demonstration was made from."""
    active_ms: Annotated[StrictInt, Field(ge=0, le=10**9)] = 0
    """Milliseconds at work since the last message to the server."""

    def content_sha(self) -> str:
        """Equal for submissions that say the same."""
        content = self.model_dump(exclude={"active_ms"})
        return hashlib.sha256(to_json(_sorted(content)).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return value


def check(kind: str, given: Submission, shown: Sequence[str]) -> list[str]:
    """Checks a submission for an item of this kind whose responses have the ids `shown`, and closes gaps in
    its ranks. Returns notes for the person. Raises BadInput."""
    for key in ("ratings", "ranks"):
        for response in getattr(given, key):
            if response not in shown:
                raise BadInput(f"{key}.{response}", "no response of this item has that id")
    for response, rating in given.ratings.items():
        _check_flags(f"ratings.{response}.flags", rating.flags, RESPONSE_FLAGS)
    _check_flags("prompt_flags", given.prompt_flags, PROMPT_FLAGS)
    if given.edited_from is not None and given.edited_from not in shown:
        raise BadInput("edited_from", "no response of this item has that id")
    if kind == "demonstrate":
        if not given.text.strip():
            raise BadInput("text", "the demonstration is empty; write it, or skip the item")
        return []
    if given.all_bad and given.strength is not None:
        raise BadInput("strength", "cannot be given with all_bad; leave one of them out")
    if given.strength is not None and len(shown) != 2:
        raise BadInput("strength", "is for items of two responses")
    if kind == "rank":
        for response in shown:
            if response not in given.ratings or given.ratings[response].likert is None:
                raise BadInput(f"ratings.{response}.likert", "rate this response from 1 to 7")
    return _check_ranks(given, shown)


def _check_ranks(given: Submission, shown: Sequence[str]) -> list[str]:
    if given.all_bad and not given.ranks:
        given.ranks = dict.fromkeys(shown, 1)
    for response in shown:
        rank = given.ranks.get(response)
        if rank is None:
            raise BadInput(f"ranks.{response}", "give this response a place")
        if rank < 1:
            raise BadInput(f"ranks.{response}", f"expected a whole number from 1 (best), got {rank}")
    if given.strength is not None:
        first, second = (given.ranks[response] for response in shown)
        # The sign says which is better, as the ranks do.
        if (given.strength > 0) != (first < second) or (given.strength < 0) != (first > second):
            raise BadInput("strength", "says the opposite of the ranks")
    dense = dense_ranks(given.ranks)
    if dense == given.ranks:
        return []
    given.ranks = dense
    return ["gaps between the places were closed: the order is as you gave it"]


def dense_ranks(ranks: Mapping[str, int]) -> dict[str, int]:
    """The same order and ties without gaps: 1, 2, 3, …"""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks.values())), 1)}
    return {response: places[rank] for response, rank in ranks.items()}


def _check_flags(key: str, flags: list[str], known: Mapping[str, str]) -> None:
    for flag in flags:
        if flag not in known:
            raise BadInput(key, f"unknown flag {flag!r}; there are {', '.join(known)}")
    if len(set(flags)) != len(flags):
        raise BadInput(key, "a flag is given twice")
