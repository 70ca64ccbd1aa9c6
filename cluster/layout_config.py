"""`cluster.layout`: which fleets share GPUs, and on which hosts they run. `cluster.layout` makes groups of
it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from common.config import Section

NAMES = ("apart", "colocated", "hybrid")


class FleetLayout(Section):
    hosts: list[str] = Field([])
    """Hosts that the fleet may use, by the address or the name that `ray list nodes` shows. Actors are
    divided over them in order; those of one that is not in the cluster, or is lost, go to the others.
    Empty: any."""
    share: Literal["learners"] | None = None
    """learners: on the GPUs of the learners, which take turns with this fleet. Empty: GPUs of its
    own."""


class LearnerLayout(Section):
    hosts: list[str] = Field([])
    """Hosts that the learners may use, as for the other fleets. Ranks are divided over them in order."""


class LayoutConfig(Section):
    learners: LearnerLayout = LearnerLayout()
    """Where the learner ranks are."""
    rollout: FleetLayout = FleetLayout()
    """Where the engines are."""
    scoring: FleetLayout = FleetLayout()
    """Where the scoring actors are."""


ON_LEARNERS = FleetLayout(share="learners")
NAMED = {
    "apart": LayoutConfig(),
    "colocated": LayoutConfig(rollout=ON_LEARNERS, scoring=ON_LEARNERS),
    "hybrid": LayoutConfig(scoring=ON_LEARNERS),
}


def _known(layout: Any) -> Any:
    if isinstance(layout, str) and layout not in NAMES:
        raise ValueError(
            f"expected {', '.join(NAMES)}, or hosts and share of each fleet as in "
            "{rollout: {hosts: [10.0.0.2]}, scoring: {share: learners}}"
        )
    return layout


Layout = Annotated[Literal["apart", "colocated", "hybrid"] | LayoutConfig, BeforeValidator(_known)]
