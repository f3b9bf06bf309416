"""One live view of a run: a line for all, and one for each process where there are several."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from evals.engine.batches import most_held_gib
from evals.engine.ranks import Ranks
from lactok.progress import SAY_EVERY, TELLING, bar, draws, duration

# Seconds between polls of what the other processes have done.
POLL_EVERY = 1.0


@dataclass
class State:
    """Of one process. done: row-chunks, of which `worked` were not in the store; items: of those.

    row: at work; total: row-chunks of the run, all processes together; gpu_gib: most memory that torch has had on its
    GPU, None on a CPU.
    """

    total: int = 0
    done: int = 0
    worked: int = 0
    items: int = 0
    row: str = ""
    gpu_gib: float | None = None

    def advance(self, row: str, items: int, worked: bool) -> None:
        """One row-chunk is done. worked: False where the store had it all."""
        self.row, self.done = row, self.done + 1
        if worked:
            self.worked += 1
            self.items += items
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self.gpu_gib = most_held_gib()


def _key(rank: int) -> str:
    return f"progress/{rank}"


class RankProgress:
    """Of a rank other than 0: shown by rank 0."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.state = ranks, State()

    def say(self, line: str) -> None:
        """Rank 0 says it."""

    def start(self, total: int) -> None:
        self.state = State(total)

    def advance(self, row: str, items: int, worked: bool) -> None:
        self.state.advance(row, items, worked)
        self.ranks.publish(_key(self.ranks.rank), asdict(self.state))


class LiveProgress:
    """Bars on a terminal and in a notebook, a line every few seconds elsewhere, nothing when quiet. A unit is a row's
    chunk."""

    def __init__(
        self,
        quiet: bool = False,
        ranks: Ranks | None = None,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "images",
    ) -> None:
        self.ranks, self._clock, self.unit = ranks or Ranks(), clock, unit
        self._states = [State() for _ in range(self.ranks.size)]
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._tasks: list = []
        self._began = self._said = self._polled = clock()

    def __enter__(self) -> LiveProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line of its own; nothing when quiet."""
        if not self._quiet:
            print(line, file=sys.stderr, flush=True)

    def start(self, total: int) -> None:
        """total: row-chunks of the run, those that the store already holds included."""
        self._states = [State(total) for _ in self._states]
        self._began = self._said = self._polled = self._clock()
        if self._quiet or not draws(self._console) or total == 0:
            return
        if self._bar is not None:
            self._bar.stop()
        rate, memory = TextColumn("{task.fields[rate]:>16}"), TextColumn("{task.fields[memory]:>9}")
        self._bar = bar(self._console, MofNCompleteColumn(), rate, memory)
        lines = ["starting"] + [f"rank {rank}" for rank in range(self.ranks.size)] * (self.ranks.size > 1)
        self._tasks = [self._bar.add_task(line, total=total, rate="", memory="") for line in lines]
        self._bar.start()

    def advance(self, row: str, items: int, worked: bool) -> None:
        """One row-chunk of this process is done. worked: False where the store had it all."""
        self._states[0].advance(row, items, worked)
        self.refresh()

    def refresh(self) -> None:
        """Show what all processes have done by now."""
        now = self._clock()
        if self.ranks.size > 1 and now - self._polled > POLL_EVERY:
            self._polled = now
            for rank in range(1, self.ranks.size):
                self._states[rank] = State(**(self.ranks.poll(_key(rank)) or asdict(self._states[rank])))
        if self._bar is not None:
            self._show(now)
        elif not self._quiet and self._states[0].total and now - self._said > SAY_EVERY:
            self._said = now
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """Row at work, chunks, rate, GPU memory and time left (at the rate so far; once a few chunks are done) of all
        processes together."""
        states, total = self._states, self._states[0].total
        done, worked = sum(s.done for s in states), sum(s.worked for s in states)
        left = (total - done) * (now - self._began) / max(worked, 1)
        parts = [
            f"{done}/{total} chunks",
            f"{self._rate(states, now):.1f} {self.unit}/s",
            *([f"{self.ranks.size} processes"] if self.ranks.size > 1 else []),
            *([_memory(states)] if _memory(states) else []),
            *([f"about {duration(left)} left"] if worked >= max(TELLING, len(states)) else []),
        ]
        return f"{_rows(states)}: {', '.join(parts)}"

    def _rate(self, states: list[State], now: float) -> float:
        return sum(s.items for s in states) / max(now - self._began, 1e-6)

    def _show(self, now: float) -> None:
        assert self._bar is not None
        groups = [("", self._states)]
        if self.ranks.size > 1:
            groups += [(f"rank {rank} ", [state]) for rank, state in enumerate(self._states)]
        for task, (name, states) in zip(self._tasks, groups, strict=True):
            self._bar.update(
                task,
                completed=sum(s.done for s in states),
                description=name + _rows(states),
                rate=f"{self._rate(states, now):.1f} {self.unit}/s",
                memory=_memory(states),
            )


def _rows(states: list[State]) -> str:
    return ", ".join(dict.fromkeys(s.row for s in states if s.row)) or "starting"


def _memory(states: list[State]) -> str:
    seen = [s.gpu_gib for s in states if s.gpu_gib is not None]
    return f"{max(seen):.1f} GiB" if seen else ""
