"""What a person sees of a run: one live line in a terminal, plain lines elsewhere, a table of slides at the end.

In: events from the driver. Out: text on the terminal; nothing here changes a result.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cellmill_schemas.slides import SlideStatus

__all__ = ["LiveProgress", "PlainProgress", "Progress", "RunTotals", "open_progress", "print_slides"]

_PLAIN_SECONDS = 30.0
"""Pause between plain lines that say nothing new but numbers."""


@dataclass
class RunTotals:
    """Running counts of a cohort run."""

    num_slides: int
    num_done: int = 0
    num_failed: int = 0
    num_fields: int = 0
    num_fields_done: int = 0
    num_waiting: int = 0
    """Slides whose fields are not known yet."""
    analysed_mm2: float = 0.0
    num_cells: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def num_left(self) -> int:
        """Slides that have not ended."""
        return self.num_slides - self.num_done - self.num_failed

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    def line(self) -> str:
        """The totals as one line for people."""
        rate = self.analysed_mm2 / self.seconds if self.seconds > 0 else 0.0
        parts = [
            f"slides: {self.num_done} done, {self.num_failed} failed, {self.num_left} left",
            f"fields: {self.num_fields_done}/{max(self.num_fields, self.num_fields_done)}",
            f"{rate:.3f} mm2/s",
            f"{self.num_cells:,} cells",
        ]
        left = self.seconds_left()
        return ", ".join([*parts, f"about {_duration(left)} left" if left is not None else "time left: not known yet"])

    def seconds_left(self) -> float | None:
        """Estimate from fields done, taking slides not yet planned to be like the others; None at the start."""
        num_planned = self.num_slides - self.num_waiting
        if not self.num_fields_done or not num_planned:
            return None
        fields_to_come = self.num_waiting * self.num_fields / num_planned
        return self.seconds / self.num_fields_done * max(0.0, self.num_fields - self.num_fields_done + fields_to_come)


class Progress(Protocol):
    """What the driver tells while it runs."""

    def update(self, totals: RunTotals) -> None:
        """The counts now."""
        ...

    def say(self, text: str) -> None:
        """Something that stays on the screen."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class LiveProgress:
    """One line that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(Text("starting"), console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def update(self, totals: RunTotals) -> None:
        """Redraw the line."""
        self._live.update(Text(totals.line(), overflow="ellipsis", no_wrap=False))

    def say(self, text: str) -> None:
        """Print above the line."""
        self._console.print(Text(text))

    def close(self) -> None:
        """Remove the line."""
        self._live.stop()


class PlainProgress:
    """Lines for logs: every slide's end, and the counts now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_line = time.monotonic() + _PLAIN_SECONDS / 3

    def update(self, totals: RunTotals) -> None:
        """Print the counts when the last line is old enough."""
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _PLAIN_SECONDS
            self.say(totals.line())

    def say(self, text: str) -> None:
        """Print a line at once."""
        self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """Nothing to tidy."""


def open_progress() -> Progress:
    """The live view in a terminal, plain lines otherwise."""
    console = Console(file=sys.stderr, highlight=False)
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


def print_slides(statuses: Sequence[SlideStatus], *, out: str, seconds: float) -> None:
    """The end of a run: a table of slides, totals, and where the outputs are."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a log has no width; reasons stay readable
    table = Table(title=None, expand=False)
    for name in ("slide", "status"):
        table.add_column(name, overflow="fold")
    for name in ("mm2", "cells", "s/mm2"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for status in statuses:
        per_mm2 = f"{status.seconds / status.analysed_mm2:.2f}" if status.analysed_mm2 > 0 else "-"
        table.add_row(
            Text(status.slide_id),
            status.outcome,
            f"{status.analysed_mm2:.3f}",
            f"{status.num_cells:,}",
            per_mm2,
            Text(" ".join(status.reasons)),
        )
    console.print(table)
    num_good = sum(status.outcome in ("done", "done_empty") for status in statuses)
    mm2, cells = sum(status.analysed_mm2 for status in statuses), sum(status.num_cells for status in statuses)
    console.print(
        f"{num_good} of {len(statuses)} slides done, {mm2:.3f} mm2, {cells:,} cells, {_duration(seconds)} in all.\n"
        f"Cell tables: {out}/cells   masks: {out}/masks   statuses: {out}/slides.parquet",
        soft_wrap=True,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
