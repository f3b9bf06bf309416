"""One live line for a run: the tokenizer at work, pictures done, pictures a second, time left."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between plain lines where the output is no terminal.
PLAIN_EVERY = 10.0


class LiveProgress:
    """A bar on a terminal, a line every few seconds elsewhere, nothing when quiet. A unit is a row's chunk."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = None
        self._done = self._total = 0
        self._worked = 0
        self._pictures = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> LiveProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        """total: row-chunks of the run, those that the store already holds included."""
        self._total, self._done, self._worked, self._pictures = total, 0, 0, 0
        self._began = self._said = time.monotonic()
        if self.quiet or not self._console.is_terminal or total == 0:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description:<24.24}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:>16}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        else:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task("starting", total=total, rate="")

    def advance(self, row: str, pictures: int, worked: bool) -> None:
        """One row-chunk is done. worked: False where the store had it all."""
        self._done += 1
        if worked:
            self._worked += 1
            self._pictures += pictures
        now = time.monotonic()
        rate = self._pictures / max(now - self._began, 1e-6)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=row, rate=f"{rate:.1f} pictures/s")
        elif not self.quiet and self._total and (now - self._said > PLAIN_EVERY):
            self._said = now
            left = (self._total - self._done) * (now - self._began) / max(self._worked, 1)
            print(
                f"{row}: {self._done}/{self._total} chunks, {rate:.1f} pictures/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
