"""Names of the variants of the losses, as the functions and the configuration take them. Free of
torch, since the configuration must load without it."""

from __future__ import annotations

from typing import Literal

KLEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "fixed_length"]
Correction = Literal["none", "tis", "icepop", "sequence", "decoupled"]
RatioLevel = Literal["token", "sequence"]
