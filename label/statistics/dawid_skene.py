"""How reliable each labeler is on categories, and the likely category of each item, without gold
(Dawid and Skene 1979, Applied Statistics 28)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from label.statistics.estimate import Floats


@dataclass(frozen=True)
class DawidSkene:
    prevalence_O: Floats
    """Share of each category among the items."""
    confusion_WOO: Floats
    """confusion_WOO[w, true, said]: how often labeler w says `said` of an item that is `true`."""
    posterior_IO: Floats
    """Probability of each category for each item."""
    log_likelihood: float

    def accuracy(self, labeler: int) -> float:
        """How often the labeler is right, over items as they occur."""
        return float(self.prevalence_O @ np.diag(self.confusion_WOO[labeler]))


def dawid_skene(counts: npt.ArrayLike, tolerance: float = 1e-10, limit: int = 5000) -> DawidSkene:
    """EM from the shares of the votes. `counts[i][w][c]` says how often labeler w put item i into
    category c; a labeler may have seen an item several times or never.

    The likelihood has a permuted maximum for every order of the categories. The start says which
    one is meant: most labelers are right more often than not."""
    counts_IWO = np.asarray(counts, float)
    counts_IWO = counts_IWO[counts_IWO.sum((1, 2)) > 0]
    if len(counts_IWO) == 0:
        raise ValueError("no labels")
    votes_IO = counts_IWO.sum(1)
    posterior = votes_IO / votes_IO.sum(1, keepdims=True)
    before = -np.inf
    for _ in range(limit):
        prevalence, confusion = _maximize(counts_IWO, posterior)
        posterior, likelihood = _expect(counts_IWO, prevalence, confusion)
        if likelihood - before <= tolerance * abs(likelihood):
            break
        before = likelihood
    return DawidSkene(prevalence, confusion, posterior, likelihood)


def _maximize(counts_IWO: Floats, posterior_IO: Floats) -> tuple[Floats, Floats]:
    said = np.einsum("it,iwo->wto", posterior_IO, counts_IWO)
    total = said.sum(2, keepdims=True)
    # A labeler who never met a category has no row for it: taken as uniform, it decides nothing.
    uniform = np.full_like(said, 1 / said.shape[2])
    return posterior_IO.mean(0), np.divide(said, total, out=uniform, where=total > 0)


def _expect(counts_IWO: Floats, prevalence_O: Floats, confusion_WOO: Floats) -> tuple[Floats, float]:
    floor = 1e-300  # 0·log 0 is 0
    joint = np.log(np.maximum(prevalence_O, floor))
    joint = joint + np.einsum("iwo,wto->it", counts_IWO, np.log(np.maximum(confusion_WOO, floor)))
    top = joint.max(1, keepdims=True)
    norm = top + np.log(np.exp(joint - top).sum(1, keepdims=True))
    return np.exp(joint - norm), float(norm.sum())
