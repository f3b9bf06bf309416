"""Datasets by name. Each is one module with an `open_...` and a `needs` function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evals.datasets import folder, photos
from evals.datasets.base import Dataset, DatasetError, DatasetNeeds
from lactok.registry import unknown


@dataclass(frozen=True)
class _Entry:
    open: Callable[[str | Path | None, int | None, Literal["stop", "skip"], Path], Dataset]
    needs: Callable[[], DatasetNeeds]


_DATASETS = {
    "photos": _Entry(photos.open_photos, photos.needs),
    "folder": _Entry(folder.open_folder, folder.needs),
}


def dataset_names() -> list[str]:
    """All names, sorted."""
    return sorted(_DATASETS)


def dataset_needs(name: str) -> DatasetNeeds:
    """What a dataset needs and whether it is here. Raises DatasetError for an unknown name."""
    return _entry(name).needs()


def open_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    limit: int | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    cache_dir: str | Path,
) -> Dataset:
    """The dataset, ready to read.

    root: the folder of the data, where the dataset needs one; limit: only so many samples, spread over the whole list
    by a fixed rule (evals/datasets/subset.py); on_bad_image: "stop" at pictures that can't be read, or "skip" them;
    cache_dir: where an index of checked pictures may be kept.
    Raises DatasetError (an unknown name comes with the nearest ones; BadPictures lists all bad files).
    """
    return _entry(name).open(root, limit, on_bad_image, Path(cache_dir))


def _entry(name: str) -> _Entry:
    if name not in _DATASETS:
        raise DatasetError(unknown("dataset", name, list(_DATASETS)))
    return _DATASETS[name]
