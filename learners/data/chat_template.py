"""What a chat template writes: a conversation as text, and in it the turns of the assistant.

Nothing here encodes (`learners.data.turn_tokens` does). Every template that transformers renders is
meant to work: with {% generation %} marks or without, with several named templates, with
templates that refuse conversations or rewrite earlier turns."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from common.errors import UserError
from learners.data.conversations import InvalidRow, Messages

MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Answers that no template contains, to see what it writes around them.
PROBE_ANSWERS = ("First-answer-7q", "Second-answer-7q")


@dataclass(frozen=True)
class Turn:
    """An assistant's turn in the text of a conversation, as positions of characters."""

    start: int
    """Where sampling would begin."""
    words_end: int
    """Where the assistant's words end."""
    end: int
    """Behind the end token. The same as `words_end` where the template writes none."""


@dataclass(frozen=True)
class TurnForm:
    """What a template writes around the words of any assistant's turn."""

    opening: str
    """Between the prompt and the words: mostly nothing, in some templates a space."""
    closing: str
    """From the words to the tokenizer's end token: mostly that token alone. Empty if the template does
    not write it."""
    rest: str
    """All that follows the last words of a conversation."""
    token: str | None
    """The token that ends a turn: the tokenizer's end token if every turn has it, else the first special
    one. None if the template writes none."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    open_turn: bool = False,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The conversation as text; with `open_turn` up to where the assistant begins to write. `tools` are
    JSON schemas of functions that the template offers. Raises InvalidRow if the template refuses it."""
    options = {"tools": tools} if tools else {}
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=open_turn, **options
            )
        )
    except Exception as error:  # templates raise what they like, and may fail on any value
        raise _refused(error) from None


def render_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, last_only: bool = False
) -> tuple[str, list[Turn]]:
    """The conversation as text, up to the end token of its last turn, and the assistant's turns in it
    (or the last one).

    What a template writes after the last end token is left out: a policy never gets there. Where the
    template writes no end token after the last turn, it is added. Raises InvalidRow if the template
    refuses the conversation, or the turns cannot be found."""
    if MARKS.search(str(tokenizer.get_chat_template())):
        text, turns = _marked_turns(tokenizer, messages)
    else:
        text = render(tokenizer, messages)
        turns = _unmarked_turns(tokenizer, messages, text, last_only)
    end_token, last = str(tokenizer.eos_token), turns[-1]
    if end_token not in text[last.words_end : last.end]:
        text = text[: last.words_end] + end_token
        turns[-1] = replace(last, end=len(text))
    _tell_of_changes(tokenizer, messages[-1]["content"], text[last.start : last.words_end])
    return text[: turns[-1].end], turns


def _tell_of_changes(tokenizer: PreTrainedTokenizerBase, words: str, written: str) -> None:
    # White space is often cut off; but some templates drop the reasoning that is to be learned.
    if words not in written and "".join(words.split()) not in "".join(written.split()):
        tell_once(
            f"tokenizer {tokenizer.name_or_path}: its chat template leaves out or changes a part of some "
            "answers, such as their reasoning; what it writes is learned"
        )


def turn_form(tokenizer: PreTrainedTokenizerBase) -> TurnForm:
    """What the tokenizer's template writes around an assistant's words. Raises UserError if it cannot
    write a conversation at all."""
    return _turn_form(tokenizer, str(tokenizer.get_chat_template()), tokenizer.eos_token)


@lru_cache(maxsize=8)
def _turn_form(tokenizer: PreTrainedTokenizerBase, template: str, end_token: str | None) -> TurnForm:
    # `template` and `end_token` are keys of the cache: both may be set later.
    question, first, second = ({"role": "user", "content": "Question"}, *_probe_messages())
    try:
        opened = render(tokenizer, [question], open_turn=True)
        short = render(tokenizer, [question, second])
    except InvalidRow as error:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: its chat template does not write a question and an "
            f"answer ({error}); set model.chat_template to one that does"
        ) from None
    before, found, rest = short.partition(PROBE_ANSWERS[1])
    if not found:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: its chat template leaves out the assistant's words; set "
            "model.chat_template to one that writes them"
        )
    opening = before.removeprefix(opened) if before.startswith(opened) else ""
    try:
        long = render(tokenizer, [question, first, question, second])
    except InvalidRow:
        long = short
    # What ends every turn, and not only the last one of a conversation.
    behind_first = long.partition(PROBE_ANSWERS[0])[2]
    behind_second = long.partition(PROBE_ANSWERS[1])[2]
    every = behind_first[: common_length(behind_first, behind_second)]
    closing, token = "", _first_token(tokenizer, every) or _first_token(tokenizer, rest)
    if end_token and end_token in every:
        token = end_token
    if end_token and end_token in rest:
        closing = rest[: rest.index(end_token)] + end_token
    return TurnForm(opening, closing, rest, token)


def _probe_messages() -> Messages:
    return [{"role": "assistant", "content": answer} for answer in PROBE_ANSWERS]


def _first_token(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The first token of its own (a special one, or one added to the vocabulary) in a text."""
    found: list[tuple[int, int, str]] = []
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    for token in added | set(tokenizer.all_special_tokens):
        # Some vocabularies have line breaks and indentation among the added tokens.
        if token.strip() and token in text:
            found.append((text.index(token), -len(token), token))
    return min(found)[2] if found else None


def _marked_turns(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[str, list[Turn]]:
    """By the marks of the template. A mark that ends before the end token is extended to it: else a
    model would never learn to stop."""
    try:
        texts, marks = render_jinja_template(
            conversations=[messages],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # as in `render`
        raise _refused(error) from None
    text, closing, end_token = texts[0], turn_form(tokenizer).closing, str(tokenizer.eos_token)
    turns = []
    for start, end in marks[0]:
        words = text[start:end]
        if words.endswith(closing):
            turns.append(Turn(start, end - len(closing), end))
        elif text.startswith(closing, end):
            turns.append(Turn(start, end, end + len(closing)))
        elif end_token in words:
            # The mark goes on after the end token.
            words_end = start + words.rindex(closing if closing in words else end_token)
            turns.append(Turn(start, words_end, end))
        else:
            turns.append(Turn(start, end, end))
    if not turns:
        raise InvalidRow("the chat template marks none of its words as the assistant's")
    # Nothing behind the last end token is kept, marked or not.
    last = turns[-1]
    behind = text.find(end_token, last.words_end, last.end)
    if behind >= 0:
        turns[-1] = replace(last, end=behind + len(end_token))
    return text, turns


def _unmarked_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str, last_only: bool
) -> list[Turn]:
    """By rendering the prompt of each turn, and by the words and the closing that follow it."""
    turns: list[Turn] = []
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if last_only:
        indices = indices[-1:]
    starts = [_turn_start(tokenizer, messages, i, text) for i in indices]
    bounds = [*starts[1:], len(text)]
    form = turn_form(tokenizer)
    for i, start, bound in zip(indices, starts, bounds, strict=True):
        words_end = _words_end(messages[i]["content"], form, text, start, bound)
        if words_end is None:
            words_end = _rendered_end(tokenizer, messages[: i + 1], form, text)
        end = words_end
        if text.startswith(form.closing, words_end):
            end += len(form.closing)
        turns.append(Turn(start, words_end, end))
    return turns


def _turn_start(tokenizer: PreTrainedTokenizerBase, messages: Messages, i: int, text: str) -> int:
    """Where message `i`, the assistant's, begins in the text of the conversation."""
    if i > 0:
        try:
            opened = render(tokenizer, messages[:i], open_turn=True)
        except InvalidRow:
            opened = None
        if opened is not None and text.startswith(opened):
            return len(opened)
    # Some templates refuse the beginning of a conversation, or write it differently once it goes on.
    probe = {**messages[i], "content": PROBE_ANSWERS[0]}
    probed = render(tokenizer, [*messages[:i], probe, *messages[i + 1 :]])
    start = probed.find(PROBE_ANSWERS[0])
    if probed.count(PROBE_ANSWERS[0]) != 1 or text[:start] != probed[:start]:
        raise InvalidRow(
            "the chat template writes the start of the conversation differently once it goes on, so the "
            "assistant's words cannot be told apart; mark them with {% generation %} in the template"
        )
    if i > 0 and i == len(messages) - 1:
        tell_once(
            f"tokenizer {tokenizer.name_or_path}: its chat template does not begin an answered conversation "
            "as it begins the same one when it is to be answered; demonstrations are learned as the template "
            "writes them, sampling starts from the other form"
        )
    return start


def _words_end(content: str, form: TurnForm, text: str, start: int, bound: int) -> int | None:
    """Where the words of a turn end; templates may cut white space off, or leave out a part (such as
    the reasoning of earlier turns). None if neither the words nor what closes a turn are there."""
    for words in (content, content.strip()):
        found = text.find(words + form.closing, start, bound)
        if form.closing and found >= 0:
            return found + len(words)
        if text.startswith(form.opening + words, start):
            return start + len(form.opening) + len(words)
    found = text.find(form.closing, start, bound)
    return found if form.closing and found >= 0 else None


def _rendered_end(tokenizer: PreTrainedTokenizerBase, messages: Messages, form: TurnForm, text: str) -> int:
    """Where the last words of `messages` end in the text of a conversation that begins with them."""
    beginning = render(tokenizer, messages)
    if not text.startswith(beginning):
        raise InvalidRow(
            "the chat template rewrites the assistant's words, so that their end cannot be found; mark "
            "them with {% generation %} in the template"
        )
    return len(beginning.removesuffix(form.rest))


@cache
def tell_once(message: str) -> None:
    """A warning that appears once in a process, however many stages and rows it is about."""
    logging.warning(message)


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items at the beginning are the same in both."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def _refused(error: Exception) -> InvalidRow:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return InvalidRow(f"the chat template refuses the conversation ({reason})")
