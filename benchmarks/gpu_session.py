"""One run of benchmarks/gpu.py: its time boxes, and what it found, on disk as soon as it exists."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.measuring import Settings, matrix_rate
from evals.engine.store import write_atomically

AGAIN = 30.0
"""Seconds after which a time box that is over says so again, should the first time have been swallowed."""


class TimeIsUp(BaseException):
    """A time box is over. No Exception, so that what goes on after any failure does not go on after this."""


class Result(Protocol):
    """A dataclass of figures, one line of output. `kind` in the file is the name of its class."""

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Lack:
    """What was not measured, and why."""

    what: str
    reason: str


@dataclass
class PartRecord:
    """One part as it stands. status: running, ok (all measured), partly (something lacks), failed (nothing measured).

    box, seconds: how long it might take and took; reason: why it ended before its end.
    """

    name: str
    box: float
    status: str = "running"
    reason: str = ""
    seconds: float | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    lacking: list[Lack] = field(default_factory=list)


@dataclass
class RunRecord:
    """One run of the script. complete: whether it came to its end."""

    started: str
    minutes: float
    quick: bool
    device: str
    complete: bool = False
    parts: list[PartRecord] = field(default_factory=list)


class Record:
    """The file `gpu.json`: {"runs": [...]}, the latest one last. It is written anew by a rename, so it always loads."""

    def __init__(self, folder: Path, run: RunRecord) -> None:
        """Raises ValueError where the folder's file is none of this script's."""
        self.path = folder / "gpu.json"
        self.run = run
        self._earlier: list[Any] = []
        if self.path.exists():
            try:
                self._earlier = list(json.loads(self.path.read_text())["runs"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path} is no file of this script ({error!r}): name another --out") from error
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        runs = [*self._earlier, _strict(dataclasses.asdict(self.run))]
        write_atomically(self.path, (json.dumps({"runs": runs}, indent=1) + "\n").encode())


def _strict(value: Any) -> Any:
    """Numbers that JSON does not have become text ("nan")."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return value


@dataclass(frozen=True)
class Job:
    """Something to measure. what: said where it could not be; call: gives results, each as soon as it exists."""

    what: str
    call: Callable[[], Iterator[Result]]


class Session:
    """What a part gets: the settings, and where its results go.

    settings: those of the device's own precision, bf16 on a GPU. best: the best batch by tokenizer and "encode" or
    "decode", found without torch.compile. flops: of one image, by the same. found: all results of this run so far.
    """

    def __init__(self, settings: Settings, record: Record, out: Callable[[str], None] = print) -> None:
        self.settings, self.record, self.out = settings, record, out
        self.best: dict[tuple[str, str], int] = {}
        self.flops: dict[tuple[str, str], int] = {}
        self.found: list[Result] = []
        self._ends = 0.0

    @property
    def device(self) -> torch.device:
        return self.settings.device

    @property
    def quick(self) -> bool:
        return self.settings.quick

    @property
    def left(self) -> float:
        """Seconds until the current part's time box is over."""
        return self._ends - time.monotonic()

    @cached_property
    def rate(self) -> float:
        """FLOPs/s of the matrix product of which shares are taken."""
        return matrix_rate(self.settings)

    def keep(self, result: Result) -> None:
        """Note a result: in the file, and as a line."""
        part = self.record.run.parts[-1]
        part.results.append({"kind": type(result).__name__, **dataclasses.asdict(result)})
        self.found.append(result)
        self.record.write()
        self.out(f"  {result}")

    def lack(self, what: str, reason: str) -> None:
        """Note what could not be measured."""
        self.record.run.parts[-1].lacking.append(Lack(what, reason))
        self.record.write()
        self.out(f"  NOT MEASURED: {what}: {reason}")

    def each(self, jobs: Sequence[Job]) -> None:
        """The jobs in order; one that fails is named, and the next one goes on. Raises TimeIsUp."""
        for number, job in enumerate(jobs):
            try:
                for result in job.call():
                    self.keep(result)
            except TimeIsUp:
                for later in jobs[number:]:
                    self.lack(later.what, "the part's time box was over")
                raise
            except Exception as error:  # whatever it is, the others are worth measuring
                self.lack(job.what, first_line(error))
            finally:
                release(self.device)

    def run_part(self, name: str, call: Callable[[Session], None], box: float) -> None:
        """One part inside its time box of so many seconds; whatever happens is noted."""
        part = PartRecord(name, box)
        self.record.run.parts.append(part)
        self.record.write()
        self.out(f"{name}: up to {box:.0f} s")
        started = time.monotonic()
        self._ends = started + box
        try:
            with time_box(box):
                call(self)
        except TimeIsUp:
            part.reason = f"its time box of {box:.0f} s was over"
        except Exception as error:
            part.reason = first_line(error)
        part.seconds = time.monotonic() - started
        whole = not part.reason and not part.lacking
        part.status = "ok" if whole else "partly" if part.results else "failed"
        self.record.write()
        self.out(f"{name}: {part.status}, {part.seconds:.1f} s" + (f" ({part.reason})" if part.reason else ""))
        release(self.device)


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def release(device: torch.device) -> None:
    """Give the device's memory back before the next network comes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raises TimeIsUp inside the block once so many seconds have passed, and again every AGAIN seconds."""

    def over(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
