"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 10.0


class Bar:
    """Counts finished work; `advance` takes how much and a note on how it goes."""

    def __init__(self, stage: str, total: int, done: int, live: Progress | None, console: Console) -> None:
        self.stage, self.total, self.done, self.first = stage, total, done, done
        self._live, self._console = live, console
        self._task = live.add_task(stage, total=total, completed=done, note="") if live else None
        self._started = self._told = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._told >= PLAIN_SECONDS or self.done >= self.total:
            self._told = time.monotonic()
            spent = self._told - self._started
            left = spent / max(1, self.done - self.first) * (self.total - self.done)
            line = f"{self.stage:9} {self.done}/{self.total}  {spent:.0f} s, {left:.0f} s left  {note}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tell(self, text: str) -> None:
        """A line that stays, above the bar."""
        (self._live.console if self._live else self._console).print(
            text, markup=False, highlight=False, soft_wrap=True
        )


@contextmanager
def progress(stage: str, total: int, done: int = 0, console: Console | None = None) -> Iterator[Bar]:
    """A bar for the length of a block. `done` is what an earlier, interrupted run has finished."""
    console = console or Console()
    if not console.is_terminal:
        yield Bar(stage, total, done, None, console)
        return
    columns = (
        TextColumn("[bold]{task.description:9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as live:
        yield Bar(stage, total, done, live, console)
