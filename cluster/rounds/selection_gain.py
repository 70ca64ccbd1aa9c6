"""What the chosen prompts of a round taught, against as many random ones.

The last reward model's features x decided which prompts were chosen, so they decide about the gain too. From
them and its scores s a head θ is learned twice, from rankings of random and from as many of chosen prompts,

    θ = argmin Σ softplus(−(s_i − s_j + (x_i − x_j)·θ)) + |θ|²/2    over pairs where i is better than j

which is the model that the design assumes (`selection.Design`, M = I before any label). The gain is by how
much the loss falls on pairs that were held out, in nats a pair. That is a head on features that do not move:
whether the whole model gains is for the accuracy matrix to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from cluster.rounds.evidence import prompt_text
from cluster.rounds.planning import TEXT, USE
from cluster.rounds.selection import CHOSEN, PLACE, Floats, read_features
from cluster.rounds.state import RoundState
from common.files import read_jsonl
from label.statistics.proportions import mean

Row = dict[str, Any]
Pairs = tuple[Floats, Floats]
"""Of pairs: differences of features (N, D) and of scores (N,), better less worse."""


def selection_gain(state: RoundState) -> Row:
    """`selection_gain` for the round's state: `labels` that each part has learned from, what each has gained,
    and the difference with its interval over held-out prompts. Empty if no prompt of the round was chosen."""
    features = read_features(state)
    if features is None or state.values["selection"]["method"] != "fisher":
        return {}
    items = {item[TEXT]: item for item in read_jsonl(state.paths.items)}
    parts: dict[str, list[Pairs]] = defaultdict(list)
    heldout: dict[str, list[Pairs]] = defaultdict(list)
    for row in read_jsonl(state.paths.round_rankings):
        text = prompt_text(row["prompt"])
        # Those that were late for an earlier round have other features.
        if row["round"] != state.number:
            continue
        pairs = pairs_of(row["ranks"], *features[items[text][PLACE]])
        if items[text]["row"][USE] == "heldout":
            heldout[text].append(pairs)
        else:
            parts[items[text][CHOSEN]].append(pairs)
    return {"selection_gain": compare(parts["fisher"], parts["random"], heldout)}


def compare(chosen: Sequence[Pairs], random: Sequence[Pairs], heldout: Mapping[str, Sequence[Pairs]]) -> Row:
    labels = min(len(chosen), len(random))
    measured = [joined(one) for one in heldout.values()]
    measured = [one for one in measured if len(one[1])]
    gains = {}
    for name, part in (("chosen", chosen), ("random", random)):
        head_D = learned(joined(part[:labels])) if labels else None
        gains[name] = [] if head_D is None else [_gain(one, head_D) for one in measured]
    difference = np.subtract(gains["chosen"], gains["random"]).tolist()
    found: Row = {"labels": labels, "difference": mean(difference).to_json()}
    for name, values in gains.items():
        found[name] = mean(values).value
    return found


def pairs_of(ranks: Sequence[int], features_KD: Floats, scores_K: Floats) -> Pairs:
    """The pairs of a ranking, without ties."""
    ranks_K = np.asarray(ranks)
    better, worse = np.nonzero(ranks_K[:, None] < ranks_K[None, :])
    return features_KD[better] - features_KD[worse], scores_K[better] - scores_K[worse]


def joined(parts: Iterable[Pairs]) -> Pairs:
    differences, scores = zip(*parts, strict=True)
    return np.concatenate(differences), np.concatenate(scores)


def learned(pairs: Pairs) -> Floats:
    """The head (D,) that is added to the one that gave the scores."""
    difference_ND, score_N = pairs

    def loss(head_D: Floats) -> tuple[float, Floats]:
        margin_N = score_N + difference_ND @ head_D
        value = np.logaddexp(0, -margin_N).sum() + head_D @ head_D / 2
        return float(value), head_D - difference_ND.T @ expit(-margin_N)

    found = minimize(loss, np.zeros(difference_ND.shape[1]), jac=True, method="L-BFGS-B")
    return np.asarray(found.x)


def _gain(pairs: Pairs, head_D: Floats) -> float:
    difference_ND, score_N = pairs
    after = np.logaddexp(0, -(score_N + difference_ND @ head_D)).mean()
    return float(np.logaddexp(0, -score_N).mean() - after)
