"""Any folder of images, searched recursively; any file name will do (lactok/images/folder.py).

An item's id is the file's path below the folder with forward slashes (see `identifier` there), items are sorted by id,
and an item's content hash is the sha256 of the file. Every image is decoded once before a run starts, so that bad ones
are known together and at once.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from evals.datasets.base import (
    BadImage,
    BadImages,
    DatasetError,
    DatasetNeeds,
    DatasetRequest,
    ImageDataset,
    spread,
)
from evals.datasets.images.preflight import check_all, decode_checked, notes_on
from lactok.images.decode import Decoding, extensions, read_bytes, unread_formats
from lactok.images.folder import Listing, list_folder, printable
from lactok.items import Item


class Folder(ImageDataset):
    """Images of a folder. cluster: "file" (each is its own, the default), "folder" (the file's folder), or the path of
    a CSV with columns file (path below the folder) and cluster."""

    name = "folder"
    settings = frozenset({"cluster", "max_pixels", "colour"})

    def __init__(
        self,
        items: list[Item],
        paths: dict[str, Path],
        left_out: list[BadImage],
        notes: list[str],
        index: Path,
        how: Decoding,
    ) -> None:
        self.items = items
        self.left_out = left_out
        self.notes = notes
        self._paths = paths
        self._index = index
        self._how = how

    @classmethod
    def open(cls, request: DatasetRequest) -> Folder:
        """The images below the root. With a limit only the taken images are looked at, and may be found bad.

        Raises BadImages with all bad files, or leaves them out under "skip"; DatasetError for a folder that is not
        there or has no images.
        """
        folder = _existing_folder(request.root)
        listing = list_folder(folder)
        if not listing.images and not listing.unlisted:
            raise _nothing_found(folder, listing)
        paths = {i: listing.images[i] for i in spread(sorted(listing.images), request.limit)}
        place = os.path.realpath(folder)
        index = request.cache_dir / f"folder-{sha256(os.fsencode(place)).hexdigest()[:16]}.json"
        checked, note = check_all(paths, index, request.decoding)
        bad = [BadImage(printable(paths[i]), checked[i].reason) for i in paths if checked[i].reason]
        bad += [BadImage(error.path, error.reason) for error in listing.unlisted]
        good = [i for i in paths if not checked[i].reason]
        if bad and request.on_bad_image == "stop":
            raise BadImages(bad)
        if not good:
            raise DatasetError(
                f"none of the {len(bad)} images in {printable(folder)} can be read; "
                f"the first: {bad[0].path}: {bad[0].reason}"
            )
        cluster_of = _clusters(request.cluster or "file", good)
        items = [Item(i, cluster_of[i], checked[i].sha256) for i in good]
        notes = notes_on(checked, items, request.eval_size)
        if listing.aside:
            notes.append(f"{listing.aside.total():,} other file(s) in the folder left aside: {listing.aside_counts}")
        if not_read := unread_formats(listing.aside):
            notes.append(not_read)
        if note:
            notes.append(note)
        return cls(items, {i: paths[i] for i in good}, bad, notes, index, request.decoding)

    @classmethod
    def needs(cls) -> DatasetNeeds:
        return DatasetNeeds("any folder of images, recursive: dataset=folder dataset.root=DIR", None)

    def read(self, item: Item) -> np.ndarray:
        path = self._paths[item.id]
        return decode_checked(lambda: read_bytes(path), printable(path), item, self._index, self._how)


def _clusters(wanted: str, ids: Sequence[str]) -> dict[str, str]:
    """By id, the cluster. Raises DatasetError for a CSV that can't be read or does not name every image."""
    if wanted == "file":
        return {i: i for i in ids}
    if wanted == "folder":
        return {i: i.rpartition("/")[0] or "." for i in ids}
    path = Path(wanted).expanduser()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            lines = [(line["file"], line["cluster"]) for line in table]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        reason = f"it has no column {error}" if isinstance(error, KeyError) else error
        raise DatasetError(
            f"dataset.cluster={wanted} can't be read ({reason}): expected folder, file, or a CSV with columns file and "
            "cluster"
        ) from error
    found: dict[str, str] = {}
    for name, cluster in lines:
        if not cluster or found.setdefault(name, cluster) != cluster:
            seen = f"the clusters {found[name]!r} and {cluster!r}" if cluster else "no cluster"
            raise DatasetError(f"dataset.cluster={wanted}: {name!r} has {seen}, expected one")
    if absent := [i for i in ids if i not in found]:
        raise DatasetError(
            f"dataset.cluster={wanted} has no line for {len(absent):,} of {len(ids):,} images, the first: {absent[0]!r}"
            "; column file holds the path below dataset.root, with forward slashes"
        )
    return {i: found[i] for i in ids}


def _existing_folder(root: str | None) -> Path:
    if root is None:
        raise DatasetError("dataset=folder needs a folder: write dataset=folder dataset.root=DIR")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        found = "is a file: name the folder that holds it" if folder.exists() else "does not exist"
        raise DatasetError(f"dataset.root={printable(folder)} {found} (absolute: {printable(folder.absolute())})")
    return folder


def _nothing_found(folder: Path, listing: Listing) -> DatasetError:
    found = f"{listing.aside.total():,} other file(s): {listing.aside_counts}" if listing.aside else "no files at all"
    return DatasetError(
        f"no images in {printable(folder.absolute())}: found {found}. Looked, in all folders below it, for names "
        f"that end in {' '.join(sorted(extensions()))}. {unread_formats(listing.aside)}".rstrip(". ")
    )
