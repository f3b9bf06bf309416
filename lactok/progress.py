"""Progress for a person: a bar on a terminal, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

# Seconds between two lines where the output is no terminal.
SAY_EVERY = 10.0
# How many must be done before a time left is told: the first one takes what is loaded and compiled with it.
TELLING = 2


def bar(console: Console, *columns: ProgressColumn, transient: bool = True) -> Progress:
    """A bar that shows, in order, its description, itself, `columns` and the time left. Not started.

    columns: in place of those that count ("12/200"); transient: whether it is gone when it is stopped.
    """
    shown = columns or (MofNCompleteColumn(),)
    described = TextColumn("{task.description:<32.32}")
    return Progress(described, BarColumn(), *shown, TimeRemainingColumn(), console=console, transient=transient)


class Meter:
    """How many of `total` things are done, the rate and the time left, while the context is open.

    doing: what is done ("checking images"); unit: what is counted ("image"), or "byte"; done: how many were done
    before.
    """

    def __init__(self, total: int, doing: str, unit: str = "image", done: int = 0) -> None:
        self._total, self._doing, self._unit, self._first, self._done = total, doing, unit, done, done
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        self._began = self._said = time.monotonic()
        of_bytes = (DownloadColumn(), TransferSpeedColumn())
        of_things = (MofNCompleteColumn(), TextColumn("{task.fields[rate]:>16}"))
        self._bar = bar(console, *(of_bytes if unit == "byte" else of_things))
        self._task = self._bar.add_task(doing, total=total, completed=done, rate="")

    def __enter__(self) -> Meter:
        if not self._plain:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._plain:
            self._bar.stop()

    def advance(self) -> None:
        """One more is done."""
        self.at(self._done + 1)

    def at(self, done: int) -> None:
        """So many are done."""
        self._done, now = done, time.monotonic()
        rate = (done - self._first) / max(now - self._began, 1e-6)
        self._bar.update(self._task, completed=done, rate=self._rate(rate))
        if self._plain and now - self._said > SAY_EVERY:
            self._said = now
            line = f"{self._doing}: {done:,}/{self._total:,}"
            if done - self._first >= TELLING:
                line += f", {self._rate(rate)}, {(self._total - done) / rate:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def _rate(self, rate: float) -> str:
        """rate: things a second."""
        if self._unit == "byte":
            return f"{rate / 1e6:.1f} MB/s"
        return f"{rate:.0f} {self._unit}s/s" if rate >= 1 else f"{1 / max(rate, 1e-6):.1f} s an {self._unit}"
