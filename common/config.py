"""The base of every configuration section."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

DType = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """A part of the configuration: unknown keys and keys without effect are errors, field docstrings are the help."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    def inactive_keys(self) -> dict[str, str]:
        """Keys that change nothing beside the values of the others, and the setting under which each would."""
        return {}

    @model_validator(mode="after")
    def _reject_inactive(self) -> Self:
        for key, wanted in self.inactive_keys().items():
            if key in self.model_fields_set:
                raise ValueError(
                    f"{key} has no effect here, only with {wanted}; choose that or leave {key} out (the override …{key}= "
                    "takes it back to its default)"
                )
        return self

    @model_serializer(mode="wrap")
    def _effective(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = self.inactive_keys()
        return {key: value for key, value in serialize(self).items() if key not in idle}
