"""The fixed set of prompts that a canary answers: the first held-out prompts of the run, read as training
reads them, wherever the endpoint was started.

Serving needs no training data. Where the held-out prompts cannot be read (they were not moved along
with the run, say), a few general prompts take their place, and whoever promotes is told.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from common.errors import UserError
from common.run_paths import RunPaths
from learners.data.config import DataConfig, SourceConfig
from learners.data.conversations import InvalidRow
from learners.data.sources import DatasetReader
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.turn_tokens import encode_prompt
from serve.config import CanaryConfig

GENERAL_PROMPTS = (
    "Hello! How are you today?",
    "What is the capital of France?",
    "What is 12 plus 7?",
    "Explain in one sentence why the sky is blue.",
    "Write a short poem about the sea.",
    "Name three animals that live in the forest.",
    "How do I boil an egg?",
    "I am sad today. What can I do?",
    "Translate 'good morning' into Spanish.",
    "What should I know before I adopt a dog?",
    "Give me a recipe for a simple soup.",
    "Which is heavier, a kilogram of iron or a kilogram of feathers?",
    "Tell me something about the moon.",
    "How can I learn a new language?",
    "What do you think about rainy days?",
    "Thank you for your help.",
)


class CanaryPrompts(NamedTuple):
    prompts: list[Any]
    """As `PromptRecord.prompt`: texts or conversations."""
    note: str
    """Why these are general prompts; empty for the run's own."""

    def encode(self, model: Path) -> list[list[int]]:
        """Token ids of the prompts that the model's chat template takes."""
        tokenizer = load_tokenizer(model)
        encoded = []
        for prompt in self.prompts:
            with suppress(InvalidRow):
                encoded.append(encode_prompt(tokenizer, prompt))
        return encoded


def canary_prompts(config: CanaryConfig, target: Path) -> CanaryPrompts:
    """Those of the canary's own file, or of the run `target`. Raises UserError for a file that the
    config names and that cannot be read."""
    if config.file:
        reader = DatasetReader("heldout", DataConfig(), seed=0)
        return CanaryPrompts(_prompts(reader, [SourceConfig(path=config.file)], config.prompts), "")
    try:
        return CanaryPrompts(_held_out(RunPaths(target), config.prompts), "")
    except UserError as error:
        note = f"compared on general prompts, since the run's held-out prompts cannot be read ({error})"
        return CanaryPrompts(list(GENERAL_PROMPTS[: config.prompts]), note)


def _held_out(paths: RunPaths, count: int) -> list[Any]:
    config = yaml.safe_load(paths.config.read_text(encoding="utf-8")) if paths.config.exists() else {}
    data = DataConfig.model_validate(config.get("data", {}))
    folder = paths.started_in()
    # As far as paths are relative, they start where the run was started, and so do its modules.
    data.root = str(folder / Path(data.root).expanduser())
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    sources = data.heldout or [SourceConfig(path=str(paths.data("heldout").absolute()))]
    return _prompts(DatasetReader("heldout", data, config.get("seed", 0)), sources, count)


def _prompts(reader: DatasetReader, sources: list[SourceConfig], count: int) -> list[Any]:
    return [record.prompt for _, record in reader.read(sources)[:count]]
