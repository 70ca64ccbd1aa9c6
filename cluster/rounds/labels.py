"""The labelling workplace of the rounds, RUN/label: batches of one round, how far they are, what people said.

One workplace for all rounds, so that people keep their pseudonyms, their figures and their invites. While
people label, nothing else is needed: no Ray, and no GPU.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from label.export import TRAINING_GROUPS, export, write_export
from label.store.batches import list_batches, set_batch_state
from label.store.items import BatchSpec, add_items
from label.store.tables import batch, item
from label.workplace import Workplace

Row = dict[str, Any]
CALIBRATION = "calibration"
JUDGES = (*TRAINING_GROUPS, "heldout")
"""Groups whose comparisons the gate counts."""


def batch_names(number: int) -> list[str]:
    """The batches of a round whose items are ranked by one person, and by two."""
    return [f"round-{number:03d}", f"round-{number:03d}-overlap"]


def comparison_names(number: int) -> list[str]:
    """The batches that compare the policy of a round with the served one, and with the SFT policy."""
    return [f"round-{number:03d}-ab", f"round-{number:03d}-anchor"]


@dataclass(frozen=True)
class Progress:
    """Labels of some batches."""

    labels: int
    wanted: int
    closed: bool
    """Somebody has closed all of them."""

    @property
    def complete(self) -> bool:
        return self.labels >= self.wanted

    @property
    def share(self) -> float:
        return self.labels / max(1, self.wanted)


def open_rankings(place: Workplace, number: int, once: Sequence[Row], twice: Sequence[Row]) -> None:
    """Adds the items of a round; those that are there already stay as they are."""
    for quota, (name, rows) in enumerate(zip(batch_names(number), (once, twice), strict=True), start=1):
        if rows:
            add_items(place.database, BatchSpec(name, "rank", quota, round=number), rows)


def open_calibration(place: Workplace, rows: Sequence[Row]) -> None:
    """Adds items that everybody ranks now and then."""
    if rows:
        add_items(place.database, BatchSpec(CALIBRATION, "rank", purpose="calibration"), rows)


def open_comparisons(place: Workplace, number: int, gate: Sequence[Row], anchor: Sequence[Row]) -> None:
    for name, rows in zip(comparison_names(number), (gate, anchor), strict=True):
        if rows:
            add_items(place.database, BatchSpec(name, "pair", 1, "ab", round=number), rows)


def progress(place: Workplace, names: Sequence[str]) -> Progress:
    """How many labels the batches have and want. Items that were made void want none."""
    query = (
        sa.select(
            sa.func.coalesce(sa.func.sum(item.c.labels), 0),
            sa.func.coalesce(sa.func.sum(item.c.quota), 0),
        )
        .join(batch, batch.c.id == item.c.batch)
        .where(batch.c.name.in_(names), item.c.state != "void", item.c.repeat_of.is_(None))
    )
    states = sa.select(batch.c.state).where(batch.c.name.in_(names))
    with place.database.read() as connection:
        labels, wanted = connection.execute(query).one()
        found = set(connection.execute(states).scalars())
    return Progress(int(labels), int(wanted), found == {"closed"})


def close(place: Workplace, names: Sequence[str]) -> None:
    """Closes batches: nothing can be added or changed from then on."""
    with place.database.write() as connection:
        for row in list_batches(connection):
            if row["name"] in names and row["state"] == "open":
                set_batch_state(connection, row["id"], "closed", "rounds")


def rankings(place: Workplace, number: int) -> tuple[list[Row], dict[str, Any]]:
    """The rankings of a round, and what the export says of itself. It stays in RUN/label/exports."""
    names = _existing(place, batch_names(number))
    description = write_export(place.database, place.exports, f"round-{number:03d}", batches=names)
    with place.database.read() as connection:
        return export(connection, batches=names).rankings, description


def later_rankings(place: Workplace, number: int, known: Container[str]) -> list[Row]:
    """The rankings of a closed round that are not among the labels `known`."""
    names = _existing(place, batch_names(number))
    if not names:
        return []
    with place.database.read() as connection:
        rows = export(connection, batches=names).rankings
    return [row for row in rows if row["label"] not in known]


def comparisons(place: Workplace, number: int) -> tuple[list[Row], list[Row]]:
    """The comparisons with the served policy, and those with the SFT policy."""
    gate, anchor = (_compared(place, name) for name in comparison_names(number))
    return gate, anchor


def _compared(place: Workplace, name: str) -> list[Row]:
    names = _existing(place, [name])
    if not names:
        return []
    with place.database.read() as connection:
        return export(connection, groups=JUDGES, batches=names).rankings


def person_hours(rows: Sequence[Row]) -> float:
    """Time that people were at work for these labels."""
    return sum(float(row.get("active_ms") or 0) for row in rows) / 3.6e6


def _existing(place: Workplace, names: Sequence[str]) -> list[str]:
    with place.database.read() as connection:
        there = set(connection.execute(sa.select(batch.c.name)).scalars())
    return [name for name in names if name in there]
