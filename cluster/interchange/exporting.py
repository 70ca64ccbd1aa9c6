"""`hero export`: the policy of a run as a folder for others, with a card that says what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.interchange.gguf_writing import write_gguf
from cluster.interchange.model_card import model_card
from cluster.interchange.run_facts import run_facts
from common.errors import UserError
from common.files import atomic_path, write_text
from serve.manifest import MANIFEST
from serve.versions import ModelVersion, current_policy, locate

CARD = "README.md"


def export_model(
    run: Path, folder: Path, version: str | None = None, as_gguf: bool = False, precision: str = "f32"
) -> Path:
    """Writes a policy of the run (the served one, or the version or stage that `version` names) and its card
    into `folder`, whole or not at all; returns the path of the model there. Raises UserError where
    `folder` exists, for a run without a policy, and for one that has no place in a GGUF file."""
    if folder.exists() or folder.is_symlink():
        raise UserError(
            f"{folder}: it exists, and an export replaces nothing; remove it or give another folder"
        )
    policy = locate(run, version) if version else current_policy(run)
    facts = run_facts(run, policy.name)
    architecture, parameters = _size(policy)
    with atomic_path(folder) as partial:
        file: str | None = None
        if as_gguf:
            file = f"{facts.name}-{policy.name}-{precision}.gguf"
            if policy.name == facts.name:
                file = f"{facts.name}-{precision}.gguf"
            license_name = facts.base.get("origin", {}).get("license") or ""
            write_gguf(policy.folder, partial / file, precision, f"{facts.name} {policy.name}", license_name)
        else:
            # The manifest is that of the run's store of versions.
            shutil.copytree(policy.folder, partial, ignore=shutil.ignore_patterns(MANIFEST, CARD))
        write_text(partial / CARD, model_card(facts, architecture, parameters, file))
    return folder / (file or "")


def _size(policy: ModelVersion) -> tuple[str, int]:
    """Class and number of parameters, without reading the weights."""
    config = AutoConfig.from_pretrained(str(policy.folder))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return type(model).__name__, model.num_parameters()
