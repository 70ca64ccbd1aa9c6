"""Encodes each response of a file of rankings once, for `learners.data.ranking_groups`."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from learners.data.conversations import Messages, as_messages

Encode = Callable[[PreTrainedTokenizerBase, str | Messages, str, bool], list[int]]
"""(tokenizer, prompt, response, whether it ended) -> token ids of both."""

REMEMBERED = 1024


class ResponseEncoder:
    """Encodes a response that several rankings have once, where they follow each other: rendering and
    encoding take most of the time of `encode_rankings`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encode: Encode) -> None:
        self.tokenizer, self._encode = tokenizer, encode
        self._encoded: dict[tuple[str, bool, str], list[int]] = {}

    def encode(self, prompt: str | Messages, ended: bool, response: str) -> list[int]:
        key = (str(as_messages(prompt)), ended, response)
        if key not in self._encoded:
            # Rankings of one prompt stand together in most files; all responses would not fit in memory.
            if len(self._encoded) == REMEMBERED:
                self._encoded.clear()
            # A response that was cut has no end, and the reward model is to see that.
            self._encoded[key] = self._encode(self.tokenizer, prompt, response, ended)
        return self._encoded[key]
