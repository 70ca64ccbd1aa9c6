"""The base of every configuration section."""

from __future__ import annotations

import os.path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Precision = Literal["float32", "bfloat16"]
DType = Literal["auto", "float32", "bfloat16"]
"""Values of a dtype key. The driver resolves auto to a Precision before anything runs (`common.hardware`)."""

LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder, or a name that is none; `~` is the home directory, as in a shell."""


class Section(BaseModel):
    """A part of the configuration. The docstrings of its fields are the help texts.

    Unknown keys are errors, and so are keys that have no effect beside the values of the others.
    """

    # Field docstrings become descriptions, which a test requires for every key.
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def inactive_keys(self) -> dict[str, str]:
        """Keys without effect beside the values of the others: key -> the setting that it needs."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: Any) -> Any:
        """A section without keys, for example `ppo:` with its lines commented out, has its defaults."""
        if not isinstance(values, dict):
            return values
        kept = {}
        for key, value in values.items():
            field = cls.model_fields.get(key)
            if value is not None or field is None or not isinstance(field.default, Section):
                kept[key] = value
        return kept

    @model_validator(mode="after")
    def _reject_inactive(self) -> Self:
        # Only keys that were set: a default that is inactive says nothing about what the user wants.
        for key, needed in self.inactive_keys().items():
            if key in self.model_fields_set:
                raise ValueError(
                    f"{key} has no effect here, only with {needed}; choose that or leave {key} out "
                    f"(the override …{key}= takes it back to its default)"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_inactive(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is written to config.yaml, which must load again and so may not hold inactive keys."""
        inactive = self.inactive_keys()
        return {key: value for key, value in serialize(self).items() if key not in inactive}
