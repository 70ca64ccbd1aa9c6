"""How much one more comparison would tell about the parameters of a linear reward."""

from __future__ import annotations

import numpy as np

from label.statistics.estimate import Floats


def comparison_gain(difference: Floats, information: Floats, win_probability: float) -> float:
    """Gain in log det of the Fisher information by one comparison: log(1 + w δᵀM⁻¹δ), w = p(1−p)
    (arXiv:2502.04354). `difference` δ is that of the two responses' features, `information` M what
    is known so far. A pair of an almost sure outcome tells little, however far apart its responses
    are."""
    weight = win_probability * (1 - win_probability)
    return float(np.log1p(weight * difference @ np.linalg.solve(information, difference)))
