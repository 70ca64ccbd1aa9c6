"""Where a model is: a local folder or the name of one on the hub."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError


def resolve_model_path(path: str | Path) -> str:
    """The path itself. Raises UserError if it looks like a folder but is none with a model;
    anything else is taken as a hub name."""
    folder = Path(path)
    name = str(path)
    looks_local = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if folder.exists():
        has_config = (folder / "config.json").exists()
        if not has_config and not (folder / "tokenizer_config.json").exists():
            raise UserError(
                f"{path}: not a Hugging Face model folder (it has neither config.json nor "
                "tokenizer_config.json)"
            )
    elif looks_local:
        raise UserError(
            f"{path}: no such model folder; give a Hugging Face folder or a hub name like 'owner/model'"
        )
    return str(path)
