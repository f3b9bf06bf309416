"""What a dataset is: an ordered list of items, and for images a way to read each as RGB uint8. Register a class under
the entry-point group `lactok.datasets`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from lactok.images.decode import MAX_PIXELS, Decoding
from lactok.items import Item


class DatasetError(Exception):
    """A dataset can't be used; the message says what was looked for, where, and the way out. Exit status 2."""


class MissingData(DatasetError):
    """The data are not here; the message says where they were looked for and what to place there."""


class DataError(DatasetError):
    """The data are here but can't be trusted: an archive is cut off, damaged, or holds what it must not. The message
    names the file."""


class ChangedImage(DatasetError):
    """An image is not the one that was checked: it changed since, or the index of checked images was wrong and has been
    removed; the dataset can be opened anew."""


@dataclass(frozen=True)
class BadImage:
    """A file that can't be read as an image, and why."""

    path: str
    reason: str


class BadImages(DatasetError):
    """One or more images can't be read; `bad` lists them all, and so does the message."""

    def __init__(self, bad: list[BadImage]) -> None:
        self.bad = bad
        lines = "\n".join(f"  {b.path}: {b.reason}" for b in bad)
        super().__init__(
            f"{len(bad)} image(s) can't be read:\n{lines}\nRepair or remove them, or leave them out by "
            "on_bad_image=skip"
        )


@dataclass(frozen=True)
class DatasetRequest:
    """What a run asks of a dataset.

    root: the folder of the data, None where none is given; limit: only so many items, spread over the whole list by a
    fixed rule (`spread`); on_bad_image: "stop" at images that can't be read, or "skip" them;
    cache_dir: where an index of checked images may be kept; expect: the number of items, for a part of a dataset of
    known size; cluster: which items belong together, in a dataset that can be told ("folder", "file", or a CSV);
    max_pixels: images with more are bad, None: the decoder's limit; colour: what is done by colour profiles, None:
    nothing; eval_size: side in pixels of the evaluation images.
    """

    cache_dir: Path
    root: str | None = None
    limit: int | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    expect: int | None = None
    cluster: str | None = None
    max_pixels: int | None = None
    colour: Literal["srgb"] | None = None
    eval_size: int | None = None

    @property
    def decoding(self) -> Decoding:
        """How the images are decoded."""
        return Decoding(MAX_PIXELS if self.max_pixels is None else self.max_pixels, self.colour or "ignore")


@dataclass(frozen=True)
class DatasetNeeds:
    """For `python -m evals list`: what a dataset needs, and whether it is here (None: can't be told without a root)."""

    summary: str
    here: bool | None
    where: Path | None = None


class Dataset(ABC):
    """An ordered, fixed list of items.

    name: as in dataset=NAME; expected: its published number of items, None where there is none and dataset.expect is
    refused; settings: the fields of a request that it follows beside those that all do; left_out: the images that
    on_bad_image=skip left out; notes: lines for the report ("2 animated files: first frame used").
    """

    name: ClassVar[str]
    expected: ClassVar[int | None] = None
    settings: ClassVar[frozenset[str]] = frozenset()
    items: list[Item]
    left_out: list[BadImage]
    notes: list[str]

    @classmethod
    @abstractmethod
    def open(cls, request: DatasetRequest) -> Dataset:
        """The dataset, ready to read. Raises DatasetError (BadImages lists all bad files)."""

    @classmethod
    @abstractmethod
    def needs(cls) -> DatasetNeeds:
        """What it needs and whether that is here."""

    @property
    def fingerprint(self) -> str:
        """See `fingerprint_of`; stands in every run."""
        return fingerprint_of(self.items)


class ImageDataset(Dataset):
    """Items that are images."""

    @abstractmethod
    def read(self, item: Item) -> np.ndarray:
        """The image, decoded as lactok/images/decode.py says: uint8 (H, W, 3) RGB. Safe to call from threads.

        Raises DatasetError when it is gone, ChangedImage when it is not the one that was checked.
        """


class PromptDataset(Dataset):
    """Items that are prompts: `payload` is the text."""


def fingerprint_of(items: Iterable[Item]) -> str:
    """sha256 hex over ids, content hashes and tags (where an item has any) in order."""
    return sha256("\n".join(map(_line, items)).encode()).hexdigest()


def _line(item: Item) -> str:
    tags = [json.dumps(dict(item.tags), sort_keys=True)] if item.tags else []
    return "\t".join([item.id, item.content_hash, *tags])


def spread(ids: Sequence[str], limit: int | None) -> list[str]:
    """`limit=N`: the first N of `ids` in a fixed pseudo-random order, then listed in the order of `ids`; None: all.

    The order is that of sha256 over the id, so an item's place depends on nothing but its id, a larger limit only
    adds items, and a limited run spreads over the clusters. Raises DatasetError for a limit below 1.
    """
    if limit is None:
        return list(ids)
    if limit < 1:
        raise DatasetError(f"limit={limit}: expected a whole number of at least 1, or nothing for all items")
    taken = set(sorted(ids, key=lambda i: sha256(f"lactok limit\n{i}".encode()).digest())[:limit])
    return [i for i in ids if i in taken]
