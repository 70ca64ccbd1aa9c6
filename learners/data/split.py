"""Which items are held out for validation: decided by a salted hash of each item's own text, for
ever.

An item (a prompt, a document, or the value of `data.split_key`) has a position in [0, 1), the
same in every run, whatever the seed, the order and the other data are. Items below the share are
held out. So new data never moves an item to the other side, and an item that is held out at a
small share is held out at every larger one.

A ranking belongs to its prompt and to its owner, the value of `data.split_key`. An owner has its
own position, and a prompt has the smallest of its owners'. So a prompt is held out if any of its
owners is. Rankings of it by other owners are left out of the data: then neither a prompt nor an
owner is on both sides.

Limits:
- A data set in which one side would be empty moves its items with the next positions, until both
  sides have one; more data may move these back.
- A new ranking by a held-out owner moves its prompt to the held-out side. No ranking moves a
  prompt or an owner to training."""

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

    Arguments and errors are those of `split_threshold`."""
    return np.asarray(position_I, dtype=float) < split_threshold(position_I, share, size_I, minimum)


def split_threshold(
    position_I: Sequence[float] | np.ndarray,
    share: float,
    size_I: Sequence[int] | np.ndarray | None = None,
    minimum: int = 1,
) -> float:
    """The threshold below which an item's position must be for it to be held out.

    Each side has at least `minimum` in the sum of its sizes (of items, if there are no sizes).
    Where the share leaves one with less, the nearest threshold that does not is taken. Raises
    EmptySideError if there is none."""
    position_I = np.asarray(position_I, dtype=float)
    if size_I is None:
        size_I = np.ones(len(position_I), dtype=np.int64)
    size_I = np.asarray(size_I)
    if _both_have(position_I < share, size_I, minimum):
        return share
    # Only tiny data sets come here, so it does not matter that all thresholds are tried.
    candidates = np.unique(position_I)
    for candidate in candidates[np.argsort(np.abs(candidates - share), kind="stable")]:
        if _both_have(position_I <= candidate, size_I, minimum):
            # The next number above, so that items at the candidate itself are held out.
            return float(np.nextafter(candidate, np.inf))
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


def prompt_positions(prompts: Sequence[str], owners: Sequence[str | None]) -> dict[str, float]:
    """The position of each prompt, where ranking i belongs to prompts[i] and to owners[i]: the
    smallest of its own owners'. A ranking without an owner counts with its prompt's text."""
    position_of: dict[str, float] = {}
    for prompt, owner in zip(prompts, owners, strict=True):
        position = split_position(prompt if owner is None else owner)
        # The smallest never grows when owners are added, so a held-out prompt stays held out.
        position_of[prompt] = min(position_of.get(prompt, 1.0), position)
    return position_of


def linked_positions(prompts: Sequence[str], owners: Sequence[str | None]) -> dict[str, float]:
    """As `prompt_positions`, but prompts that share an owner, directly or through other prompts,
    have one position: the smallest of theirs. For cross-validation, which must keep prompts and
    owners apart without leaving rankings out."""
    # Numbered with their kind, since an owner may have the same text as a prompt.
    node_of: dict[tuple[str, str], int] = {}
    links: list[tuple[int, int]] = []
    for prompt, owner in zip(prompts, owners, strict=True):
        prompt_node = node_of.setdefault(("prompt", prompt), len(node_of))
        owner_node = prompt_node
        if owner is not None:
            owner_node = node_of.setdefault(("owner", owner), len(node_of))
        links.append((prompt_node, owner_node))
    ends = tuple(np.array(links).T)
    graph = coo_array((np.ones(len(links)), ends), shape=(len(node_of), len(node_of)))
    _, component_of = connected_components(graph, directed=False)
    smallest: dict[int, float] = {}
    position_of = prompt_positions(prompts, owners)
    for prompt, position in position_of.items():
        component = int(component_of[node_of["prompt", prompt]])
        smallest[component] = min(smallest.get(component, 1.0), position)
    for prompt in position_of:
        position_of[prompt] = smallest[int(component_of[node_of["prompt", prompt]])]
    return position_of
