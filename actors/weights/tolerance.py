"""How closely the log-probabilities of an engine and of the learner must agree after a weight sync.

Used by the sync probe of training (`cluster.rl.weight_sync`) and by the canary of serving
(`serve.canary`).
"""

from __future__ import annotations

from common.config import DType, Precision
from common.hardware import precise

DEFAULT_TOLERANCE: dict[tuple[str, Precision], float] = {
    ("cpu", "float32"): 1e-5,
    ("cpu", "bfloat16"): 0.05,
    # Not measured: kernels of attention on GPUs multiply float32 in TF32, which has 10 bits of mantissa.
    ("cuda", "float32"): 5e-3,
    ("cuda", "bfloat16"): 0.05,
}
"""Nats, mean absolute difference, by the engine's device. Equal weights give about 2.5e-7 in float32 and
1.5e-3 in bfloat16 on a CPU."""


def logprob_tolerance(dtype: DType, max_logprob_error: float | None, device: str = "cpu") -> float:
    """Largest accepted mean absolute difference in nats: `max_logprob_error` of the config, or the
    default of the dtype on the engine's device."""
    if max_logprob_error is not None:
        return max_logprob_error
    return DEFAULT_TOLERANCE[device, precise(dtype)]


def coarser(first: DType, second: DType) -> DType:
    """Of two dtypes that compute the same numbers, the one that decides how closely they agree."""
    return first if first == "bfloat16" else second
