"""A learner's state in files that any number of ranks can read, under any ZeRO stage.

Each rank writes the pieces of parameters that it holds (`learners.state_fragments`): float32 master
weights and the optimizer's moments, nothing gathered, nothing twice. Each rank reads what its own pieces
overlap, from files that are mapped and not loaded. The weights of the model itself are the masters,
rounded, and are not written.

    TAG/rank-00000.pt  {"ranks", "steps", "fragments": {name: {"start", "tensors": {key: piece}, "scalars"}}}
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError
from learners.state_fragments import Fragment, fragments, refresh_weights, replicas, weight_fragments

MASTER = "master"
"""Key of the weights beside those of the optimizer's state."""


def save_optimizer(engine: Any, folder: Path, steps: int) -> None:
    """Writes this rank's part of the state of DeepSpeed's `engine` after so many steps. The files of all
    ranks together are the state."""
    states = _states_by_flat(engine)
    entries = {}
    for fragment in fragments(engine):
        tensors, scalars = {MASTER: fragment.of(fragment.flat.detach())}, {}
        for key, value in states.get(id(fragment.flat), {}).items():
            if torch.is_tensor(value) and value.dim():
                tensors[key] = fragment.of(value.detach())
            else:
                scalars[key] = float(value)
        entries[fragment.name] = {"start": fragment.start, "tensors": tensors, "scalars": scalars}
    _write(folder, entries, steps)


@torch.no_grad()
def load_optimizer(engine: Any, folder: Path) -> int:
    """Restores what `save_optimizer` wrote on other or as many ranks; returns the steps. A collective."""
    if hasattr(engine.optimizer, "checkpoint_event_prologue"):
        engine.optimizer.checkpoint_event_prologue()
    reader = StateReader(folder)
    states = _states_by_flat(engine)
    for fragment in replicas(engine):
        reader.read(fragment, MASTER, fragment.of(fragment.flat.data))
        state = states.setdefault(id(fragment.flat), {})
        for key in reader.tensor_keys(fragment.name):
            if key not in state:
                state[key] = torch.zeros_like(fragment.flat.data)
            reader.read(fragment, key, fragment.of(state[key]))
        for key, value in reader.scalars(fragment.name).items():
            state[key] = torch.tensor(value, dtype=torch.float32)
        engine.basic_optimizer.state[fragment.flat] = state
    refresh_weights(engine)
    if hasattr(engine.optimizer, "checkpoint_event_epilogue"):
        engine.optimizer.checkpoint_event_epilogue()
    return reader.steps


def save_averages(module: torch.nn.Module, averages: list[Tensor], folder: Path) -> None:
    """Writes this rank's part of one tensor for each parameter: averages of its weights, in the layout in
    which the rank holds them."""
    of_parameter = dict(zip((name for name, _ in module.named_parameters()), averages, strict=True))
    entries = {}
    for fragment in weight_fragments(module, writes=True):
        average = fragment.of(of_parameter[fragment.name])
        entries[fragment.name] = {"start": fragment.start, "tensors": {MASTER: average}, "scalars": {}}
    _write(folder, entries)


def load_averages(module: torch.nn.Module, averages: list[Tensor], folder: Path) -> None:
    """Restores what `save_averages` wrote, in place."""
    of_parameter = dict(zip((name for name, _ in module.named_parameters()), averages, strict=True))
    reader = StateReader(folder)
    for fragment in weight_fragments(module, writes=False):
        reader.read(fragment, MASTER, fragment.of(of_parameter[fragment.name]))


class StateReader:
    """The files that all ranks have written into a folder. Raises UserError if one is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pieces: dict[str, list[dict[str, Any]]] = defaultdict(list)
        paths = sorted(folder.glob("rank-*.pt"))
        if not paths:
            raise UserError(
                f"{folder}: no learner state of this version; add --from with the stage to do it again"
            )
        ranks = self.steps = 0
        for path in paths:
            content = torch.load(path, map_location="cpu", mmap=True)
            ranks, self.steps = content["ranks"], content["steps"]
            for name, piece in content["fragments"].items():
                self.pieces[name].append(piece)
        if ranks != len(paths):
            raise UserError(f"{folder}: {len(paths)} of {ranks} files of a learner state are here")

    def tensor_keys(self, name: str) -> list[str]:
        """Of the optimizer's state of a parameter."""
        return [key for key in self.pieces[name][0]["tensors"] if key != MASTER]

    def scalars(self, name: str) -> dict[str, float]:
        scalars: dict[str, float] = self.pieces[name][0]["scalars"]
        return scalars

    def read(self, fragment: Fragment, key: str, into: Tensor) -> None:
        """Fills a fragment's entries of the tensor `key`. Raises UserError if the files have not all of
        them."""
        missing, end = fragment.size, fragment.start + fragment.size
        for piece in self.pieces[fragment.name]:
            stored = piece["tensors"][key]
            first = max(fragment.start, piece["start"])
            last = min(end, piece["start"] + stored.numel())
            if first < last:
                content = stored[first - piece["start"] : last - piece["start"]]
                into[first - fragment.start : last - fragment.start].copy_(content)
                missing -= last - first
        if missing:
            raise UserError(
                f"{self.folder}: the learner state is of another model; {missing} entries of "
                f"{fragment.name} are not in it"
            )


def _write(folder: Path, entries: dict[str, Any], steps: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Views of a flat tensor are written as one.
    content = {"ranks": dist.get_world_size(), "steps": steps, "fragments": entries}
    torch.save(content, folder / f"rank-{dist.get_rank():05d}.pt")


def _states_by_flat(engine: Any) -> dict[int, dict[str, Any]]:
    """The optimizer's state of each flat tensor that has one, by the tensor's id."""
    return {id(flat): state for flat, state in engine.basic_optimizer.state.items() if state}
