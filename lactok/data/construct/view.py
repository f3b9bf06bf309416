"""The live view of a build: units done, rate, time left, and what each stage takes and drops. On stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from lactok.data.construct import units
from lactok.data.construct.spec import STAGES, Spec
from lactok.progress import Meter


@dataclass
class StageTotal:
    """What a stage did in all units that are done. seconds: of its processes together."""

    items_in: int = 0
    items_out: int = 0
    seconds: float = 0.0
    device: str = ""
    gpu_busy: float | None = None
    gpu_bytes: int | None = None

    @property
    def rate(self) -> float:
        """Items a second of one process."""
        return self.items_in / self.seconds if self.seconds else 0.0


class Totals:
    """Sums over the files of units, each read once."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.stages = {name: StageTotal() for name in STAGES}
        self.reasons: Counter[str] = Counter()
        self.items = 0
        self.seen: set[str] = set()

    def read(self) -> None:
        """Add the units that are done since."""
        for path in sorted(units.folder(self.out).glob("*.parquet")):
            if path.name in self.seen or not path.stem.isdecimal():
                continue
            try:
                works = units.works_of(path)
                reasons = pq.read_table(path, columns=["reason"])["reason"].to_pylist()
            except (OSError, pa.ArrowException):
                continue
            self.seen.add(path.name)
            self.items += len(reasons)
            self.reasons.update(reason for reason in reasons if reason)
            for work in works:
                total = self.stages.setdefault(work.stage, StageTotal())
                total.items_in += work.items_in
                total.items_out += work.items_out
                total.seconds += work.seconds
                total.device = work.device
                total.gpu_bytes = max(work.gpu_bytes or 0, total.gpu_bytes or 0) or None
                if work.gpu_busy is not None:
                    before = work.gpu_busy if total.gpu_busy is None else total.gpu_busy
                    total.gpu_busy = 0.9 * before + 0.1 * work.gpu_busy

    def line(self) -> str:
        """The stages in one line: items a second of one process, and what each lets pass; the slowest is named."""
        parts = []
        busy = {name: total.seconds for name, total in self.stages.items() if total.items_in}
        for name in busy:
            total = self.stages[name]
            gpu = f", GPU {total.gpu_busy:.0f} %" if total.gpu_busy is not None else ""
            parts.append(f"{name} {total.rate:.3g} items/s, {total.items_out / total.items_in:.0%} pass{gpu}")
        most = max(busy, key=lambda name: busy[name], default="")
        if most and sum(busy.values()):
            parts.append(f"{busy[most] / sum(busy.values()):.0%} of the processes' time is {most}'s")
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common(3))
        return "; ".join(parts) + (f"; dropped: {dropped}" if dropped else "")


class View:
    """While the context is open, says how far a build is. total: units of the build."""

    def __init__(self, spec: Spec, total: int) -> None:
        self._totals, self._every, self._stop = Totals(spec.out), spec.every, threading.Event()
        self._totals.read()
        self._meter = Meter(total, "building", "unit", done=len(self._totals.seen))
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> View:
        said = f"starting the processes of {', '.join(STAGES)}: nothing is done before their networks are loaded"
        print(said, file=sys.stderr, flush=True)
        self._meter.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._meter.__exit__(kind, error, trace)

    def _watch(self) -> None:
        said, before = time.monotonic(), len(self._totals.seen)
        while not self._stop.wait(1.0):
            self._totals.read()
            if len(self._totals.seen) > before:
                self._meter.at(len(self._totals.seen))
            if time.monotonic() - said >= self._every and self._totals.items:
                said = time.monotonic()
                print(self._totals.line(), file=sys.stderr, flush=True)
