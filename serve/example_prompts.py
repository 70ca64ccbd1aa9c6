"""A few prompts to try, for a conversation that is still empty: held-out ones of the run, else general."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from serve.canary_prompts import canary_prompts
from serve.config import CanaryConfig

EXAMPLES = 4
POOL = 200
"""Prompts to choose from."""
LONGEST, GOOD_LENGTH = 100, 40
"""Characters of a prompt that can be read at a glance, and of one that says what it wants."""


@lru_cache
def example_prompts(target: Path) -> list[str]:
    """Short prompts that share few words with each other, for the run or model folder `target`."""
    pool = []
    for prompt in canary_prompts(CanaryConfig(prompts=POOL), target).prompts:
        if isinstance(prompt, str) and len(prompt) <= LONGEST and "\n" not in prompt:
            pool.append(prompt)
    chosen: list[str] = []
    while pool and len(chosen) < EXAMPLES:
        known = _words(" ".join(chosen))
        chosen.append(min(pool, key=lambda prompt: _sameness(prompt, known)))
        pool = [prompt for prompt in pool if prompt not in chosen]
    return chosen


def _sameness(prompt: str, known: set[str]) -> tuple[float, int]:
    """The share of words that are known, in tenths; then how far the length is from a good one."""
    words = _words(prompt)
    return round(len(words & known) / len(words), 1), abs(len(prompt) - GOOD_LENGTH)


def _words(text: str) -> set[str]:
    # Never empty, since shares of it are taken.
    return set(text.lower().split()) or {""}
