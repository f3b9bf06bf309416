"""Looks at every image of a dataset in processes: reads, decodes, hashes; names what is bad, and fingerprints."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from evals.datasets.base import BadImage, fingerprint_of
from evals.datasets.images.paper import PaperDataset
from evals.datasets.images.preflight import Checked, check_member
from evals.datasets.images.sources.base import ImageSource
from lactok.images.decode import Decoding
from lactok.items import Item
from lactok.progress import Meter

# Images that a process takes at a time.
_BATCH = 32


@dataclass(frozen=True)
class Verified:
    """What a dataset holds. images: that can be read; bad: that can't, or are not the recorded ones; problem: why it
    is not the whole dataset, "" when it is; fingerprint: of a run over these images (see Dataset.fingerprint)."""

    where: Path
    images: int
    bad: list[BadImage]
    problem: str
    fingerprint: str


def verify(dataset: type[PaperDataset], root: Path, cache_dir: Path, expect: int | None, workers: int) -> Verified:
    """Count, decode and fingerprint. workers: processes; 1 stays in this one. Raises MissingData and DataError."""
    found = dataset.find(root, cache_dir, expect)
    recorded = dataset.hashes(root)
    names = {name: i for i, name in found.members.items()}
    items: dict[str, Item] = {}
    bad = list(found.source.unlisted)
    with Meter(len(names), "verifying images") as meter:
        for name, checked in _checked(found.source, list(names), workers):
            meter.advance()
            i = names[name]
            reason = checked.reason
            if not reason and recorded.get(i, checked.sha256) != checked.sha256:
                reason = f"its sha256 is {checked.sha256}, it was recorded with {recorded[i]}"
            if reason:
                bad.append(BadImage(found.source.label(name), reason))
            else:
                items[i] = Item(i, i, checked.sha256)
    good = [items[i] for i in found.ids if i in items]
    return Verified(found.source.where, len(good), sorted(bad, key=lambda b: b.path), found.problem,
                    fingerprint_of(good))  # fmt: skip


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked(source: ImageSource, names: list[str], workers: int) -> Iterator[tuple[str, Checked]]:
    """Each name with what is known of it, in the order given."""
    if workers == 1:
        yield from ((name, check_member(source, name, Decoding())) for name in names)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit pyarrow's and rich's threads
    with ProcessPoolExecutor(workers, context, initializer=_open, initargs=(source,)) as pool:
        batches = [names[i : i + _BATCH] for i in range(0, len(names), _BATCH)]
        try:
            for batch in pool.map(_look, batches):
                yield from batch
        finally:
            pool.shutdown(cancel_futures=True)


_source: ImageSource | None = None  # of a worker process


def _open(source: ImageSource) -> None:
    global _source
    _source = source


def _look(names: list[str]) -> list[tuple[str, Checked]]:
    assert _source is not None
    return [(name, check_member(_source, name, Decoding())) for name in names]
