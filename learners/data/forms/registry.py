"""The forms that `convert` knows by name, and what each gives for a kind of data."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from common.errors import UserError
from common.plugins import load_function
from learners.data.conversations import as_messages
from learners.data.forms import conversations, oasst, pairs, scores
from learners.data.forms.turns import question

Row = dict[str, Any]
Reader = Callable[[Row], list[Row]]


class Form(NamedTuple):
    """What a row of a file in this form gives. Where it has rankings, their best responses are
    demonstrations and their prompts are prompts, if nothing else is said."""

    rankings: Reader | None = None
    demonstrations: Reader | None = None
    prompts: Reader | None = None


FORMS = {
    "alpaca": Form(demonstrations=conversations.alpaca),
    "hh": Form(rankings=pairs.hh),
    "nectar": Form(rankings=scores.nectar),
    "oasst": Form(rankings=oasst.rankings, demonstrations=oasst.demonstrations),
    "openai": Form(conversations.openai_pair, conversations.openai, conversations.openai_prompt),
    "openai_summarize": Form(rankings=scores.openai_summarize),
    "prism": Form(rankings=scores.prism),
    "sharegpt": Form(conversations.sharegpt_pair, conversations.sharegpt, conversations.sharegpt_prompt),
    "shp": Form(rankings=pairs.shp),
    "ultrafeedback": Form(rankings=scores.ultrafeedback),
    "webgpt": Form(rankings=pairs.webgpt),
}
"""By the name that `convert` takes; docs/data.md says which published sets have each of them."""


def load_converter(path: str, key: str, kind: str) -> Callable[[Row], Any]:
    """The function of a `convert` setting: a form by its name, or the user's module:function. Raises
    UserError for a name that is neither, and for a kind of data that the form does not have."""
    if ":" in path:
        return load_function(path, key, "row")
    form = FORMS.get(path)
    if form is None:
        near = difflib.get_close_matches(path, FORMS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{key}={path}: {hint}expected module:function or one of {', '.join(FORMS)}")
    reader = _reader(form, kind)
    if reader is None:
        kinds = [name for name in ("rankings", "demonstrations", "prompts", "heldout") if _reader(form, name)]
        raise UserError(f"{key}={path}: that form has no {kind}; it has {', '.join(kinds)}")
    return reader


def _reader(form: Form, kind: str) -> Reader | None:
    if kind == "rankings":
        return form.rankings
    if kind == "demonstrations":
        return form.demonstrations or (form.rankings and partial(_best, form.rankings))
    if kind in ("prompts", "heldout"):
        asked = form.rankings or form.demonstrations
        return form.prompts or (asked and partial(_prompts, asked))
    return None


def _best(rankings: Reader, row: Row) -> list[Row]:
    """The best response of each ranking as a demonstration; none where two are equally good."""
    rows = []
    for ranking in rankings(row):
        if "chosen" in ranking:
            rows.append({"messages": ranking["chosen"]})
        elif ranking["ranks"].count(1) == 1:
            best = ranking["responses"][ranking["ranks"].index(1)]
            rows.append(
                {"messages": [*as_messages(ranking["prompt"]), {"role": "assistant", "content": best}]}
            )
    return rows


def _prompts(asked: Reader, row: Row) -> list[Row]:
    """What is asked in each ranking or demonstration of a row."""
    rows = []
    for one in asked(row):
        rows.append(
            {"prompt": one["prompt"] if "prompt" in one else question(one.get("messages") or one["chosen"])}
        )
    return rows
