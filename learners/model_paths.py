"""Where a model is: a local folder or the name of one on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from common.errors import UserError

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
"""What transformers and vLLM read of a hub model; some also hold their weights in other formats."""


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


def model_folder(path: str | Path) -> Path:
    """The folder with the files of a model: itself, or for a hub name the one of the hub's cache, into
    which missing files are downloaded. Raises UserError if the hub does not give them."""
    folder = Path(resolve_model_path(path))
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(path), allow_patterns=MODEL_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: no such folder, and the hub does not give this model ({reason})") from None


def cached_folder(path: str | Path) -> Path | None:
    """As `model_folder`, but downloads nothing: None for a hub name that is not in the cache."""
    folder = Path(resolve_model_path(path))
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(path), allow_patterns=MODEL_FILES, local_files_only=True))
    except (OSError, ValueError):
        return None
