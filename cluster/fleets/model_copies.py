"""Models for actors on hosts that do not have the run directory.

Learners write checkpoints and models there, so their hosts must share it with the driver. Engines and scoring
actors only read models, and only while they start. On a host that does not see the run directory they copy
them from the driver's host, through Ray, and remove the copy once they are loaded.

    driver          ModelFolder(path, node of the driver) ──► constructor arguments of an actor
    actor's host    with local_models(arguments): the path itself, or that of a copy
    driver's host   tasks that list and read files, asked for by the actor
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.files import file_sizes

CHUNK = 64 << 20
"""Bytes that one task reads."""
AHEAD = 4
"""Chunks that are read while one is written."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder that the driver sees."""

    path: str
    node_id: str
    """Ray node of the driver."""


@contextmanager
def local_models(arguments: dict[str, Any], is_shared: bool) -> Iterator[dict[str, Any]]:
    """The arguments with paths in the place of every `ModelFolder`, which hold while the block lasts.
    `is_shared`: this host sees what the driver sees. Raises OSError if a file cannot be read or written."""
    with tempfile.TemporaryDirectory(prefix="zero2hero-models-") as copies:
        local = dict(arguments)
        for name, value in arguments.items():
            if not isinstance(value, ModelFolder):
                continue
            local[name] = value.path
            if not is_shared:
                target = Path(copies) / name / Path(value.path).name
                _copy(value, target)
                local[name] = str(target)
        yield local


def _copy(folder: ModelFolder, target: Path) -> None:
    there = NodeAffinitySchedulingStrategy(folder.node_id, soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": there}
    sizes = ray.get(ray.remote(file_sizes).options(**options).remote(Path(folder.path)))
    read = ray.remote(_read).options(**options)
    for name, size in sizes.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            chunks: deque[ray.ObjectRef] = deque()
            for offset in range(0, size, CHUNK):
                chunks.append(read.remote(Path(folder.path) / name, offset))
                if len(chunks) > AHEAD:
                    file.write(ray.get(chunks.popleft()))
            while chunks:
                file.write(ray.get(chunks.popleft()))
        if path.stat().st_size != size:
            raise OSError(f"{folder.path}/{name}: {path.stat().st_size} of {size} bytes arrived")


def _read(path: Path, offset: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(CHUNK)
