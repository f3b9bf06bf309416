"""What the paper's datasets share: found in a folder or an archive, read in place, with ids that don't depend on which.

Each dataset is a subclass of `PaperDataset` in a module of its own that says what its files are called; the rules are
here. A number of images other than the published one stops a run, unless a limit or dataset.expect=N says that a part
is wanted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numpy as np

from evals.datasets.base import (
    BadImage,
    BadImages,
    DataError,
    DatasetError,
    DatasetNeeds,
    DatasetRequest,
    ImageDataset,
    MissingData,
    spread,
)
from evals.datasets.images.download import Download
from evals.datasets.images.preflight import check_source, decode_checked, notes_on
from evals.datasets.images.sources.base import ImageSource
from evals.datasets.images.sources.folder import FolderSource
from evals.datasets.images.sources.shards import ParquetSource
from evals.datasets.images.sources.tarred import TarSource, expand
from evals.datasets.images.sources.zipped import ZipSource
from lactok.images.decode import Decoding, has_image_ending, unread_formats
from lactok.images.folder import counted_endings, ending
from lactok.items import Item

_TAR_GZ = (".tar.gz", ".tgz")


@dataclass(frozen=True)
class Chosen:
    """Which of the ids that were found belong to the dataset, in order; problem: why that can't be the whole dataset,
    "" when it is."""

    ids: list[str]
    problem: str = ""


@dataclass(frozen=True)
class Found:
    """A dataset's members. members: id to name, in the order of the source; ids: in the dataset's order; problem: see
    Chosen; aside: members that are none of the dataset's, counted by ending."""

    source: ImageSource
    members: dict[str, str]
    ids: list[str]
    problem: str
    aside: Counter[str]


class PaperDataset(ImageDataset):
    """Images of a folder, an archive or shards; each is its own cluster. A subclass states, beside name and expected:

    summary: one line; obtain: how to get it; downloads: the files that `data get` fetches, () where the publisher does
    not allow it; archives, shards, folders: what is looked for below the root, in this order, as glob patterns (all
    matches of shards together are one source).
    """

    settings = frozenset({"max_pixels", "colour"})
    expected: ClassVar[int]
    summary: ClassVar[str]
    obtain: ClassVar[str]
    downloads: ClassVar[tuple[Download, ...]] = ()
    archives: ClassVar[tuple[str, ...]] = ()
    shards: ClassVar[tuple[str, ...]] = ()
    folders: ClassVar[tuple[str, ...]] = (".",)

    def __init__(
        self, found: Found, items: list[Item], left_out: list[BadImage], notes: list[str], index: Path, how: Decoding
    ) -> None:
        self.items = items
        self.left_out = left_out
        self.notes = notes
        self._found = found
        self._index = index
        self._how = how

    @staticmethod
    def item_id(name: str) -> str | None:
        """A member's name to the image's id; None for a member that is none of the dataset's."""
        raise NotImplementedError

    @classmethod
    def choose(cls, ids: Sequence[str], root: Path, expect: int | None) -> Chosen:
        """Which of the ids that were found belong to the dataset: every one. root: the folder of files beside the
        images; expect: as in dataset.expect."""
        wanted = expect or cls.expected
        return Chosen(sorted(ids), "" if len(ids) == wanted else f"{len(ids):,} images, expected {wanted:,}")

    @classmethod
    def notes_of(cls, root: Path) -> list[str]:
        """Lines for the report, from files beside the images."""
        return []

    @classmethod
    def hashes(cls, root: Path) -> dict[str, str]:
        """The sha256 that images were recorded with, by id, where there is such a record."""
        return {}

    @classmethod
    def needs(cls) -> DatasetNeeds:
        return DatasetNeeds(f"{cls.summary}; `python -m evals data list` says where from", None)

    @classmethod
    def open(cls, request: DatasetRequest) -> PaperDataset:
        """The dataset, every taken image decoded once.

        Raises MissingData, DataError, BadImages with all bad files, and DatasetError for a wrong number of images.
        """
        found = cls.find(request.root, request.cache_dir, request.expect)
        if found.problem and request.limit is None:
            raise DatasetError(cls._wrong_count(found))
        taken = set(spread(found.ids, request.limit))
        index = cls._index_file(found, request.cache_dir)
        members = {i: n for i, n in found.members.items() if i in taken}
        checked, note = check_source(found.source, members, index, request.decoding)
        bad = [BadImage(found.source.label(found.members[i]), c.reason) for i, c in sorted(checked.items()) if c.reason]
        bad += found.source.unlisted
        if bad and request.on_bad_image == "stop":
            raise BadImages(bad)
        good = [i for i in found.ids if i in checked and not checked[i].reason]
        if not good:
            raise DatasetError(
                f"none of the images in {found.source.where} can be read; the first: {bad[0].path}: {bad[0].reason}"
            )
        notes = [f"read from {found.source.where.name}", *cls.notes_of(_folder_of(request.root))]
        if request.expect is not None and request.expect != cls.expected:
            notes.append(f"dataset.expect={request.expect:,}: a part of {cls.name}, which has {cls.expected:,} images")
        if found.problem:
            notes.append(f"not the whole of {cls.name}: {found.problem}")
        items = [Item(i, i, checked[i].sha256) for i in good]
        notes += notes_on(checked, items, request.eval_size)
        if found.aside:
            notes.append(f"{found.aside.total():,} other file(s) left aside: {counted_endings(found.aside)}")
        notes += [line for line in (unread_formats(found.aside), note) if line]
        return cls(found, items, bad, notes, index, request.decoding)

    @classmethod
    def find(cls, root: str | Path | None, cache_dir: Path, expect: int | None = None) -> Found:
        """The dataset's members below `root`. cache_dir: where a gzipped tar is expanded.

        Raises MissingData when nothing of it is there, DataError for an archive that can't be trusted.
        """
        source = cls._source(root, cache_dir)
        by_id: dict[str, str] = {}
        aside: Counter[str] = Counter()
        for name in source.members:
            i = cls.item_id(name)
            if i is None:
                aside[ending(name)] += 1
                continue
            if i in by_id:
                raise DataError(f"{source.where}: {by_id[i]!r} and {name!r} are the same image {i}: keep one of them")
            by_id[i] = name
        if not by_id and not source.unlisted:
            raise cls._missing(source.where, f"{len(source.members):,} member(s), none of them named as its images")
        chosen = cls.choose(list(by_id), _folder_of(root), expect)
        wanted = set(chosen.ids)
        members = {i: name for i, name in by_id.items() if i in wanted}
        return Found(source, members, chosen.ids, chosen.problem, aside)

    def read(self, item: Item) -> np.ndarray:
        source, name = self._found.source, self._found.members[item.id]
        return decode_checked(lambda: source.read(name), source.label(name), item, self._index, self._how)

    @classmethod
    def _source(cls, root: str | Path | None, cache_dir: Path) -> ImageSource:
        if root is None:
            raise MissingData(
                f"dataset={cls.name} needs its data: write dataset={cls.name} dataset.root=DIR. {cls.obtain}"
            )
        place = Path(root).expanduser()
        if place.is_file():
            return _opened(place, cache_dir)
        for archive in _matches(place, cls.archives):
            return _opened(archive, cache_dir)
        if shards := list(_matches(place, cls.shards)):
            return ParquetSource(shards, place)
        for folder in _matches(place, cls.folders):
            if folder.is_dir():
                return FolderSource(folder)
        raise cls._missing(place, "no such folder" if not place.exists() else "none of them")

    @classmethod
    def _missing(cls, place: Path, found: str) -> MissingData:
        looked = ", ".join((*cls.archives, *cls.shards, *(f"{folder}/" for folder in cls.folders if folder != ".")))
        return MissingData(
            f"dataset={cls.name} is not in {place} (absolute: {place.absolute()}): looked for {looked} and loose "
            f"images; found {found}. {cls.obtain}"
        )

    @classmethod
    def _wrong_count(cls, found: Found) -> str:
        return (
            f"dataset={cls.name} in {found.source.where}: {found.problem}. Get the rest, or say that a part is wanted: "
            "limit=N, or dataset.expect=N for all of N images"
        )

    @classmethod
    def _index_file(cls, found: Found, cache_dir: Path) -> Path:
        """Where the answers on a source's images are kept."""
        place = os.fsencode(os.path.realpath(found.source.where))
        return cache_dir / f"{cls.name}-{sha256(place).hexdigest()[:16]}.json"


def is_image(name: str) -> bool:
    """Whether a member's ending is an image's, and neither it nor a folder on its way is hidden."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"
    return not hidden and has_image_ending(parts[-1])


def _matches(root: Path, patterns: Iterable[str]) -> Iterable[Path]:
    """What matches, pattern by pattern, each sorted by name and once."""
    seen: set[Path] = set()
    for pattern in patterns:
        for path in [root] if pattern == "." else sorted(root.glob(pattern)):
            if path.exists() and path not in seen:
                seen.add(path)
                yield path


def _opened(archive: Path, cache_dir: Path) -> ImageSource:
    """The source in one file, by its ending."""
    name = archive.name.lower()
    if name.endswith(".zip"):
        return ZipSource(archive)
    if name.endswith(".tar"):
        return TarSource(archive)
    if name.endswith(_TAR_GZ):
        return TarSource(expand(archive, cache_dir), archive)
    if name.endswith(".parquet"):
        return ParquetSource([archive], archive)
    raise DatasetError(f"dataset.root={archive} is a file: expected a folder, .zip, .tar, .tar.gz, .tgz or .parquet")


def _folder_of(root: str | Path | None) -> Path:
    """The folder that files beside the images are looked for in."""
    place = Path(root or "").expanduser()
    return place.parent if place.is_file() else place
