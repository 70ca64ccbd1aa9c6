"""Models that no rank ever holds whole on its device: parameter by parameter from rank 0, cut on arrival.

Rank 0 makes the model as it always is made, on the CPU (weights of a safetensors file are mapped, so
those of the wanted precision cost no memory until they are read). The other ranks receive it without its
weights. Then each parameter goes to all devices and is cut by ZeRO-3 before the next one comes: a device
holds its shard and one parameter. A model that is made like this has the bits of one that every rank
loads whole, whatever its architecture, its adapters or its new head.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import nn
from transformers import PreTrainedModel

from common.errors import UserError
from learners.config import LearnerConfig
from learners.models import DTYPES


def loads_sharded(learner: LearnerConfig) -> bool:
    """Whether this rank's models are cut on arrival (`learners.init`)."""
    if learner.init == "auto":
        return learner.zero_stage == 3 and _device().type == "cuda"
    return learner.zero_stage == 3 and learner.init == "sharded"


def load(make: Callable[[], PreTrainedModel], learner: LearnerConfig, dtype: str) -> PreTrainedModel:
    """The model of `make`, whole on the CPU, or under `loads_sharded` as shards on the devices of all
    ranks. A collective then; an error of `make` is raised on every rank."""
    if not loads_sharded(learner):
        return make()
    model = _send(make) if dist.get_rank() == 0 else _receive()
    _shard(model, learner, DTYPES[dtype])
    return model


def _send(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Makes the model and sends it without its weights."""
    try:
        model = make()
        message: Any = _without_weights(model)
    except Exception as error:
        # The others wait for a message.
        dist.broadcast_object_list([error if isinstance(error, UserError) else UserError(str(error))])
        raise
    dist.broadcast_object_list([message])
    return model


def _receive() -> PreTrainedModel:
    message: list[Any] = [None]
    dist.broadcast_object_list(message)
    if isinstance(message[0], Exception):
        raise message[0]
    pickled, shapes = message[0]
    model: PreTrainedModel = pickle.loads(pickled)
    for parameter, (shape, dtype) in zip(model.parameters(), shapes, strict=True):
        # Without memory behind it: the real one comes when the parameter is cut.
        parameter.data = torch.empty(1, dtype=dtype).expand(shape)
    return model


def _without_weights(model: PreTrainedModel) -> tuple[bytes, list[tuple[torch.Size, torch.dtype]]]:
    """(the pickled model with empty parameters, the shape and dtype of each)."""
    weights = [parameter.data for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    try:
        pickled = pickle.dumps(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"{type(model).__name__}: this model cannot be sent to the other ranks without its weights "
            f"({error}); set learners.init=full"
        ) from None
    finally:
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.data = weight
    return pickled, [(weight.shape, weight.dtype) for weight in weights]


@torch.no_grad()
def _shard(model: PreTrainedModel, learner: LearnerConfig, dtype: torch.dtype) -> None:
    """Cuts the model's parameters, whose values are those of rank 0."""
    converter = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=zero_init_config(learner, dtype))
    device = converter.local_device
    for parameter in model.parameters():
        if dist.get_rank() == 0:
            parameter.data = parameter.data.to(dtype).to(device).contiguous()
        else:
            parameter.data = torch.empty(parameter.shape, dtype=dtype, device=device)
        # Broadcasts from rank 0, cuts, and frees what is not this rank's.
        converter._convert_to_zero_parameters([parameter])
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def zero_init_config(learner: LearnerConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What `zero.Init` reads of DeepSpeed's configuration."""
    zero = {**learner.deepspeed.get("zero_optimization", {}), "stage": 3}
    if learner.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": _device().type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
    }


def _device() -> torch.device:
    """Where this rank's engines will be."""
    return torch.device(get_accelerator().device_name(int(os.environ.get("LOCAL_RANK", "0"))))
