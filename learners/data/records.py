"""The four kinds of rows that stages learn from, as pydantic models with one schema version.

The reader (`learners.data.sources`), the collect stage, the feedback of the endpoint and the
reward stage all use these models, so a row that one of them writes is a row that the others read.
A record keeps the keys that it does not know: reward functions and judges get them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import to_jsonable_python

from learners.data.conversations import (
    InvalidRow,
    Messages,
    are_flags,
    are_ranks,
    as_messages,
    check_messages,
    check_prompt,
    check_text,
    conversation_text,
    normalized_text,
)
from learners.data.pairs import ends_with_user, joined_prompt, ranking_of_pair
from learners.data.values import comparable_text, present_values, whole_number

Row = dict[str, Any]

SCHEMA_VERSION: Final = 1
"""Grows when a reader of older rows would misread newer ones."""


def _text_field(value: Any, info: ValidationInfo) -> str:
    return check_text(value, str(info.field_name))


def _prompt_field(value: Any, info: ValidationInfo) -> str | Messages:
    return check_prompt(value, str(info.field_name))


def _conversation_field(value: Any, info: ValidationInfo) -> Messages:
    return check_messages(value, str(info.field_name), last="assistant")


def _responses_field(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) for text in value):
        raise InvalidRow("key 'responses': expected a list of at least two texts")
    return value


Text = Annotated[str, BeforeValidator(_text_field)]
Prompt = Annotated[str | Messages, BeforeValidator(_prompt_field)]
Conversation = Annotated[Messages, BeforeValidator(_conversation_field)]
Responses = Annotated[list[str], BeforeValidator(_responses_field)]


class Record(BaseModel, ABC):
    """Base of the records: reading a row, and the two forms in which a record leaves the
    program."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True, use_attribute_docstrings=True)
    identity: ClassVar[tuple[str, ...]]
    """Keys whose values make two rows duplicates of each other."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this schema; rows of users may leave it out."""

    @classmethod
    def parse(cls, row: Any) -> Self:
        """The record of a row in any of its forms. Raises InvalidRow."""
        if not isinstance(row, dict):
            raise InvalidRow("expected a JSON object")
        try:
            return cls.model_validate(present_values(row))
        except RecursionError:
            raise InvalidRow("its values are nested too deeply to be read") from None
        except ValidationError as error:
            # `from None`: pydantic's report of many lines would stand before the one sentence.
            raise InvalidRow(_sentence(error)) from None

    @classmethod
    def normalize(cls, row: Row) -> Row:
        """The row in the one form that the fields describe."""
        return row

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, row: Row) -> Row:
        row = cls.normalize(dict(row))
        for name, field in cls.model_fields.items():
            # A missing key gets the same message as a wrong value.
            if field.is_required():
                row.setdefault(name, None)
        return row

    @property
    @abstractmethod
    def split_text(self) -> str:
        """What decides whether the row is held out (`learners.data.split`)."""

    def user_row(self) -> Row:
        """A plain dict with all keys of the user's row, for functions of the user."""
        # Defaults are left out: a function must not find keys that the file does not have.
        return self.model_dump(exclude_unset=True)

    def stored_row(self) -> Row:
        """A plain dict of JSON values to write as a line of a file."""
        row = {"schema_version": SCHEMA_VERSION, **self.user_row()}
        # Rows of tables hold dates, decimals and NaN: they become texts and null.
        stored: Row = to_jsonable_python(row, inf_nan_mode="null", bytes_mode="base64", fallback=str)
        return stored

    def value_of(self, key: str) -> Any:
        """The value of a key of the row, whether the schema knows it or not; None without it."""
        if key in type(self).model_fields:
            return getattr(self, key)
        return (self.model_extra or {}).get(key)

    def duplicate_key(self) -> str:
        """Equal for rows that differ only in keys outside of `identity` and as `comparable_text`
        says."""
        return comparable_text(*(getattr(self, name) for name in self.identity))


class DocumentRecord(Record):
    """A document of the pretraining corpus."""

    identity: ClassVar[tuple[str, ...]] = ("text",)

    text: Text

    @property
    def split_text(self) -> str:
        return normalized_text(self.text)


class PromptRecord(Record):
    """A prompt to sample from. The conversation may also stand under the key "messages"."""

    identity: ClassVar[tuple[str, ...]] = ("prompt",)

    prompt: Prompt
    """A text, or a conversation that ends with the user's message."""

    @classmethod
    def normalize(cls, row: Row) -> Row:
        prompt, messages = row.get("prompt"), row.get("messages")
        if not prompt and isinstance(messages, list):
            row["prompt"] = check_prompt(messages, "messages")
        # With an answer it is what the prompt was taken from; without one it may say more.
        elif prompt and messages and ends_with_user(messages):
            check_messages(messages, "messages", last="user")
            row["prompt"] = joined_prompt(check_prompt(prompt, "prompt"), messages, "messages")
        return row

    @property
    def split_text(self) -> str:
        return conversation_text(as_messages(self.prompt))


class DemonstrationRecord(Record):
    """A conversation to learn from, as "messages" or as "prompt" and "response"."""

    identity: ClassVar[tuple[str, ...]] = ("messages",)

    messages: Conversation
    """Ends with the assistant's message. Every message of the assistant is learned."""

    @classmethod
    def normalize(cls, row: Row) -> Row:
        if not row.get("messages") and "response" in row:
            prompt = PromptRecord.parse(row).prompt
            response = check_text(row["response"], "response")
            row["messages"] = [*as_messages(prompt), {"role": "assistant", "content": response}]
        return row

    @property
    def split_text(self) -> str:
        """The conversation up to the last message of the user (all of it if there is none)."""
        end = len(self.messages)
        for i, message in enumerate(self.messages, 1):
            if message["role"] == "user":
                end = i
        return conversation_text(self.messages[:end])


class ResponsePolicy(BaseModel):
    """Which policy gave a response."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True, use_attribute_docstrings=True)

    model: str
    """Name of the served model, or of the stage whose policy it was."""
    version: str
    """Name of the policy version, for example ppo-20."""


class ResponsesRecord(Record):
    """Several responses to one prompt: what the collect stage samples and people or labelers
    rank."""

    identity: ClassVar[tuple[str, ...]] = ("prompt", "responses")

    prompt: Prompt
    """A text, or a conversation that ends with the user's message."""
    responses: Responses
    ended: list[bool] = []
    """For each response, whether it ended by itself and not at the length limit; all of them if
    left out."""
    policy: list[ResponsePolicy] | None = None
    """For each response, the policy that gave it."""
    decoding: list[dict[str, Any]] | None = None
    """For each response, its sampling settings."""
    row: Any = None
    """The row of the prompt file, from which a judge (`evaluate.judge`) knows the truth."""

    @classmethod
    def normalize(cls, row: Row) -> Row:
        # Checked here and not by its type, so that the message says how many values are expected.
        responses, ended = row.get("responses"), row.get("ended")
        if isinstance(responses, list):
            if not ended:
                ended = [True] * len(responses)
            elif isinstance(ended, list):
                # Not known is as where the whole list is left out.
                ended = [flag is None or flag for flag in ended]
            if not isinstance(ended, list) or not are_flags(ended, len(responses)):
                raise InvalidRow(f"key 'ended': expected {len(responses)} times true or false")
            row["ended"] = ended
        return row

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        for key in ("policy", "decoding"):
            values = getattr(self, key)
            if values is not None and len(values) != len(self.responses):
                raise InvalidRow(
                    f"key '{key}': expected {len(self.responses)} entries, one for each response"
                )
        return self

    @property
    def split_text(self) -> str:
        return conversation_text(as_messages(self.prompt))


class RankingRecord(ResponsesRecord):
    """Responses to one prompt with their ranks; or a pair, "chosen" better than "rejected".

    The two of a pair are texts, or whole conversations that differ in the last message; then
    "prompt" may be left out."""

    identity: ClassVar[tuple[str, ...]] = ("prompt", "responses", "ranks", "labeler")

    ranks: list[int]
    """1 is best, equal for ties."""
    labeler: str | None = None
    """Who ranked."""
    time: Any = None
    """When, in seconds since 1970 where this program writes it."""

    @classmethod
    def normalize(cls, row: Row) -> Row:
        # A row that has both forms says more by its ranking.
        if not row.get("responses") and "chosen" in row:
            row |= ranking_of_pair(row)
        row = super().normalize(row)
        # The prompt is checked before the ranks, and both by hand, for the sake of the messages.
        check_prompt(row.get("prompt"), "prompt")
        responses, ranks = _responses_field(row.get("responses")), row.get("ranks")
        if isinstance(ranks, list):
            ranks = [whole_number(rank) for rank in ranks]
        if not isinstance(ranks, list) or not are_ranks(ranks, len(responses)):
            raise InvalidRow(
                f"key 'ranks': expected {len(responses)} whole numbers from 1 (best), equal for ties"
            )
        row["ranks"] = ranks
        return row


SCHEMAS: dict[str, type[Record]] = {
    "corpus": DocumentRecord,
    "demonstrations": DemonstrationRecord,
    "prompts": PromptRecord,
    "heldout": PromptRecord,
    "rankings": RankingRecord,
}
"""The record of each kind of data in section `data` of the config."""


def _sentence(error: ValidationError) -> str:
    """The first problem of a row. Checks of this module give the sentence; for other fields it is
    made of pydantic's."""
    # The first only: the others often follow from it.
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRow):
        return str(cause)
    key = ""
    for part in problem["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    message = problem["msg"]
    return f"key '{key.lstrip('.')}': {message[0].lower()}{message[1:]}"
