"""What passes between the driver and a rollout engine about groups, the responses to one prompt.

Imported by the scheduler, the engine and their test doubles. Needs neither Ray nor vLLM nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from actors.config import Decoding
from learners.data.samples import Samples

if TYPE_CHECKING:
    # Loads torch, which hundreds of test doubles on one machine have no memory for.
    from actors.weights.payload import WeightPayload


@dataclass(frozen=True)
class PromptGroup:
    """One prompt to answer, once for each seed."""

    index: int
    """Position in the run's endless sequence of groups; identifies the group everywhere."""
    prompt_id: int
    """Row of the prompt file."""
    tokens: list[int]
    seeds: list[int]
    """One for each response. A seed belongs to its response, whichever engine samples it."""
    row: dict[str, Any] | None = None
    """The prompt's row, for the environment; None without one."""
    environment_seed: int = 0
    """Of the environments of all its episodes: they face the same task."""


@dataclass(frozen=True)
class GroupStatus:
    """Groups, by index, that an engine no longer holds."""

    finished: list[int] = field(default_factory=list)
    """Their samples come with this status, group by group in this order (ascending)."""
    dropped: list[int] = field(default_factory=list)
    """Begun under weights that are now too old; to be requeued."""


class RolloutEngine(Protocol):
    """What the scheduler needs of an engine: `actors.rollout.RolloutActor`, and the doubles of
    tests and benchmarks."""

    def run_groups(
        self,
        new: Sequence[PromptGroup],
        decoding: Decoding,
        end_token: int,
        max_groups: int,
        min_version: int,
        seconds: float | None = None,
    ) -> tuple[GroupStatus, Samples | None]:
        """Takes on new groups and works until `max_groups` are finished, nothing is left or
        `seconds` are over. Finished groups that began under weights before `min_version` are
        dropped. Unfinished groups stay for the next call."""
        ...

    def update_weights(
        self, payload: WeightPayload, version: int, min_version: int = 0, arrays: Any = None
    ) -> Any:
        """Loads new weights; drops groups that began before `min_version`, the others go on under
        the new weights."""
        ...

    def cancel_groups(self) -> None:
        """Drops all groups without reporting them, for a driver that starts again."""
        ...
