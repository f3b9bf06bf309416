"""Progress over pictures: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between two lines where the output is no terminal.
SAY_EVERY = 10.0


class Meter:
    """Pictures done, rate and time left: a bar on a terminal, a line now and then elsewhere. On stderr."""

    def __init__(self, total: int, doing: str) -> None:
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        self._doing, self._total, self._done = doing, total, 0
        self._began = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>16}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=self._plain,
        )
        self._task = self._bar.add_task("", total=total, rate="")

    def __enter__(self) -> Meter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        rate = self._done / max(now - self._began, 1e-6)
        said = f"{rate:.0f} pictures/s" if rate >= 1 else f"{1 / rate:.1f} s a picture"
        self._bar.update(self._task, advance=1, rate=said)
        if self._plain and now - self._said > SAY_EVERY:
            self._said = now
            left = (self._total - self._done) / rate
            line = f"{self._doing}: {self._done}/{self._total}, {said}, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
