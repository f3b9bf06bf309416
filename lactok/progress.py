"""Progress for a person: a bar on a terminal and in a notebook, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

# Seconds between two lines where the output is no terminal.
SAY_EVERY = 10.0
# How many must be done before a time left is told: the first one takes what is loaded and compiled with it.
TELLING = 2
# Seconds between two pictures of a notebook's bar, and its width in characters.
DRAW_EVERY = 0.2
NOTEBOOK_WIDTH = 100

_silent: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silent(wanted: bool = True) -> Iterator[None]:
    """No progress within the block; wanted=False: as it was."""
    before = _silent.set(wanted or _silent.get())
    try:
        yield
    finally:
        _silent.reset(before)


def draws(console: Console) -> bool:
    """Whether bars can be drawn there: it is a terminal, or this is a notebook."""
    return console.is_terminal or console.is_jupyter


def bar(console: Console, *columns: ProgressColumn, transient: bool = True) -> Progress:
    """A bar that shows, in order, its description, itself, `columns` and the time left. Not started.

    columns: in place of those that count ("12/200"); transient: whether it is gone when it is stopped.
    """
    shown = columns or (MofNCompleteColumn(),)
    described = TextColumn("{task.description:<32.32}")
    kind = NotebookProgress if console.is_jupyter else Progress
    return kind(described, BarColumn(), *shown, TimeRemainingColumn(), console=console, transient=transient)


class NotebookProgress(Progress):
    """A bar below a notebook's cell, drawn anew in place as its tasks are updated. It needs IPython alone, which every
    notebook has; rich's own needs ipywidgets."""

    _handle: Any = None
    _drawn = 0.0

    def start(self) -> None:
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(self._picture()), display_id=True)
            self._drawn = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        if self._handle is not None and time.monotonic() - self._drawn > DRAW_EVERY:
            self._draw(self._picture())

    def stop(self) -> None:
        if self._handle is not None:
            self._draw("" if self.live.transient else self._picture())
            self._handle = None

    def _draw(self, html: str) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(html))
        self._drawn = time.monotonic()

    def _picture(self) -> str:
        page = Console(file=io.StringIO(), record=True, force_terminal=True, force_jupyter=False, width=NOTEBOOK_WIDTH)
        page.print(self.get_renderable())
        return page.export_html(inline_styles=True, code_format='<pre style="line-height:normal">{code}</pre>')


class Meter:
    """How many of `total` things are done, the rate and the time left, while the context is open.

    Shows nothing within `silent`. doing: what is done ("checking images"); unit: what is counted ("image"), or "byte";
    done: how many were done before.
    """

    def __init__(self, total: int, doing: str, unit: str = "image", done: int = 0) -> None:
        self._total, self._doing, self._unit, self._first, self._done = total, doing, unit, done, done
        console = Console(stderr=True)
        self._silent = _silent.get()
        self._plain = self._silent or not draws(console)
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
        if self._plain and not self._silent and now - self._said > SAY_EVERY:
            self._said = now
            line = f"{self._doing}: {done:,}/{self._total:,}"
            if done - self._first >= TELLING:
                line += f", {self._rate(rate)}, {duration((self._total - done) / rate)} left"
            print(line, file=sys.stderr, flush=True)

    def _rate(self, rate: float) -> str:
        """rate: things a second."""
        if self._unit == "byte":
            return f"{rate / 1e6:.1f} MB/s"
        return f"{rate:.0f} {self._unit}s/s" if rate >= 1 else f"{1 / max(rate, 1e-6):.1f} s for each {self._unit}"


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "7 h 05 min" or "3 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
