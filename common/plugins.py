"""Functions of the user's, named in the config as "module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from common.errors import UserError


def load_object(path: str) -> Any:
    """What "module:name" names; modules of the working directory are found too. Raises UserError if there is none."""
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as fault:
        raise UserError(
            f"{path}: cannot be loaded ({fault}); give module:function, with the module importable"
        ) from None
