"""Which rows a source names: of a file, of the files of a pattern or a folder, or of a hub dataset,
and of these a split or a part of one."""

from __future__ import annotations

import glob
import json
import logging
import re
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from common.errors import UserError
from learners.data.config import DataConfig, SourceConfig
from learners.data.formats import Documents, Rows, expected_formats, format_of, read_file, text_documents

DESCRIPTIONS = ("", ".md")
"""Suffixes of files that are expected beside data: a licence, a README."""

HUB_OPTIONS: dict[str, dict[str, Any]] = {
    "text": {"sample_by": "document"},
    "csv": {"keep_default_na": False},
}
"""What the library is told, by kind of file, so that it reads as `formats` does: else every line is a
document and "NA" nothing."""

Splits = dict[str, list[Path]]
"""The files of each split. A file alone is all of the split "train"."""


def local_path(source: SourceConfig, config: DataConfig, key: str = "data") -> Path | None:
    """Where a source is on disk, maybe as a pattern; None for the name of a hub dataset. Raises
    UserError for a file that is missing, and for a subset or split that a file does not have."""
    path = Path(config.root).expanduser() / Path(source.path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        _check_format(path, key)
    elif glob.has_magic(source.path):
        # The folder's own name may hold brackets.
        path = Path(glob.escape(config.root)).expanduser() / Path(source.path).expanduser()
        if not _matches(path):
            raise UserError(f"{key}={path}: no file has a name like this; data.root={config.root}")
    elif format_of(path) or not re.fullmatch(r"[\w-]+/[\w.-]+", source.path):
        raise UserError(
            f"{key}={path}: no such file; data.root={config.root} is where relative paths of section data "
            "start"
        )
    else:
        return None
    if source.subset:
        raise UserError(f"{key}={path}: subset={source.subset}: a file has no subsets; leave it out")
    _check_split(f"{key}={path}", source.split, ["train"])
    return path


def read_source(source: SourceConfig, config: DataConfig) -> Rows:
    """(where, row) of every row of a source, in its order. A row that cannot be parsed is an
    InvalidRow."""
    path = local_path(source, config)
    if path is None:
        yield from _hub_rows(source, config.documents)
        return
    splits = _splits(path, source.subset)
    _check_split(str(path), source.split, splits)
    if source.split in splits:
        yield from _read_files(splits[source.split], config.documents)
        return
    for split, start, end in _parts(path, source.split, splits, config.documents):
        yield from islice(_read_files(splits[split], config.documents), start, end)


def _read_files(files: list[Path], documents: Documents) -> Rows:
    for file in files:
        yield from read_file(file, documents)


def _check_format(path: Path, key: str) -> None:
    if format_of(path) is None:
        raise UserError(f"{key}={path}: unknown kind of file; expected one of {expected_formats()}")


def _check_split(where: str, split: str, known: Collection[str]) -> None:
    for part in split.split("+"):
        name = part.partition("[")[0].strip()
        if name not in known:
            raise UserError(
                f"{where}: no split {name!r} (split={split}); expected {' or '.join(known)}, or a part of it "
                "such as train[:100] or train[10%:]"
            )


def _parts(path: Path, split: str, splits: Splits, documents: Documents) -> Iterator[tuple[str, int, int]]:
    """(split, start, end) of each part, for a text like train[:10%]+test[5:]."""
    import datasets

    counts = {}
    for name, files in splits.items():
        if name in split:
            # Rows are counted by reading them once more: they need not be in memory at once.
            counts[name] = sum(1 for _ in _read_files(files, documents))
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(counts)
    except (ValueError, AssertionError) as error:
        reason = f"split={split}: {error}"
        raise UserError(f"{path}: {reason}; expected for example train[:100] or train[10%:]") from None
    for part in parts:
        yield part.splitname, part.from_ or 0, part.to


def _splits(path: Path, subset: str | None) -> Splits:
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        files = _matches(path)
        for file in files:
            _check_format(file, str(path))
        return {"train": files}
    is_saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    if not is_saved:
        return _folder_splits(path, subset)
    if subset:
        raise UserError(f"{path}: subset={subset}: a saved data set has no subsets; leave it out")
    try:
        if (path / "state.json").is_file():
            return {"train": _saved_files(path)}
        names = json.loads((path / "dataset_dict.json").read_text())["splits"]
        return {name: _saved_files(path / name) for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as a saved data set ({error})") from None


def _matches(pattern: Path) -> list[Path]:
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    return [path for path in found if path.is_file()]


def _saved_files(folder: Path) -> list[Path]:
    """The files of a data set that `Dataset.save_to_disk` wrote, in their order."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return [folder / file["filename"] for file in state["_data_files"]]


def _folder_splits(folder: Path, subset: str | None) -> Splits:
    """The data files of a folder by split, as the hub sorts them: by the names of files and folders,
    or as the folder's README.md says."""
    import datasets
    from datasets.data_files import DataFilesDict, get_data_patterns

    readme = folder / "README.md"
    try:
        if subset or (readme.is_file() and "configs:" in readme.read_text(errors="replace")):
            found = datasets.load_dataset_builder(str(folder), subset).config.data_files
        else:
            # Not by the builder: it would leave out all formats but the commonest.
            found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except (OSError, ValueError) as error:
        reason = "".join(str(error).strip().splitlines()[:1])
        raise UserError(f"{folder}: cannot be read as a folder of data ({reason})") from None
    splits: Splits = {}
    unknown = []
    for name, paths in found.items():
        for path in map(Path, paths):
            if format_of(path):
                splits.setdefault(str(name), []).append(path)
            elif path.suffix not in DESCRIPTIONS:
                unknown.append(path.name)
    if not splits:
        raise UserError(f"{folder}: no data files; expected {expected_formats()}")
    if unknown:
        logging.warning("%s: not read, since unknown kinds of file: %s", folder, ", ".join(unknown))
    return splits


def _hub_rows(source: SourceConfig, documents: Documents) -> Rows:
    import datasets

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(source.path, source.subset)
        kind = builder.info.builder_name
        if kind in HUB_OPTIONS:
            builder = datasets.load_dataset_builder(source.path, source.subset, **HUB_OPTIONS[kind])
        builder.download_and_prepare()
        rows = builder.as_dataset(split=source.split)
    except Exception as error:  # the library raises a dozen kinds; all of them are about this source
        reason = "".join(str(error.__cause__ or error).strip().splitlines()[:1])
        raise UserError(
            f"{source.path}: neither a file or folder under data.root nor a hub dataset that can be read "
            f"({type(error).__name__}: {reason})"
        ) from error
    _tell_guessed_types(source.path, kind, rows.features)
    for number, row in enumerate(rows, 1):
        where = f"{source.path}, row {number}"
        if kind == "text":
            yield from text_documents(where, row["text"], documents)
        else:
            yield where, row


def _tell_guessed_types(name: str, kind: str, features: dict[str, Any]) -> None:
    """Warns of columns of text that the library has made dates or numbers of."""
    guessed = []
    for column, feature in features.items():
        of_table = kind == "csv" and "string" not in str(feature)
        if of_table or (kind == "json" and "timestamp" in str(feature)):
            guessed.append(column)
    if guessed:
        logging.warning(
            "%s: the library `datasets` has made dates or numbers of the texts of %s; read a downloaded "
            "folder to keep them",
            name,
            ", ".join(guessed),
        )
