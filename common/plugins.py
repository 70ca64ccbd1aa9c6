"""Functions of the user's, named in the config as "module:function", and where Python finds them.

The project's own packages have common names (`serve`, `actors`). So the user's folders come last on
the import path, in every process: a file `serve.py` there must hide neither the project's package nor
a library.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
"""Where the project's packages are."""
PACKAGES = ("common", "cluster", "actors", "learners", "serve", "label")
USER_MODULES = PROJECT_ROOT / "user_modules"
"""Where a job carries the modules of whoever submitted it."""
WORKING_DIRECTORY = "HERO_WORKING_DIRECTORY"
"""Environment variable with the folder of whoever started the run, for processes that Ray starts in
another one."""


def load_object(path: str) -> Any:
    """The object of the project that "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def load_function(path: str, key: str, *arguments: str) -> Callable[..., Any]:
    """The user's function "module:function", which the setting `key` names and which is called with
    `arguments`. Modules of the working directory can be named too.

    Raises UserError if it does not exist, if its module cannot be imported, or if it does not take
    these arguments.
    """
    function = load_user_object(path, key)
    _check_call(function, f"{key}={path}", arguments)
    return function  # type: ignore[no-any-return]


def load_user_object(path: str, key: str) -> Any:
    """What "module:name" names, of a module of the user's. Raises UserError if there is no such thing."""
    module, _, name = path.partition(":")
    _add_user_folders()
    try:
        return getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's module may raise anything, SystemExit too
        raise UserError(f"{key}={path}: cannot be loaded: {_import_failure(module, error)}") from None


def import_user_module(module: str, setting: str) -> Any:
    """The user's module, which `setting` ("key=value") names. Raises UserError if it cannot be imported."""
    _add_user_folders()
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as in `load_function`
        raise UserError(f"{setting}: cannot be loaded: {_import_failure(module, error)}") from None


def _add_user_folders() -> None:
    for folder in (str(USER_MODULES), os.environ.get(WORKING_DIRECTORY), os.getcwd()):
        if folder and folder not in sys.path and os.path.isdir(folder):
            sys.path.append(folder)


def _import_failure(module: str, error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (module == missing or module.startswith(missing + ".")):
        return f"there is no module {missing}; give module:function, with the module importable from here"
    package = module.partition(".")[0]
    if package in PACKAGES:
        return f"{error}; {package} is a package of this program, so give a module of yours another name"
    if isinstance(error, AttributeError) and _frame_of(error) is None:
        return f"{error}; give module:function"
    return describe_error(error)


def describe_error(error: BaseException) -> str:
    """One line about an exception of the user's code: kind, message, file and line."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frame = _frame_of(error)
    if frame is None:
        return message
    return f"{message} ({frame.filename}, line {frame.lineno})"


def _frame_of(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost line of the user's own code; None if there is none."""
    libraries = (str(PROJECT_ROOT / "common"), "<frozen", os.path.dirname(os.__file__))
    frames = []
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith(libraries) and "site-packages" not in frame.filename:
            frames.append(frame)
    return frames[-1] if frames else None


def _check_call(function: Any, setting: str, arguments: tuple[str, ...]) -> None:
    expected = f"expected a function ({', '.join(arguments)})"
    if not callable(function):
        raise UserError(f"{setting}: is {type(function).__name__}; {expected}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise UserError(f"{setting}: its arguments are {signature}: {error}; {expected}") from None


def child_environment() -> dict[str, str]:
    """Variables for a Python process of this project: it imports what this process imports, and finds
    the user's modules wherever it is started."""
    folders = [str(PROJECT_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        "PYTHONPATH": os.pathsep.join(folder for folder in dict.fromkeys(folders) if folder),
        # Without it, Python puts the working directory first on the import path of `python -m`.
        "PYTHONSAFEPATH": "1",
        WORKING_DIRECTORY: os.environ.get(WORKING_DIRECTORY) or os.getcwd(),
    }
