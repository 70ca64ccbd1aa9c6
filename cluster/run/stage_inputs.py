"""What a stage's result depends on: keys of the config, and the content of the files that some of
them name.

A stage that begins stores its inputs (STAGE/inputs.json). Later starts of the run compare them with
the present ones: intermediate files, checkpoints and results of other inputs are never used. Files
are known by their content and not by path or time, so that a copied or moved one stays the same.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.stage_registry import EVERY_STAGE, WITHOUT_EFFECT, stage_spec
from learners.data.config import KINDS

Values = dict[str, Any]

FILE_KEYS = (
    "model.path",
    "model.chat_template",
    "reward_model.path",
    "reward_model.chat_template",
    "sample.prompts",
    "sample.reward_model",
)
"""Keys that name a file or a folder, or a model of the hub; section data has the others."""

PIECE = 2**20
PIECES = 64
"""Of a file of more bytes than these pieces hold, only so many are read, evenly spread: the weights
of a large model would take minutes."""

CHECKPOINT_KEYS = (
    "learners.ranks",
    "learners.zero_stage",
    "learners.offload_optimizer",
    "learners.offload_parameters",
    "learners.deepspeed",
)
"""How the learner state is sharded. The result does not depend on it, and with AdamW any ranks can load
any checkpoint (`learners.state_files`), but that of DeepSpeed's Muon only as it was written."""


def stage_inputs(config: RunConfig, stage: str) -> Values:
    """Sections with the keys that the stage's result depends on; where a key names a file, its
    content."""
    spec = stage_spec(stage)
    kinds = [f"data.{kind}" for kind in spec.reads]
    keys = [*EVERY_STAGE, *spec.depends_on, *kinds]
    # Not the quickstart's numbers where no file is made from them.
    if not all(getattr(config.data, kind) for kind in spec.reads):
        keys.append("quickstart")
    values = config.model_dump(mode="json")
    _files_as_content(values, Path(config.data.root).expanduser())
    return _select(values, keys)


def checkpoint_inputs(config: RunConfig, stage: str) -> Values:
    """What the format of the stage's checkpoints depends on."""
    if not _uses_muon(config, stage):
        return {}
    return _select(config.model_dump(mode="json"), CHECKPOINT_KEYS)


def _uses_muon(config: RunConfig, stage: str) -> bool:
    section: Any = getattr(config, "reward_model" if stage == "reward" else stage, None)
    optimizers = [getattr(section, name, None) for name in ("optimizer", "critic_optimizer")]
    return any(optimizer is not None and optimizer.kind == "muon" for optimizer in optimizers)


def changes(before: Values, now: Values, prefix: str = "") -> list[str]:
    """The keys whose values differ, each with both values where they are short.

    A key that only one side has is passed over: another version of this program added or removed
    it, or it has no effect beside another key, which differs too.
    """
    found: list[str] = []
    for name, value in now.items():
        if name not in before or before[name] == value:
            continue
        key, old = prefix + name, before[name]
        if isinstance(value, dict) and isinstance(old, dict):
            found += changes(old, value, f"{key}.")
        elif key == "rewards.sources" and _are_sections(old, value):
            for number, (before_one, now_one) in enumerate(zip(old, value, strict=True)):
                found += changes(before_one, now_one, f"{key}.{number}.")
        elif _is_short(old) and _is_short(value):
            found.append(f"{key} {old} (now {value})")
        else:
            found.append(key)
    return found


def _are_sections(old: Any, value: Any) -> bool:
    """Whether both are lists of as many sections, such as sources of reward."""
    if not isinstance(old, list) or not isinstance(value, list) or len(old) != len(value):
        return False
    return all(isinstance(one, dict) for one in (*old, *value))


def _select(values: Values, keys: Sequence[str]) -> Values:
    """The sections with these keys only, and without those that do not change a result."""
    selected: Values = {}
    for key in keys:
        section, _, name = key.partition(".")
        if not name:
            selected[section] = _with_effect(values[section], section)
        elif name in values[section]:  # a key that is inactive is not in the dump
            selected.setdefault(section, {})[name] = _with_effect(values[section][name], key)
    return selected


def _with_effect(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_with_effect(item, key) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, item in value.items():
        if f"{key}.{name}" not in WITHOUT_EFFECT:
            kept[name] = _with_effect(item, f"{key}.{name}")
    return kept


def _files_as_content(values: Values, root: Path) -> None:
    """Replaces the names of files by what is in them."""
    for key in FILE_KEYS:
        section, _, name = key.partition(".")
        if values[section].get(name):
            values[section][name] = content(Path(values[section][name]), of_folder="*")
    for policy in _named_models(values):
        policy["path"] = content(Path(policy["path"]), of_folder="*")
    for source in values["rewards"]["sources"]:
        for name in ("path", "chat_template", "template"):
            # The path of a function names a module.
            if source.get(name) and source["kind"] in ("model", "judge"):
                source[name] = content(Path(source[name]), of_folder="*")
    for kind in KINDS:
        for source in values["data"].get(kind) or []:
            path = root / Path(source["path"]).expanduser()
            found = content(path)
            # A name of the hub stays as it is written, whatever data.root is.
            if found != str(path):
                source["path"] = found


def _named_models(values: Values) -> list[Values]:
    compared = values["reward_model"].get("compare", [])
    return [*values["sample"]["policies"], *values["evaluate"]["policies"], *compared]


def content(path: Path, of_folder: str = "**/*") -> str:
    """A digest of a file, of the files of a folder that match `of_folder` (with their names), or of
    those that match a pattern; the path itself where nothing is, as for a model of the hub."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.glob(of_folder) if _is_visible(file.relative_to(path)))
    elif not path.exists():
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    digest = hashlib.sha256()
    files = [file for file in files if file.is_file()]
    for file in files:
        status = file.stat()
        # The name too: a folder's files are told apart by it, as train.jsonl from test.jsonl.
        name = "" if file == path else file.name
        digest.update(f"{name} {_file_digest(file, status.st_size, status.st_mtime_ns)}\n".encode())
    return f"sha256:{digest.hexdigest()[:24]}" if files else str(path)


@cache
def _file_digest(file: Path, size: int, _changed_at: int) -> str:
    """The same file is asked for by several stages; size and time say that it is still the same."""
    digest = hashlib.sha256(str(size).encode())
    with open(file, "rb") as opened:
        if size <= PIECE * PIECES:
            while piece := opened.read(PIECE):
                digest.update(piece)
        else:
            for number in range(PIECES):
                opened.seek(number * (size - PIECE) // (PIECES - 1))
                digest.update(opened.read(PIECE))
    return digest.hexdigest()


def _is_visible(path: Path) -> bool:
    """Downloads keep records in hidden folders, whose times change."""
    return not any(part.startswith(".") for part in path.parts)


def _is_short(value: Any) -> bool:
    """Whether a message can show it: not a list, nor the content of a file."""
    return not isinstance(value, (list, dict)) and not str(value).startswith("sha256:")
