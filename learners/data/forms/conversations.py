"""Forms of demonstrations: instructions with an output, and conversations under other names."""

from __future__ import annotations

from typing import Any

from learners.data.conversations import InvalidRow
from learners.data.forms.scores import pair_of_messages
from learners.data.forms.turns import (
    answered,
    first_list,
    messages_of,
    prompt_of,
    question,
    text_of,
    without_greeting,
)

Row = dict[str, Any]


def alpaca(row: Row) -> list[Row]:
    """Stanford Alpaca: "instruction", "input" (may be empty) and "output"; also self-instruct's seed
    tasks, with "instances" of input and output."""
    instruction = text_of(row.get("instruction"), "instruction")
    instances = row.get("instances")
    if instances is None:
        instances = [row]
    if not isinstance(instances, list) or not all(isinstance(one, dict) for one in instances):
        raise InvalidRow("key 'instances': expected a list of objects with input and output")
    rows = []
    for one in instances:
        prompt = instruction
        given = text_of(one.get("input") or "", "input").strip()
        # Many rows say so instead of leaving it out.
        if given and given.lower() not in ("<noinput>", "noinput", "n/a", "none"):
            prompt = f"{instruction}\n\n{given}"
        output = text_of(one.get("output"), "output")
        if output.strip():
            rows.append({"prompt": prompt, "response": output})
    return rows


def sharegpt(row: Row) -> list[Row]:
    """ShareGPT: "conversations" of {"from": "human" or "gpt", "value"}."""
    key, turns = first_list(row)
    messages = answered(without_greeting(messages_of(turns, key)))
    if row.get("system") and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": text_of(row["system"], "system")}, *messages]
    has_question = any(message["role"] == "user" for message in messages)
    return [{"messages": messages}] if has_question else []


def sharegpt_prompt(row: Row) -> list[Row]:
    """What is asked last."""
    key, turns = first_list(row)
    return [{"prompt": question(without_greeting(messages_of(turns, key)))}]


def sharegpt_pair(row: Row) -> list[Row]:
    """The same with "chosen" and "rejected", a turn each or whole conversations."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list):
        return [pair_of_messages(row)]
    key, turns = first_list(row)
    answers = [messages_of([turn], name)[0] for turn, name in ((chosen, "chosen"), (rejected, "rejected"))]
    if {answer["role"] for answer in answers} != {"assistant"}:
        raise InvalidRow("keys 'chosen' and 'rejected': expected two turns of the assistant")
    prompt = prompt_of(without_greeting(messages_of(turns, key)))
    return [{"prompt": prompt, "responses": [one["content"] for one in answers], "ranks": [1, 2]}]


def openai(row: Row) -> list[Row]:
    """OpenAI's form for fine-tuning: "messages", whose content may be a list of parts."""
    return sharegpt({"messages": row.get("messages")})


def openai_prompt(row: Row) -> list[Row]:
    """What is asked last, in either of OpenAI's forms."""
    return sharegpt_prompt({"messages": (row.get("input") or row).get("messages")})


def openai_pair(row: Row) -> list[Row]:
    """OpenAI's form for preferences: "input" with messages, "preferred_output" and
    "non_preferred_output"."""
    given = row.get("input")
    if not isinstance(given, dict):
        raise InvalidRow("key 'input': expected an object with messages")
    answers = []
    for key in ("preferred_output", "non_preferred_output"):
        messages = messages_of(row.get(key), key)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise InvalidRow(f"key '{key}': expected one turn of the assistant")
        answers.append(messages[0]["content"])
    prompt = prompt_of(messages_of(given.get("messages"), "input.messages"))
    return [{"prompt": prompt, "responses": answers, "ranks": [1, 2]}]
