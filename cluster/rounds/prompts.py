"""What each prompt of `data.prompts` is used for, decided by a hash of its text, for ever.

    position   0 ......... a ............. b .............. c ................. 1
               held out      comparison      calibration      training

Held out (a = reward_model.validation_share): people rank responses to it, and the reward model is measured on
them; the reward stage holds out the same prompts, by the same hash (`learners.data.split`). Comparison
(b - a = rounds.comparison_share): the gate compares policies on it. Calibration: everybody ranks the same
responses. Only prompts of the last kind are trained on, by the reward model and by PPO, in any round.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.config import RunConfig
from common.errors import UserError
from learners.data.split import split_position

Use = Literal["heldout", "comparison", "calibration", "training"]
CALIBRATION_SHARE = 0.01
"""Of all prompts, where rounds.calibration is over 0."""


@dataclass(frozen=True)
class Prompt:
    """A row of the prompt file."""

    row: dict[str, Any]
    text: str
    """What decides about its use: `PromptRecord.split_text`."""


def use_of(text: str, config: RunConfig) -> Use:
    """What a prompt is used for. The share of held-out prompts must not change between rounds."""
    position = split_position(text)
    bounds: list[tuple[Use, float]] = [
        ("heldout", config.reward_model.validation_share),
        ("comparison", config.rounds.comparison_share),
        ("calibration", CALIBRATION_SHARE if config.rounds.calibration else 0.0),
    ]
    limit = 0.0
    for use, share in bounds:
        limit += share
        if position < limit:
            return use
    return "training"


def by_use(prompts: Iterable[Prompt], config: RunConfig) -> dict[Use, list[Prompt]]:
    """Different prompts by their use, in an order that does not depend on the file's."""
    kinds: dict[Use, list[Prompt]] = {"heldout": [], "comparison": [], "calibration": [], "training": []}
    different = {prompt.text: prompt for prompt in prompts}
    for prompt in sorted(different.values(), key=lambda one: order_key(one.text)):
        kinds[use_of(prompt.text, config)].append(prompt)
    return kinds


def order_key(text: str, salt: str = "round") -> str:
    """Sorting by it is a random order, in which further prompts do not move the others. Not the position
    that decides about the use, which would order prompts by it."""
    return hashlib.sha256(f"{salt}\0{text}".encode(errors="surrogatepass")).hexdigest()


def next_prompts(prompts: Sequence[Prompt], used: Counter[str], count: int) -> list[Prompt]:
    """The next `count` prompts: those that were used least often in earlier rounds, in their order. Fewer if
    there are no more."""
    return sorted(prompts, key=lambda prompt: used[prompt.text])[:count]


def check_enough(kinds: dict[Use, list[Prompt]], config: RunConfig) -> None:
    """Raises UserError where a use has too few prompts for a round."""
    rounds = config.rounds
    least = {
        "heldout": (1, "raise reward_model.validation_share"),
        "comparison": (
            max(rounds.gate.comparisons, rounds.gate.anchor),
            "raise rounds.comparison_share, or lower rounds.gate.comparisons",
        ),
        "training": (1, "lower the shares"),
    }
    for use, (count, advice) in least.items():
        there = len(kinds[use])  # type: ignore[index]
        if there < count:
            total = sum(len(prompts) for prompts in kinds.values())
            raise UserError(
                f"data.prompts: of {total} different prompts {there} are for {use}, and a round needs "
                f"{count}; give more prompts, or {advice}"
            )
