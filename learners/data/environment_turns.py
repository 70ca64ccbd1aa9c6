"""The tokens of a conversation with an environment, which only ever grow.

What the policy sampled stays as the tokens that it sampled: text that is decoded and encoded again is often
not the same tokens, and then what is learned from is not what was written. Only the environment's words are
rendered, between the turn markers of the chat template:

    prompt            <|user|>2 + 3 + 4?<|end|><|assistant|>
    policy                                                  add(2, 3)<|end|>
    environment                                                             <|tool|>5<|end|><|assistant|>
    policy                                                                                               …

So the prompt of each turn begins with exactly the tokens of the turn before. Templates that write earlier
turns differently once a conversation goes on (some drop the reasoning) do not get to it.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from learners.data.chat_template import PROBE_ANSWERS, render, turn_form
from learners.data.conversations import InvalidRow, Messages
from learners.data.turn_tokens import encode_text

QUESTION = {"role": "user", "content": "Question"}
CALL = {"id": "call00000", "type": "function", "function": {"name": "probe", "arguments": {}}}


class EnvironmentTurns:
    """Renders an environment's messages for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._end_token = str(tokenizer.eos_token)

    def first_prompt(self, messages: Messages, tools: list[dict[str, Any]]) -> list[int]:
        """Token ids of the first messages up to where the policy begins to write. Raises UserError if the
        template leaves a tool out, and InvalidRow if it refuses the messages."""
        text = render(self._tokenizer, messages, open_turn=True, tools=tools)
        for tool in tools:
            name = tool["function"]["name"]
            if name not in text:
                raise UserError(
                    f"the chat template of {self._tokenizer.name_or_path} does not offer the tool {name}: it "
                    "was made without tools; set model.chat_template to one that writes them"
                )
        return encode_text(self._tokenizer, text)

    def words(self, messages: Messages, ended: bool) -> list[int]:
        """Token ids from the end of the policy's turn to where its next one begins. `ended`: whether the
        policy wrote its end token; without it, it is the first of these. Raises InvalidRow if the template
        refuses the messages."""
        text = self._behind_answer(messages)
        if not ended:
            return encode_text(self._tokenizer, text)
        text = text.removeprefix(self._end_token)
        # Behind the end token, since some tokenizers take white space into it.
        ids = encode_text(self._tokenizer, self._end_token + text)
        if ids[:1] != [self._tokenizer.eos_token_id]:
            return encode_text(self._tokenizer, text)
        return ids[1:]

    def _behind_answer(self, messages: Messages) -> str:
        """What the template writes from the end of an assistant's words on: its end token, the messages and
        the beginning of another turn."""
        answer: dict[str, Any] = {"role": "assistant", "content": PROBE_ANSWERS[0]}
        try:
            text = render(self._tokenizer, [QUESTION, answer, *messages], open_turn=True)
        except InvalidRow:
            if not any(message["role"] == "tool" for message in messages):
                raise
            # Some templates take results only behind a call.
            text = render(
                self._tokenizer, [QUESTION, {**answer, "tool_calls": [CALL]}, *messages], open_turn=True
            )
        behind = text.rpartition(PROBE_ANSWERS[0])[2]
        closing = turn_form(self._tokenizer).closing
        if closing and closing in behind:
            # What stands before it is a call, or a space.
            behind = self._end_token + behind[behind.index(closing) + len(closing) :]
        return behind
