"""Which of the sampled prompts people are asked about.

random: the first ones, which come in a random order. fisher: a part at random, and for the rest the prompt
whose pairs of responses add most to the Fisher information of the reward model's head, one after the other
(greedy D-optimal design, arXiv:2502.04354). For a prompt with the features X (K, D) of its responses it is

    I = Σ w_ij (x_i − x_j)(x_i − x_j)ᵀ = Xᵀ L X,    w = p(1 − p),  p = σ(score_i − score_j)

with the Laplacian L of the weights w, so the gain log det(M + I) − log det(M) is a determinant of size K.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from cluster.config import RunConfig
from cluster.rounds.state import RoundState
from common.run_paths import RunPaths

Floats = npt.NDArray[np.float64]
Record = dict[str, Any]
CHOSEN = "rounds_chosen"
"""Key of an item: how it was chosen, random or fisher."""
PATIENCE = 2
"""Rounds in a row without gain, after which no prompt is chosen any more."""
PLACE = "rounds_place"
"""Key of a record: its line among the sampled ones."""


def choose(
    config: RunConfig, state: RoundState, records: Sequence[Record], count: int
) -> tuple[list[Record], dict[str, Any]]:
    """`count` of the records, which come in a random order, and figures of the choice: what a chosen and a
    random prompt add to the information, on average."""
    features = read_features(state)
    if features is None:
        why = state.values.get("select", {}).get("why", "")
        return [{**record, CHOSEN: "random"} for record in records[:count]], {"method": "random", "why": why}
    at_random = round(count * config.rounds.random_share)
    design = Design([features[record[PLACE]] for record in records])
    random_gain = sum(design.add(index) for index in range(at_random))
    chosen, gain = design.choose(range(at_random, len(records)), count - at_random)
    # What as many further random prompts would have added in their place.
    instead = Design(design.parts)
    for index in range(at_random):
        instead.add(index)
    further = range(at_random, min(len(records), at_random + len(chosen)))
    instead_gain = sum(instead.add(index) for index in further)
    items = [{**record, CHOSEN: "random"} for record in records[:at_random]]
    items += [{**records[index], CHOSEN: "fisher"} for index in chosen]
    return items, {
        "method": "fisher",
        "random": at_random,
        "chosen": len(chosen),
        "candidates": len(records),
        "random_gain": random_gain,
        "gain": gain,
        "gain_of_random_instead": instead_gain,
    }


def method_of(config: RunConfig, run: RunPaths, number: int) -> tuple[str, str]:
    """How a round chooses, random or fisher, and why not as the config says. After two rounds in a row whose
    chosen prompts have gained nothing over the random ones all are random."""
    if config.rounds.select == "random":
        return "random", ""
    if number == 1:
        return "random", "no reward model to choose by yet"
    without_gain: list[str] = []
    for earlier in range(1, number):
        gain = RoundState(run, earlier).values.get("selection_gain")
        value = gain and gain["difference"]["value"]
        if value is None:
            continue
        if value > 0:
            without_gain = []
            continue
        without_gain.append(f"round {earlier} {value:.3f}")
        if len(without_gain) == PATIENCE:
            gained = ", ".join(without_gain)
            return (
                "random",
                f"fisher is off: chosen prompts gained nothing over random ones ({gained} nats a pair)",
            )
    return "fisher", ""


def read_features(state: RoundState) -> list[tuple[Floats, Floats]] | None:
    """(features (K, D), scores (K,)) of the responses of each sampled record; None without any."""
    path = state.paths.sampled_features
    if not path.exists():
        return None
    with np.load(path) as arrays:
        features, scores, offsets = arrays["features"], arrays["scores"], arrays["offsets"]
    # One scale for all directions: they are those of a head, which has none of its own.
    scaled = features.astype(float) / max(float(features.std()), 1e-6)
    parts = []
    for start, end in pairwise(offsets):
        parts.append((scaled[start:end], scores[start:end].astype(float)))
    return parts


class Design:
    """The information of the prompts so far, as the inverse of M = I + Σ of what they add."""

    def __init__(self, parts: Sequence[tuple[Floats, Floats]]) -> None:
        self.parts = parts
        self.laplacians = [_laplacian(scores_K) for _, scores_K in parts]
        self.inverse = np.eye(parts[0][0].shape[1])

    def gain(self, index: int) -> float:
        """log det(M + I) − log det(M) of a prompt."""
        return self._log_det(index, self._products(index)[1])

    def add(self, index: int) -> float:
        """Takes a prompt in; returns its gain."""
        projected_DK, small_KK = self._products(index)
        gain = self._log_det(index, small_KK)
        laplacian_KK = self.laplacians[index]
        identity = np.eye(len(laplacian_KK))
        # Woodbury: M⁻¹ after adding Xᵀ L X.
        middle_KK = np.linalg.solve(identity + laplacian_KK @ small_KK, laplacian_KK)
        self.inverse -= projected_DK @ middle_KK @ projected_DK.T
        return gain

    def choose(self, candidates: Sequence[int], count: int) -> tuple[list[int], float]:
        """`count` prompts, each that which adds most to those before, and their gain. What a prompt adds only
        falls when others are taken in, so an old gain is a bound (lazy greedy, Minoux 1978)."""
        heap = [(-self.gain(index), index) for index in candidates]
        heapq.heapify(heap)
        chosen: list[int] = []
        total = 0.0
        while heap and len(chosen) < count:
            _, index = heapq.heappop(heap)
            gain = self.gain(index)
            if heap and gain < -heap[0][0]:
                heapq.heappush(heap, (-gain, index))
                continue
            total += self.add(index)
            chosen.append(index)
        return chosen, total

    def _products(self, index: int) -> tuple[Floats, Floats]:
        """(M⁻¹Xᵀ (D, K), X M⁻¹ Xᵀ (K, K))"""
        features_KD = self.parts[index][0]
        projected_DK = self.inverse @ features_KD.T
        return projected_DK, features_KD @ projected_DK

    def _log_det(self, index: int, small_KK: Floats) -> float:
        laplacian_KK = self.laplacians[index]
        return float(np.linalg.slogdet(np.eye(len(laplacian_KK)) + laplacian_KK @ small_KK)[1])


def _laplacian(scores_K: Floats) -> Floats:
    p_KK = expit(scores_K[:, None] - scores_K[None, :])
    weights_KK = p_KK * (1 - p_KK)
    np.fill_diagonal(weights_KK, 0.0)
    return np.asarray(np.diag(weights_KK.sum(axis=1)) - weights_KK)
