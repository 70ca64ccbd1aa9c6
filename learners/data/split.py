"""Which items are held out for validation: decided by a salted hash of each item's own text, for
ever.

An item (a prompt, a document, or the value of `data.split_key`) has a position in [0, 1), the
same in every run, whatever the seed, the order and the other data are. Items below the share are
held out. So new data never moves an item to the other side, and an item that is held out at a
small share is held out at every larger one.

Limits:
- A data set in which one side would be empty moves its items with the next positions, until both
  sides have one; more data may move these back.
- Prompts of rankings that share a value of `data.split_key`, directly or through other prompts,
  stay together at the smallest of their positions. New rankings may join such a set to one that
  is held out. They never move a held-out prompt to training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SALT = "zero2hero held-out split 1"
"""Changing it draws all held-out data again, so that what models were trained on turns up in
later validations."""


class EmptySideError(ValueError):
    """The items cannot be divided so that both sides have enough."""


def split_position(key: str) -> float:
    """In [0, 1), uniform over different keys."""
    # Python's own hash() of a text differs between processes.
    digest = hashlib.sha256(f"{SALT}\0{key}".encode(errors="surrogatepass")).digest()
    # 53 bits are what a float holds exactly; more would round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def held_out(
    position_I: Sequence[float] | np.ndarray,
    share: float,
    size_I: Sequence[int] | np.ndarray | None = None,
    minimum: int = 1,
) -> np.ndarray:
    """bool (I,): which items are held out. Items with one position are on one side.

    Each side has at least `minimum` in the sum of its sizes (of items, if there are no sizes).
    Where the share leaves one with less, the nearest threshold that does not is taken. Raises
    EmptySideError if there is none."""
    position_I = np.asarray(position_I, dtype=float)
    if size_I is None:
        size_I = np.ones(len(position_I), dtype=np.int64)
    size_I = np.asarray(size_I)
    if _both_have(position_I < share, size_I, minimum):
        return position_I < share
    # Only tiny data sets come here, so it does not matter that all thresholds are tried.
    candidates = np.unique(position_I)
    for threshold in candidates[np.argsort(np.abs(candidates - share), kind="stable")]:
        if _both_have(position_I <= threshold, size_I, minimum):
            return position_I <= threshold
    raise EmptySideError(f"{len(position_I)} items at {len(candidates)} positions cannot be divided")


def _both_have(is_held_I: np.ndarray, size_I: np.ndarray, minimum: int) -> bool:
    return bool(size_I[is_held_I].sum() >= minimum and size_I[~is_held_I].sum() >= minimum)


def assign_folds(position_I: Sequence[float] | np.ndarray, folds: int) -> np.ndarray:
    """int (I,): the cross-validation fold of each item, folds of equally many positions in their
    order.

    Raises EmptySideError for fewer positions than folds.
    """
    # Ranges of equally many positions and not of equal width: linked prompts have small positions,
    # which would crowd the first fold.
    positions, index_I = np.unique(np.asarray(position_I, dtype=float), return_inverse=True)
    if len(positions) < folds:
        raise EmptySideError(f"{len(positions)} different items cannot be divided into {folds} folds")
    return index_I * folds // len(positions)


def linked_positions(prompts: Sequence[str], owners: Sequence[str]) -> dict[str, float]:
    """The position of each prompt, where ranking i belongs to prompts[i] and to owners[i].

    Prompts that share an owner, directly or through other prompts, get one position: the smallest
    of their owners'."""
    # A graph with prompts and owners as nodes. An owner may have the same text as a prompt (a row
    # without a value of `data.split_key` belongs to its own prompt), so they are numbered apart.
    node_of_prompt: dict[str, int] = {}
    node_of_owner: dict[str, int] = {}
    for prompt, owner in zip(prompts, owners, strict=True):
        for nodes, name in ((node_of_prompt, prompt), (node_of_owner, owner)):
            if name not in nodes:
                nodes[name] = len(node_of_prompt) + len(node_of_owner)
    size = len(node_of_prompt) + len(node_of_owner)
    links = (list(map(node_of_prompt.get, prompts)), list(map(node_of_owner.get, owners)))
    graph = coo_array((np.ones(len(prompts)), links), shape=(size, size))
    _, component_of = connected_components(graph, directed=False)
    smallest: dict[int, float] = {}
    for owner, node in node_of_owner.items():
        component = int(component_of[node])
        # The smallest never grows when owners are added, so a held-out prompt stays held out.
        smallest[component] = min(smallest.get(component, 1.0), split_position(owner))
    return {prompt: smallest[int(component_of[node])] for prompt, node in node_of_prompt.items()}
