"""Any folder of pictures, searched recursively; any file name will do.

A sample's id is the file's path below the folder with forward slashes (see `identifier`), samples are sorted by id, and
a sample's content is the sha256 of the file. Files are taken by their ending (those of the formats that are decoded, in
upper or lower case); other files and hidden ones (name or folder beginning with a dot) are left aside and counted in a
note.
Every picture is decoded once before a run starts, so that bad ones are known together and at once.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from evals.datasets.base import BadPicture, BadPictures, ChangedPicture, Dataset, DatasetError, DatasetNeeds, Sample
from evals.datasets.picture import PictureError, decode, extensions, read_bytes
from evals.datasets.preflight import check_all
from evals.datasets.subset import spread

_ESCAPE = re.compile(r"\\x[0-9a-f]{2}")


def open_folder(
    root: str | Path | None, limit: int | None, on_bad_image: Literal["stop", "skip"], cache_dir: Path
) -> FolderDataset:
    """The pictures below `root`. With a limit only the taken pictures are looked at, and may be found bad.

    cache_dir: where the index of checked pictures is kept. Raises BadPictures with all bad files, or leaves them out
    under "skip"; DatasetError for a folder that is not there or has no pictures.
    """
    folder = _existing_folder(root)
    listing = list_folder(folder)
    if not listing.pictures and not listing.unlisted:
        raise _nothing_found(folder, listing)
    paths = {i: listing.pictures[i] for i in spread(sorted(listing.pictures), limit)}
    place = os.path.realpath(folder)
    index = cache_dir / f"folder-{sha256(os.fsencode(place)).hexdigest()[:16]}.json"
    checked, note = check_all(paths, index)
    bad = [BadPicture(printable(paths[i]), checked[i].reason) for i in paths if checked[i].reason] + listing.unlisted
    good = [i for i in paths if not checked[i].reason]
    if bad and on_bad_image == "stop":
        raise BadPictures(bad)
    if not good:
        raise DatasetError(
            f"none of the {len(bad)} pictures in {printable(folder)} can be read; "
            f"the first: {bad[0].path}: {bad[0].reason}"
        )
    notes = _picture_notes(checked[i].notes for i in good)
    if listing.aside:
        notes.append(f"{listing.aside.total():,} other file(s) in the folder left aside: {_counts(listing.aside)}")
    if note:
        notes.append(note)
    samples = [Sample(i, i, checked[i].sha256) for i in good]
    return FolderDataset(samples, {i: paths[i] for i in good}, bad, notes, index)


def needs() -> DatasetNeeds:
    """What `folder` needs: the user's folder."""
    return DatasetNeeds("any folder of pictures, recursive: dataset=folder dataset.root=DIR", None)


class FolderDataset(Dataset):
    """Pictures of a folder; each is its own cluster."""

    name = "folder"

    def __init__(
        self,
        samples: list[Sample],
        paths: dict[str, Path],
        left_out: list[BadPicture],
        notes: list[str],
        index: Path,
    ) -> None:
        self.samples = samples
        self.left_out = left_out
        self.notes = notes
        self._paths = paths
        self._index = index

    def read(self, sample: Sample) -> np.ndarray:
        """uint8 (H, W, 3) RGB. Raises DatasetError when the file is gone, ChangedPicture when it is not the one
        that was checked."""
        path = self._paths[sample.id]
        data = read_bytes(path)
        if sha256(data).hexdigest() != sample.content:
            self._index.unlink(missing_ok=True)
            raise ChangedPicture(
                f"{printable(path)} has changed since the run began; leave the folder alone and run again"
            )
        try:
            return decode(data).pixels
        except PictureError as error:
            raise PictureError(printable(path), error.reason) from error


@dataclass
class Listing:
    """What a folder holds. pictures: id to path; aside: files that are not taken, counted by ending (or "hidden");
    unlisted: folders that can't be listed."""

    pictures: dict[str, Path] = field(default_factory=dict)
    aside: Counter[str] = field(default_factory=Counter)
    unlisted: list[BadPicture] = field(default_factory=list)


def list_folder(folder: Path) -> Listing:
    """Every file below `folder`. A folder that is reached twice, through links, is listed once: by its real path if
    it lies inside, else by the first link in order."""
    listing = Listing()
    seen: set[tuple[int, int]] = set()
    waiting, links = [folder], list[Path]()
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        try:
            stat = here.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(here) as scan:
                entries = sorted(scan, key=lambda e: e.name)
        except OSError as error:
            listing.unlisted.append(BadPicture(printable(here), f"folder can't be listed: {error.strerror or error}"))
            continue
        for entry in entries:
            path = here / entry.name
            if entry.name.startswith("."):
                listing.aside["hidden"] += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(path)
            elif _is_candidate(entry):
                listing.pictures[identifier(path.relative_to(folder))] = path
            else:
                listing.aside[path.suffix.lower() or "without an ending"] += 1
    return listing


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_candidate(entry: os.DirEntry) -> bool:
    """A file, or a broken link, whose ending is a picture's. A pipe or a device is neither."""
    if os.path.splitext(entry.name)[1].lower() not in extensions():
        return False
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def printable(path: Path) -> str:
    """The path as text that can be written anywhere: bytes that are no UTF-8 become backslash escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def identifier(path: Path) -> str:
    """The path as `printable` text that no other path has.

    Where the text holds an escape, backslashes of the name itself are doubled: a name that spells an escape is another
    than one that has that byte.
    """
    text = printable(path)
    if _ESCAPE.search(text):
        text = os.fsencode(path.as_posix()).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text


def _existing_folder(root: str | Path | None) -> Path:
    if root is None:
        raise DatasetError("dataset=folder needs a folder: write dataset=folder dataset.root=DIR")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        found = "is a file: name the folder that holds it" if folder.exists() else "does not exist"
        raise DatasetError(f"dataset.root={printable(folder)} {found} (absolute: {printable(folder.absolute())})")
    return folder


def _nothing_found(folder: Path, listing: Listing) -> DatasetError:
    found = f"{listing.aside.total():,} other file(s): {_counts(listing.aside)}" if listing.aside else "no files at all"
    return DatasetError(
        f"no pictures in {printable(folder.absolute())}: found {found}. Looked, in all folders below it, for names "
        f"that end in {' '.join(sorted(extensions()))}"
    )


def _counts(kinds: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda k: (-k[1], k[0]))[:8])
    return shown + (", ..." if len(kinds) > 8 else "")


def _picture_notes(notes_of_pictures: Iterable[tuple[str, ...]]) -> list[str]:
    kinds = Counter(note for notes in notes_of_pictures for note in notes)
    return [f"{count:,} picture(s): {note}" for note, count in sorted(kinds.items())]
