"""Progress of long work: a bar with the time left on a terminal, a plain line every few seconds elsewhere."""

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

# Time between two lines where there is no terminal.
PLAIN_SECONDS = 10.0


class Bar:
    """Counts finished work. `live` is the display of a terminal; without one, lines go to the console."""

    def __init__(self, stage: str, total: int, done: int, live: Progress | None, console: Console) -> None:
        self.stage, self.total, self.done = stage, total, done
        self._first, self._live, self._console = done, live, console
        self._task = live.add_task(stage, total=total, completed=done, note="") if live else None
        self._started = self._printed_at = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        """Adds finished work; `note` stands beside it, for example the loss."""
        self.done += count
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, note=note)
            return
        now = time.monotonic()
        # A log file needs no line for each step; the last one shows that the stage is complete.
        if now - self._printed_at < PLAIN_SECONDS and self.done < self.total:
            return
        self._printed_at = now
        elapsed = now - self._started
        # The rate of this process only: `_first` steps were done before a restart.
        left = elapsed / max(1, self.done - self._first) * (self.total - self.done)
        self.print_line(
            f"{self.stage:9} {self.done}/{self.total}  {elapsed:.0f} s, {left:.0f} s left  {note}"
        )

    def print_line(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        console = self._live.console if self._live else self._console
        console.print(text, markup=False, highlight=False, soft_wrap=True)


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
