"""What the paper's datasets share: found in a folder or an archive, read in place, with ids that don't depend on which.

Each dataset is one module with a `PaperSet` that says what its files are called; the rules are here. A number of
pictures other than the published one stops a run, unless a limit or dataset.expect=N says that a part is wanted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from evals.datasets.base import BadPicture, BadPictures, ChangedPicture, Dataset, DatasetError, DatasetNeeds, Sample
from evals.datasets.picture import PictureError, decode, extensions
from evals.datasets.preflight import check_source
from evals.datasets.sources.base import DataError, MissingData, PictureSource
from evals.datasets.sources.folder import FolderSource
from evals.datasets.sources.shards import ParquetSource
from evals.datasets.sources.tarred import TarSource, expand
from evals.datasets.sources.zipped import ZipSource
from evals.datasets.subset import spread

_TAR_GZ = (".tar.gz", ".tgz")


@dataclass(frozen=True)
class Chosen:
    """Which of the ids that were found belong to the dataset, in order; problem: why that can't be the whole dataset,
    "" when it is."""

    ids: list[str]
    problem: str = ""


@dataclass(frozen=True)
class PaperSet:
    """One dataset. name: as in dataset=NAME; expected: its number of pictures; archives, shards, folders: what is
    looked for below the root, in this order, as glob patterns (all matches of shards together are one source);
    sample_id: a member's name to the picture's id, None for a member that is none of the dataset's; choose: ids found,
    root and dataset.expect to those that belong to it; obtain: how to get it; notes: root to lines for the report;
    hashes: root to the sha256 that pictures were recorded with, by id, where there is such a record."""

    name: str
    expected: int
    summary: str
    archives: tuple[str, ...]
    shards: tuple[str, ...]
    folders: tuple[str, ...]
    sample_id: Callable[[str], str | None]
    obtain: str
    choose: Callable[[Sequence[str], Path, int | None], Chosen]
    notes: Callable[[Path], list[str]] = lambda root: []
    hashes: Callable[[Path], dict[str, str]] = lambda root: {}

    def needs(self) -> DatasetNeeds:
        """For `python -m evals list`."""
        return DatasetNeeds(f"{self.summary}; `python -m evals data list` says where from", None)


@dataclass(frozen=True)
class Found:
    """A dataset's members. members: id to name, in the order of the source; ids: in the dataset's order; problem: see
    Chosen; aside: members that are none of the dataset's, counted."""

    source: PictureSource
    members: dict[str, str]
    ids: list[str]
    problem: str
    aside: int


def all_of(expected: int) -> Callable[[Sequence[str], Path, int | None], Chosen]:
    """The rule for a dataset of a known number of pictures: every one that was found."""

    def choose(ids: Sequence[str], root: Path, expect: int | None) -> Chosen:
        wanted = expect or expected
        return Chosen(sorted(ids), "" if len(ids) == wanted else f"{len(ids):,} pictures, expected {wanted:,}")

    return choose


def is_picture(name: str) -> bool:
    """Whether a member's ending is a picture's, and neither it nor a folder on its way is hidden."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"
    return not hidden and os.path.splitext(parts[-1])[1].lower() in extensions()


def find(paper: PaperSet, root: str | Path | None, cache_dir: Path, expect: int | None = None) -> Found:
    """The dataset's members below `root`. cache_dir: where a gzipped tar is expanded.

    Raises MissingData when nothing of it is there, DataError for an archive that can't be trusted.
    """
    source = _source(paper, root, cache_dir)
    by_id: dict[str, str] = {}
    for name in source.members:
        i = paper.sample_id(name)
        if i is None:
            continue
        if i in by_id:
            raise DataError(f"{source.where}: {by_id[i]!r} and {name!r} are the same picture {i}: keep one of them")
        by_id[i] = name
    if not by_id and not source.unlisted:
        raise _missing(paper, source.where, f"{len(source.members):,} member(s), none of them named as its pictures")
    chosen = paper.choose(list(by_id), _folder_of(Path(root or "").expanduser()), expect)
    wanted = set(chosen.ids)
    members = {i: name for i, name in by_id.items() if i in wanted}
    return Found(source, members, chosen.ids, chosen.problem, len(source.members) - len(by_id))


def open_paper(
    paper: PaperSet,
    root: str | Path | None,
    limit: int | None,
    on_bad_image: Literal["stop", "skip"],
    cache_dir: Path,
    expect: int | None,
) -> PaperDataset:
    """The dataset, every taken picture decoded once. expect: a number of pictures other than the published one.

    Raises MissingData, DataError, BadPictures with all bad files, and DatasetError for a wrong number of pictures.
    """
    found = find(paper, root, cache_dir, expect)
    if found.problem and limit is None:
        raise DatasetError(wrong_count(paper, found))
    taken = set(spread(found.ids, limit))
    index = index_file(paper, found, cache_dir)
    checked, note = check_source(found.source, {i: n for i, n in found.members.items() if i in taken}, index)
    bad = [BadPicture(found.source.label(found.members[i]), c.reason) for i, c in sorted(checked.items()) if c.reason]
    bad += found.source.unlisted
    if bad and on_bad_image == "stop":
        raise BadPictures(bad)
    good = [i for i in found.ids if i in checked and not checked[i].reason]
    if not good:
        raise DatasetError(
            f"none of the pictures in {found.source.where} can be read; the first: {bad[0].path}: {bad[0].reason}"
        )
    notes = [f"read from {found.source.where.name}", *paper.notes(_folder_of(Path(root or "").expanduser()))]
    if expect is not None and expect != paper.expected:
        notes.append(f"dataset.expect={expect:,}: a part of {paper.name}, which has {paper.expected:,} pictures")
    if found.problem:
        notes.append(f"not the whole of {paper.name}: {found.problem}")
    kinds = Counter(kind for i in good for kind in checked[i].notes)
    notes += [f"{count:,} picture(s): {kind}" for kind, count in sorted(kinds.items())]
    notes += [f"{found.aside:,} other file(s) left aside"] * bool(found.aside) + [note] * bool(note)
    samples = [Sample(i, i, checked[i].sha256) for i in good]
    return PaperDataset(paper.name, found, samples, bad, notes, index)


class PaperDataset(Dataset):
    """Pictures of a source; each is its own cluster."""

    def __init__(
        self,
        name: str,
        found: Found,
        samples: list[Sample],
        left_out: list[BadPicture],
        notes: list[str],
        index: Path,
    ) -> None:
        self.name = name
        self.samples = samples
        self.left_out = left_out
        self.notes = notes
        self._found = found
        self._index = index

    def read(self, sample: Sample) -> np.ndarray:
        """uint8 (H, W, 3) RGB. Raises DatasetError when it is gone, ChangedPicture when it is not the one that was
        checked."""
        source, name = self._found.source, self._found.members[sample.id]
        data = source.read(name)
        if sha256(data).hexdigest() != sample.content:
            self._index.unlink(missing_ok=True)
            raise ChangedPicture(f"{source.label(name)} has changed since the run began; leave it alone and run again")
        try:
            return decode(data).pixels
        except PictureError as error:
            raise PictureError(source.label(name), error.reason) from error


def wrong_count(paper: PaperSet, found: Found) -> str:
    """The message for a dataset that is not whole."""
    return (
        f"dataset={paper.name} in {found.source.where}: {found.problem}. Get the rest, or say that a part is wanted: "
        "limit=N, or dataset.expect=N for all of N pictures"
    )


def index_file(paper: PaperSet, found: Found, cache_dir: Path) -> Path:
    """Where the answers on a source's pictures are kept."""
    place = os.fsencode(os.path.realpath(found.source.where))
    return cache_dir / f"{paper.name}-{sha256(place).hexdigest()[:16]}.json"


def _source(paper: PaperSet, root: str | Path | None, cache_dir: Path) -> PictureSource:
    if root is None:
        raise MissingData(
            f"dataset={paper.name} needs its data: write dataset={paper.name} dataset.root=DIR. {paper.obtain}"
        )
    place = Path(root).expanduser()
    if place.is_file():
        return _opened(place, cache_dir)
    for archive in _matches(place, paper.archives):
        return _opened(archive, cache_dir)
    if shards := list(_matches(place, paper.shards)):
        return ParquetSource(shards, place)
    for folder in _matches(place, paper.folders):
        if folder.is_dir():
            return FolderSource(folder)
    raise _missing(paper, place, "no such folder" if not place.exists() else "none of them")


def _matches(root: Path, patterns: Iterable[str]) -> Iterable[Path]:
    """What matches, pattern by pattern, each sorted by name and once."""
    seen: set[Path] = set()
    for pattern in patterns:
        for path in [root] if pattern == "." else sorted(root.glob(pattern)):
            if path.exists() and path not in seen:
                seen.add(path)
                yield path


def _opened(archive: Path, cache_dir: Path) -> PictureSource:
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


def _folder_of(root: Path) -> Path:
    """The folder that files beside the pictures are looked for in."""
    return root.parent if root.is_file() else root


def _missing(paper: PaperSet, place: Path, found: str) -> MissingData:
    looked = ", ".join((*paper.archives, *paper.shards, *(f"{folder}/" for folder in paper.folders if folder != ".")))
    return MissingData(
        f"dataset={paper.name} is not in {place} (absolute: {place.absolute()}): looked for {looked} and loose "
        f"pictures; found {found}. {paper.obtain}"
    )
