"""The receiving half of weight transfer, with all calls to vLLM's weight-transfer interface.

    engine start:  register ► receiver_arguments ► vLLM loads `backend` ► init_transfer
    each update:   first bucket: validate ► start ► update    more buckets: validate ► update
                   last bucket: update ► finish ► set version ► clear the prefix cache

`load_bucket` is for the engine of a rollout actor, `swap_weights` for the asynchronous engine of a
serving replica, which takes a folder of files. Between start and finish an engine holds neither the old
weights nor the new: after a failure there it must be replaced, never resumed.

vLLM is imported inside functions: `register` runs while vLLM itself is being imported, and
importing this module must not load it before `actors.vllm_engine` has set its environment.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.weights.payload import WeightPayload
from actors.weights.transport import SHARED_MEMORY, write_safetensors

BACKEND = "zero2hero"
"""Name under which vLLM knows `actors.weights.backend`."""


def register() -> None:
    """Registers our backend with vLLM. An entry point of `vllm.general_plugins`: runs in every vLLM
    process, maybe twice."""
    _request_amx()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    # vLLM refuses a second registration of a name.
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "actors.weights.backend", "BucketEngine")


def _request_amx() -> None:
    """Asks Linux for the CPU's AMX tiles, which a process may only use after that; does nothing where
    there are none.

    vLLM's attention in bfloat16 uses them without asking. The first large matrix product asks, but a
    model of width 64 has none, and its engine ended with an illegal instruction.
    """
    torch.cpu._init_amx()


def receiver_arguments() -> dict[str, Any]:
    """Arguments of vLLM for an engine that is to receive weights."""
    from vllm.config import WeightTransferConfig

    register()
    return {
        "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
        "worker_extension_cls": "actors.weights.worker_extension.WorkerExtension",
    }


def init_transfer(llm: Any, link: tuple[str, int] | None = None, timeout_s: float = 300.0) -> None:
    """Creates the backend in the workers of an in-process engine (`vllm.LLM`) that has started. With
    `link`, the address of an open rendezvous, they join the link of the broadcast transport: returns when
    all have met."""
    info: dict[str, Any] = {}
    if link is not None:
        info = {"host": link[0], "port": link[1], "timeout_s": timeout_s}
    llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": info})


def load_bucket(
    llm: Any, payload: WeightPayload, version: int, arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Loads one bucket into an in-process engine (`vllm.LLM`) between two of its steps. Requests
    in flight lose the keys and values that the old weights computed, and compute them again.

    Raises UserError if the weights cannot be found. A RuntimeError means that the engine does not
    hold the new weights, and maybe no longer the old ones: it must be replaced.
    """
    payload.validate(arrays)  # before the start: an engine that was started cannot go back
    try:
        if payload.number == 0:
            llm.collective_rpc("start_weight_update")
        with _update_info(llm, payload, arrays) as info:
            llm.collective_rpc("update_weights", kwargs={"update_info": info})
        if not payload.last:
            return
        llm.collective_rpc("finish_weight_update")
    except Exception as error:
        raise _broken_engine(version) from error
    llm.llm_engine.set_weight_version(str(version))
    # The prefix cache would otherwise serve keys and values of the old weights to new requests.
    llm.reset_prefix_cache(reset_running_requests=True)


@contextmanager
def _update_info(
    llm: Any, payload: WeightPayload, arrays: Mapping[str, np.ndarray] | None
) -> Iterator[dict[str, Any]]:
    """Fields of `backend.UpdateInfo`. Arrays reach the only worker of an engine as they are; several
    workers, which are processes of this host, map a file of shared memory instead of getting a copy each.
    """
    if arrays is None or num_workers(llm) == 1:
        yield payload.update_info(arrays)
        return
    tensors = []
    for meta in payload.tensors:
        whole = torch.from_numpy(arrays[meta.name].copy())
        tensors.append((meta.name, whole.view(getattr(torch, meta.dtype)).view(meta.shape)))
    folder = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=folder, prefix="zero2hero-", suffix=".safetensors") as file:
        write_safetensors(Path(file.name), tensors)
        yield replace(payload, kind="file", path=file.name).update_info()


def num_workers(llm: Any) -> int:
    """Processes that an engine's model is spread over."""
    return int(llm.llm_engine.vllm_config.parallel_config.world_size)


async def swap_weights(engine: Any, folder: Path, version: str) -> None:
    """Loads the weights of a Hugging Face folder into a live `AsyncLLM` without dropping a request:
    those in flight pause and go on under the new weights, which compute their keys and values
    again. The caller has checked the folder.

    A RuntimeError means that the engine holds neither the old nor the new weights. It stays paused
    and must be replaced.
    """
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    # clear_cache: no request, old or new, may go on from keys and values of the old weights.
    await engine.pause_generation(mode="keep", clear_cache=True)
    try:
        await engine.start_weight_update()
        await engine.update_weights(WeightTransferUpdateRequest({"kind": "file", "path": str(folder)}))
        await engine.finish_weight_update(version)
        await engine.collective_rpc("clear_kv_cache")
    except Exception as error:
        raise _broken_engine(version) from error
    await engine.resume_generation()


def _broken_engine(version: int | str) -> RuntimeError:
    return RuntimeError(f"weight update to version {version} failed half-way; this engine must be replaced")
