"""How a stage works on a unit: in batches, item by item where a batch fails, each bad item dropped with its reason."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lactok.data.construct.items import Unit, Work, WorkItem, packed, unpacked
from lactok.data.construct.spec import Spec

_BROKEN_FROM = 4
"""Items of a unit that fail one and all from which on the stage is at fault, and not they."""


class StageBroken(Exception):
    """A stage fails whatever it is given; the message names it and the error."""


class StageWork(ABC):
    """One stage. Built once in each of its processes; what it does to an item depends on the settings and that item."""

    name: str
    batch: int

    @abstractmethod
    def work(self, items: Sequence[WorkItem]) -> None:
        """Fill in what the stage adds to each item, or `drop` it. An exception concerns the items, all of which are
        tried again alone; the one that raises then is dropped."""

    def device(self) -> str:
        """What it runs on, as it is shown."""
        return "cpu"


class StageActor:
    """What Ray builds in an actor: a stage from the settings, called with units."""

    def __init__(self, build: Any, spec: Spec) -> None:
        self.stage: StageWork = build(spec)
        self.out = spec.out
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # the actors share the cores

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        unit = unpacked(batch)
        run_watched(self.stage, unit, self.out)
        return packed(unit)


TRYING = "trying"
"""The folder in work/ with a file a unit and stage that a process has begun and not finished."""
DEATHS = 3
"""Processes that may die in a stage of a unit; from then on its items are worked on alone."""
DEATHS_ALONE = 2
"""Processes that may die at an item alone; then it is dropped."""


def run_watched(stage: StageWork, unit: Unit, out: Path) -> None:
    """`run`, with a note in a file of what is begun: a process that is killed leaves it there. An item that kills its
    process again and again is found so, and dropped; kills that come from elsewhere change nothing.

    The note has a word a line: "unit" where a process begins, then the index of each item that it begins alone; it died
    at the last one."""
    note = out / "work" / TRYING / f"{unit.number:06d}.{stage.name}"
    begun = _noted(note)
    last = [word for word, after in zip(begun, [*begun[1:], "unit"]) if after == "unit"]
    _note(note, "unit")
    try:
        if begun.count("unit") < DEATHS:
            run(stage, unit)
            return

        def at(item: WorkItem) -> None:
            if (died := last.count(str(item.index))) >= DEATHS_ALONE:
                item.drop(f"{stage.name} died", f"{died} processes were killed at this item")
            else:
                _note(note, str(item.index))

        run(stage, unit, at)
    finally:  # an error is no death
        with contextlib.suppress(OSError):
            note.unlink()


def _noted(note: Path) -> list[str]:
    try:
        return note.read_text().split()
    except OSError:
        return []


def _note(note: Path, word: str) -> None:
    """Add a word to a note; one that can't be written is done without."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with note.open("a") as file:
            file.write(f"{word}\n")


def run(stage: StageWork, unit: Unit, at: Callable[[WorkItem], None] | None = None) -> None:
    """A stage's work on a unit; adds to `unit.works`. at: called before each item, which may drop it; items are worked
    on alone then. Raises StageBroken where every item fails, and what is no item's fault: a full disk, memory that ran
    out."""
    started, alive = time.perf_counter(), unit.alive()
    failed: list[str] = []
    batch = 1 if at else stage.batch
    for start in range(0, len(alive), batch):
        part = alive[start : start + batch]
        if at:
            at(part[0])
            if part[0].reason:
                continue
        try:
            stage.work(part)
        except Exception as error:
            _raise_if_not_theirs(error)
            for item in part:
                item.reason, item.detail = "", ""
                try:
                    stage.work([item])
                except Exception as one:
                    _raise_if_not_theirs(one)
                    failed.append(f"{type(one).__name__}: {one}")
                    item.drop(f"{stage.name} failed", failed[-1])
    if len(failed) == len(alive) >= _BROKEN_FROM:
        raise StageBroken(f"stage {stage.name} fails on every item of unit {unit.number}: {failed[0]}")
    busy, peak = _gpu()
    seconds = time.perf_counter() - started
    unit.works.append(Work(stage.name, len(alive), len(unit.alive()), seconds, stage.device(), busy, peak))


def _raise_if_not_theirs(error: Exception) -> None:
    if isinstance(error, (MemoryError, StageBroken)) or type(error).__name__ == "OutOfMemoryError":
        raise error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise error


def _gpu() -> tuple[float | None, int | None]:
    """Percent of the last second that the GPU was busy, where its driver's library is here, and the peak memory."""
    torch = sys.modules.get("torch")  # a stage without a network has not imported it
    if torch is None or not torch.cuda.is_available():
        return None, None
    try:
        busy: float | None = float(torch.cuda.utilization())
    except Exception:  # no pynvml, or a GPU that does not tell
        busy = None
    return busy, torch.cuda.max_memory_allocated()
