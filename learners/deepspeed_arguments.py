"""Keys of DeepSpeed's configuration that the section learners.deepspeed passes on.

`python -m learners.deepspeed_arguments` checks it by DeepSpeed itself (`common.pass_through`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from common.pass_through import answer, check_known, refuse_reserved, unknown

OF_THE_STAGES = "set the optimizer section of the stage, for example sft.optimizer"
BATCHES = (
    "batches are the stages' own (batch_size, ppo.minibatches); learners.micro_batch_tokens limits memory"
)
PRECISION = "set learners.dtype or ppo.dtype"

RESERVED = {
    "optimizer": OF_THE_STAGES,
    "scheduler": OF_THE_STAGES,
    "gradient_clipping": "set clip_norm of the stage's optimizer section",
    "train_batch_size": BATCHES,
    "train_micro_batch_size_per_gpu": BATCHES,
    "gradient_accumulation_steps": BATCHES,
    "managed_gradient_accumulation": BATCHES,
    "gradient_allreduce_op": "the losses count on the mean over ranks",
    "bf16": PRECISION,
    "bfloat16": PRECISION,
    "fp16": PRECISION,
    "amp": PRECISION,
    "torch_autocast": PRECISION,
    "zero_force_ds_cpu_optimizer": "the program sets it",
    "tensor_parallel": "the ranks are data-parallel",
    "sequence_parallel_size": "set learners.sequence_parallel",
    "pipeline": "the ranks are data-parallel",
    "expert_parallel": "the ranks are data-parallel",
    "activation_checkpointing": "set model.gradient_checkpointing",
    "wandb": "every metric of the run is logged already",
}
"""Keys that are not passed on, with what to do instead."""

ZERO_RESERVED = {
    "stage": "set learners.zero_stage",
    "offload_optimizer": "set learners.offload_optimizer",
    "offload_param": "set learners.offload_parameters",
    "cpu_offload": "set learners.offload_optimizer",
    "cpu_offload_param": "set learners.offload_parameters",
}
"""The same for its section zero_optimization."""


def refuse_reserved_keys(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a key that the program sets."""
    refuse_reserved(values, RESERVED)
    zero = values.get("zero_optimization") or {}
    if not isinstance(zero, dict):
        raise ValueError("zero_optimization: expected keys and values")
    refuse_reserved(zero, ZERO_RESERVED)


def check_arguments(values: Mapping[str, Any], zero_stage: int) -> None:
    """Raises UserError for a key that DeepSpeed does not know, or a value that it does not take. Takes
    seconds where there are any."""
    if values:
        question = {"values": dict(values), "zero_stage": zero_stage}
        check_known("learners.deepspeed", "learners.deepspeed_arguments", question)


def merge(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; they have no key in common outside sections."""
    merged = dict(config)
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            value = merge(merged[name], value)
        merged[name] = value
    return merged


class _Read(dict[str, Any]):
    """Records the keys that DeepSpeed asks for: there is no list of them."""

    names: set[str] = set()  # noqa: RUF012 (of all copies that DeepSpeed makes)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def keys(self) -> Any:
        return self

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)


def _problems(values: Mapping[str, Any], zero_stage: int) -> list[str]:
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    ours = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": zero_stage}}
    try:
        DeepSpeedConfig(_Read(ours))
        known = set(_Read.names)
        unknown_names = [unknown(name, known, "DeepSpeed") for name in values if name not in known]
        DeepSpeedConfig(_Read(merge(ours, values)))
    except ValidationError as error:
        return [_explain(details, values) for details in error.errors()]
    except (ValueError, TypeError, AssertionError, KeyError) as error:
        return [f"{next(iter(values))}: DeepSpeed does not take these values ({error})"]
    return unknown_names


def _explain(details: Any, values: Mapping[str, Any]) -> str:
    """One error of a section of DeepSpeed's, which does not say which section it is."""
    path = [str(part) for part in details["loc"]]
    section = next(
        (name for name, value in values.items() if isinstance(value, dict) and path[0] in value), ""
    )
    key = ".".join([section, *path] if section else path)
    if details["type"] != "extra_forbidden":
        return f"{key}: {details['msg']} (got {details['input']!r})"
    known: set[str] = set()
    if section == "zero_optimization":
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        for name, field in DeepSpeedZeroConfig.model_fields.items():
            known.add(field.alias or name)
    return unknown(path[-1], known, "DeepSpeed").replace(path[-1], key, 1)


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer(_problems(asked["values"], asked["zero_stage"]))
