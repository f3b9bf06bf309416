"""The disk space that a run's images will take, told before the first one is made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from evals.engine.job import Job
from evals.engine.models import ModelRun
from evals.engine.store import StoreError
from lactok.interface import Generator, GeneratorInfo

BYTES_A_PIXEL = 2.0
"""Of a photograph as PNG as the cache writes it (four photographs: 1.4 to 2.0); noise takes 3."""
ASSUMED = 1024
"""Side in pixels where neither a model nor its class says one before it is loaded."""


@dataclass(frozen=True)
class Space:
    """What a run's images will take. images: those that the cache lacks; certain, assumed: bytes of those whose size is
    known, and of those whose size is a guess; guesses: sides in pixels that were assumed; free: bytes where they will
    lie."""

    images: int
    certain: float
    assumed: float
    free: int
    guesses: tuple[int, ...] = ()

    def told(self) -> str:
        """One sentence."""
        sides = " or ".join(f"{side:,}" for side in self.guesses)
        guess = f", where images whose size is not known yet count as {sides} pixels a side" if sides else ""
        needed = _size(self.certain + self.assumed)
        return f"{self.images:,} images to make take about {needed} as PNG{guess}; {_size(self.free)} are free"


def check_space(job: Job, say: Callable[[str], None]) -> None:
    """Say how much space the images to be made need. Raises StoreError where more is needed for sure than is free."""
    space = measure(job)
    if not space.images:
        return
    root = job.cache.root
    if space.certain > space.free:
        raise StoreError(
            f"{space.told()} in {root}: free {_size(space.certain - space.free)} or more, name another disk by "
            "out=DIR, or ask for fewer by limit=N or seeds=K. Finished work is kept"
        )
    short = " It may not be enough: the run stops when the disk is full, and resumes." * (
        space.certain + 1.5 * space.assumed > space.free or 1.5 * space.certain > space.free
    )
    say(f"{space.told()} in {root}.{short}")


def measure(job: Job) -> Space:
    """Of every row and seed index whose images are kept and not yet there."""
    count, certain, assumed, guesses = 0, 0.0, 0.0, set[int]()
    for run in job.runs:
        if run.status != "ok":
            continue
        side = _side(job, run)
        for chunk in job.chunks:
            for seed_index in run.seed_indices(job.seeds):
                if not job.cache.has(job.task.images(run, chunk, seed_index)):
                    count += len(chunk)
                    if side is None:
                        guesses.add(guess := _guess(run))
                        assumed += len(chunk) * guess**2 * BYTES_A_PIXEL
                    else:
                        certain += len(chunk) * side**2 * BYTES_A_PIXEL
    return Space(count, certain, assumed, shutil.disk_usage(job.cache.root).free, tuple(sorted(guesses)))


def _guess(run: ModelRun) -> int:
    """A side in pixels for a model that has not told its own."""
    cls = run.row.cls
    side = cls.expected_side if cls is not None and issubclass(cls, Generator) else None
    return side or ASSUMED


def _side(job: Job, run: ModelRun) -> int | None:
    """In pixels, by the protocol, what an earlier run stored of the model, or its option `size`; None: not known."""
    if (side := job.task.image_side()) is not None:
        return side
    if isinstance(run.info, GeneratorInfo) and run.info.output_size:
        return run.info.output_size
    size = getattr(run.row.options, "size", None)
    return size if isinstance(size, int) else None


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):,.1f} MB"
