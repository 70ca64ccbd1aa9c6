"""The user's own modules that a job carries along: those that the functions of the config are in
(rewards, judge, convert), and those of the user's that these import.

`cluster.plan.check_feasible` has loaded the functions, so Python knows all of these modules. What is
installed in the environment is not carried: the job's environment must have it, as it has this program's
libraries.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from common.errors import UserError
from common.plugins import PACKAGES

MAX_MIB = 100
"""Ray uploads what a job carries, and refuses more than 500 MiB in all."""
INSTALLED = ("site-packages", "dist-packages")
MAIN = ("__main__", "__mp_main__")


def carry_modules(folder: Path) -> list[str]:
    """Copies the modules into `folder` and returns their names. Raises UserError if they are too
    large."""
    modules = user_modules()
    size = sum(_size(path) for path in modules.values())
    if size > MAX_MIB * 2**20:
        largest = max(modules, key=lambda name: _size(modules[name]))
        raise UserError(
            f"the modules that the config names have {size / 2**20:.0f} MiB, over {MAX_MIB}, most of it in "
            f"{modules[largest]}; keep data out of the package, or install it in the job's environment"
        )
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for path in modules.values():
        folder.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=ignored)
        else:
            shutil.copy2(path, folder)
    return sorted(modules)


def user_modules() -> dict[str, Path]:
    """Top-level modules of the user's that this process has imported: name -> file, or folder of a
    package."""
    found = {}
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        file = getattr(module, "__file__", None)
        # torch makes modules whose file is a bare name, which is in no folder.
        if top in PACKAGES or top in MAIN or not file or not Path(file).is_absolute():
            continue
        path = Path(file)
        if _is_own(path):
            depth = name.count(".") + int(path.name == "__init__.py")
            # The folder of the whole package, also where only a part of it is imported.
            found[top] = path.parents[depth - 1] if depth else path
    return found


def _is_own(file: Path) -> bool:
    """Whether a module is neither of Python nor installed."""
    standard = Path(sysconfig.get_paths()["stdlib"])
    return not any(part in INSTALLED for part in file.parts) and not file.is_relative_to(standard)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
