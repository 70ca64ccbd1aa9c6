"""How new weights reach a vLLM engine: every call to vLLM's weight-transfer interface is in this module.

    learner ranks --Transport.send--> payload --(Ray)--> engine: check, start, update, finish(version)

A transport has a sending half, run on every learner rank (walking the weights is a collective under ZeRO-3), and a
vLLM backend that receives what was sent. `file` writes one safetensors file to shared memory or, for several hosts,
to a shared file system; CUDA IPC and NCCL are further transports behind the same two halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.weights.transport import BACKEND, validate_payload


def register() -> None:
    """Tells vLLM of our backend. An entry point of `vllm.general_plugins`: runs in every vLLM process, maybe twice."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "actors.weights.file_backend", "FileWeightTransferEngine"
        )


def transfer_config(backend: str = BACKEND) -> Any:
    """The `weight_transfer_config` of an engine that is to receive weights."""
    from vllm.config import WeightTransferConfig

    register()
    return WeightTransferConfig(backend=backend)


def apply_update(engine: Any, payload: dict[str, Any], version: int) -> None:
    """Puts sent weights into an in-process engine (`vllm.LLM`) between two of its steps. Requests at work lose the keys and
    values of the old weights, and compute them again.

    Raises UserError if there is no such file. A RuntimeError means that the engine does not hold the new weights, and maybe
    no longer the old ones: it must be replaced, never resumed.
    """
    validate_payload(payload)
    try:
        engine.collective_rpc("start_weight_update")
        engine.collective_rpc("update_weights", kwargs={"update_info": {"path": payload["path"]}})
        engine.collective_rpc("finish_weight_update")
    except Exception as fault:
        raise RuntimeError(
            f"weight update to version {version} failed half-way; this engine must be replaced"
        ) from fault
    engine.llm_engine.set_weight_version(str(version))
    engine.reset_prefix_cache(reset_running_requests=True)


async def swap_weights(engine: Any, folder: Path, version: str) -> None:
    """Puts the weights of a Hugging Face folder into a live `AsyncLLM` and drops nothing: requests at work are frozen
    and go on under the new weights, which compute their context again. The caller has checked the folder.

    A RuntimeError means that the engine holds neither the old nor the new weights. It stays paused, must never be
    resumed and has to be replaced.
    """
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    # clear_cache: no request, old or new, may go on from keys and values of the old weights.
    await engine.pause_generation(mode="keep", clear_cache=True)
    try:
        await engine.start_weight_update()
        await engine.update_weights(WeightTransferUpdateRequest({"path": str(folder)}))
        await engine.finish_weight_update(version)
    except Exception as fault:
        raise RuntimeError(
            f"weight update to version {version} failed half-way; this engine must be replaced"
        ) from fault
    await engine.resume_generation()


@dataclass
class Span:
    """Output tokens start to end (exclusive) were written by this version."""

    version: int
    start: int
    end: int


def version_spans(completion: Any, loaded: int) -> list[Span]:
    """Per-token weight versions of a finished completion; what vLLM calls "default" is the version loaded at start."""
    spans = completion.weight_versions or []
    return [Span(loaded if s.version == "default" else int(s.version), s.start, s.end) for s in spans]
