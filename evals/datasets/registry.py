"""Datasets by name. Each is one module: an `open_...` and a `needs` function, or a `PaperSet`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evals.datasets import coco, flux, folder, imagenet, mjhq, photos
from evals.datasets.base import Dataset, DatasetError, DatasetNeeds
from evals.datasets.paper import PaperSet, open_paper
from lactok.registry import unknown


@dataclass(frozen=True)
class _Entry:
    open: Callable[[str | Path | None, int | None, Literal["stop", "skip"], Path], Dataset]
    needs: Callable[[], DatasetNeeds]


_DATASETS = {
    "photos": _Entry(photos.open_photos, photos.needs),
    "folder": _Entry(folder.open_folder, folder.needs),
}
PAPER_SETS: dict[str, PaperSet] = {paper.name: paper for paper in (imagenet.SET, coco.SET, mjhq.SET, flux.SET)}


def dataset_names() -> list[str]:
    """All names, sorted."""
    return sorted([*_DATASETS, *PAPER_SETS])


def dataset_needs(name: str) -> DatasetNeeds:
    """What a dataset needs and whether it is here. Raises DatasetError for an unknown name."""
    return PAPER_SETS[name].needs() if name in PAPER_SETS else _entry(name).needs()


def open_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    limit: int | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    cache_dir: str | Path,
    expect: int | None = None,
) -> Dataset:
    """The dataset, ready to read.

    root: the folder of the data, where the dataset needs one; limit: only so many samples, spread over the whole list
    by a fixed rule (evals/datasets/subset.py); on_bad_image: "stop" at pictures that can't be read, or "skip" them;
    cache_dir: where an index of checked pictures may be kept; expect: the number of pictures, for a part of one of the
    paper's datasets.
    Raises DatasetError (an unknown name comes with the nearest ones; BadPictures lists all bad files).
    """
    if name in PAPER_SETS:
        return open_paper(PAPER_SETS[name], root, limit, on_bad_image, Path(cache_dir), expect)
    entry = _entry(name)
    if expect is not None:
        raise DatasetError(f"dataset.expect={expect} is for a part of {', '.join(PAPER_SETS)}; {name} has no number")
    return entry.open(root, limit, on_bad_image, Path(cache_dir))


def _entry(name: str) -> _Entry:
    if name not in _DATASETS:
        raise DatasetError(unknown("dataset", name, dataset_names()))
    return _DATASETS[name]
