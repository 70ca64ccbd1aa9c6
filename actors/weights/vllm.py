"""The receiving half of weight transfer, with all calls to vLLM's weight-transfer interface.

    engine start:  register ► transfer_config ► vLLM loads `file_backend` ► init_transfer
    each update:   validate payload ► start ► update ► finish ► set version ► clear the prefix cache

`apply_update` is for the engine of a rollout actor, `swap_weights` for the asynchronous engine of a
serving replica. Both receive files, the one transport there is (`actors.weights.transport`).
Between start and finish an engine holds neither the old weights nor the new: after a failure there
it must be replaced, never resumed.

vLLM is imported inside functions: `register` runs while vLLM itself is being imported, and
importing this module must not load it before `actors.vllm_engine` has set its environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.weights.transport import FILE_BACKEND, WeightPayload, file_update_info


def register() -> None:
    """Registers our backend with vLLM. An entry point of `vllm.general_plugins`: runs in every vLLM
    process, maybe twice."""
    _request_amx()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    # vLLM refuses a second registration of a name.
    if FILE_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            FILE_BACKEND, "actors.weights.file_backend", "FileWeightTransferEngine"
        )


def _request_amx() -> None:
    """Asks Linux for the CPU's AMX tiles, which a process may only use after that; does nothing where
    there are none.

    vLLM's attention in bfloat16 uses them without asking. The first large matrix product asks, but a
    model of width 64 has none, and its engine ended with an illegal instruction.
    """
    import torch

    torch.cpu._init_amx()


def transfer_config() -> Any:
    """The `weight_transfer_config` of an engine that is to receive weights."""
    from vllm.config import WeightTransferConfig

    register()
    return WeightTransferConfig(backend=FILE_BACKEND)


def init_transfer(llm: Any) -> None:
    """Creates the backend in the workers of an in-process engine (`vllm.LLM`) that has started."""
    # The file backend has nothing to agree on beforehand.
    llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})


def apply_update(llm: Any, payload: WeightPayload, version: int) -> None:
    """Loads sent weights into an in-process engine (`vllm.LLM`) between two of its steps. Requests
    in flight lose the keys and values that the old weights computed, and compute them again.

    Raises UserError if the weights cannot be found. A RuntimeError means that the engine does not
    hold the new weights, and maybe no longer the old ones: it must be replaced.
    """
    payload.validate()  # before the start: an engine that was started cannot go back
    try:
        llm.collective_rpc("start_weight_update")
        llm.collective_rpc("update_weights", kwargs={"update_info": payload.update_info()})
        llm.collective_rpc("finish_weight_update")
    except Exception as error:
        raise _broken_engine(version) from error
    llm.llm_engine.set_weight_version(str(version))
    # The prefix cache would otherwise serve keys and values of the old weights to new requests.
    llm.reset_prefix_cache(reset_running_requests=True)


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
        await engine.update_weights(WeightTransferUpdateRequest(file_update_info(folder)))
        await engine.finish_weight_update(version)
    except Exception as error:
        raise _broken_engine(version) from error
    await engine.resume_generation()


def _broken_engine(version: int | str) -> RuntimeError:
    return RuntimeError(f"weight update to version {version} failed half-way; this engine must be replaced")
