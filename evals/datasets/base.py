"""What a dataset is: an ordered list of samples with stable ids, and a way to read each as RGB uint8."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np


class DatasetError(Exception):
    """A dataset can't be used; the message says what was looked for, where, and the way out. Exit status 2."""


@dataclass(frozen=True)
class BadPicture:
    """A file that can't be read as a picture, and why."""

    path: str
    reason: str


class ChangedPicture(DatasetError):
    """A picture is not the one that was checked: it changed since, or the index of checked pictures was wrong and has
    been removed; the dataset can be opened anew."""


class BadPictures(DatasetError):
    """One or more pictures can't be read; `bad` lists them all, and so does the message."""

    def __init__(self, bad: list[BadPicture]) -> None:
        self.bad = bad
        lines = "\n".join(f"  {b.path}: {b.reason}" for b in bad)
        super().__init__(
            f"{len(bad)} picture(s) can't be read:\n{lines}\n"
            "Repair or remove them, or leave them out by on_bad_image=skip"
        )


@dataclass(frozen=True)
class Sample:
    """One picture. id: stable and unique in its dataset; cluster: what it was cut from (intervals are clustered by it;
    the id itself where every picture stands alone); content: sha256 hex of what determines the decoded pixels (the
    file's bytes, or the tile's decoded pixels)."""

    id: str
    cluster: str
    content: str


class Dataset(ABC):
    """An ordered, fixed list of samples. `left_out`: the pictures that on_bad_image=skip left out.

    notes: lines for the report ("2 animated files: first frame used").
    """

    name: str
    samples: list[Sample]
    left_out: list[BadPicture]
    notes: list[str]

    @abstractmethod
    def read(self, sample: Sample) -> np.ndarray:
        """The picture, decoded as evals/datasets/picture.py says: uint8 (H, W, 3) RGB. Safe to call from threads."""

    @property
    def fingerprint(self) -> str:
        """sha256 hex over ids and contents in order; stands in every run."""
        return fingerprint_of(self.samples)


def fingerprint_of(samples: Iterable[Sample]) -> str:
    """sha256 hex over ids and contents in order."""
    return sha256("\n".join(f"{s.id}\t{s.content}" for s in samples).encode()).hexdigest()


@dataclass(frozen=True)
class DatasetNeeds:
    """For `python -m evals list`: what a dataset needs, and whether it is here (None: can't be told without a root)."""

    summary: str
    here: bool | None
    where: Path | None = None
