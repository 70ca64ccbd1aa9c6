"""Functions of the user's, named in the config as "module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from common.errors import UserError


def load_object(path: str) -> Any:
    """The object that "module:name" names. Modules of the working directory can be named too.

    Raises UserError if the module or the name does not exist.
    """
    module, _, name = path.partition(":")
    # The `hero` script has its own folder there instead of the working directory.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be loaded ({error}); give module:function, with the module importable"
        ) from None
