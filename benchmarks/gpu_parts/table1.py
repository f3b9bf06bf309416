"""Part 6: suite=table1 end to end on synthetic images, and where the time of each tokenizer's run goes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_session import Job, Session
from benchmarks.memory import synthetic
from benchmarks.table1 import WORK, Bench, metrics_share

NAMES = ("lactok-h", "llamagen", "titok")
IMAGES, SIDE = 32, 1024
QUICK_IMAGES, QUICK_SIDE = 3, 128


@dataclass(frozen=True)
class TableRun:
    """One tokenizer's run. seconds: by part, exclusive; load: seconds of building the tokenizer, before the clock.

    metrics, decode: seconds of all metrics, and their share of decoding.
    """

    tokenizer: str
    images: int
    side: int
    precision: str
    load: float
    seconds: dict[str, float]
    images_per_second: float
    metrics: float
    metrics_share: float

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {1e3 * s / self.images:.3g}" for part, s in self.seconds.items())
        return (
            f"table1 {self.tokenizer}, {self.images} images of {self.side} px, {self.precision}: "
            f"{self.images_per_second:.4g} images/s; metrics {self.metrics_share:.1%} of decode; "
            f"load {self.load:.1f} s; ms an image: {parts}"
        )


def measure(session: Session) -> None:
    count, side = (QUICK_IMAGES, QUICK_SIDE) if session.quick else (IMAGES, SIDE)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        more = [f"precision={session.settings.precision}", f"device={session.device}"]
        with Bench(folder, synthetic(folder / "images", count, side), side, session.quick, more) as bench:
            session.each([Job(f"table1 {name}", lambda name=name: run(session, bench, name, count)) for name in NAMES])


def run(session: Session, bench: Bench, name: str, count: int) -> Iterator[TableRun]:
    """Raises RuntimeError where the row failed."""
    clock = bench.run(name)
    metrics = sum(seconds for part, seconds in clock.seconds.items() if part not in WORK)
    yield TableRun(
        tokenizer=name,
        images=count,
        side=bench.side,
        precision=session.settings.precision,
        load=bench.loads[name],
        seconds=dict(clock.seconds),
        images_per_second=count / sum(clock.seconds.values()),
        metrics=metrics,
        metrics_share=metrics_share(clock),
    )
