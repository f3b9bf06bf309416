"""Any folder of images, searched recursively; any file name will do (lactok/images/folder.py). Or archives of them.

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
from evals.datasets.images.packed import PackedImages, find_packed, packed_in
from evals.datasets.images.preflight import Checked, check_all, decode_checked, notes_on
from lactok.images.decode import Decoding, extensions, read_bytes, unread_formats
from lactok.images.folder import counted_endings, list_folder, printable
from lactok.items import Item


class Folder(ImageDataset):
    """Images of a folder, or of archives (packed.py).

    cluster: "file" (each is its own, the default), "folder" (the file's folder), or the path of a CSV with columns file
    (path below the folder) and cluster.
    """

    name = "folder"
    settings = frozenset({"cluster", "max_pixels", "colour"})

    def __init__(
        self,
        items: list[Item],
        images: _FolderImages | PackedImages,
        left_out: list[BadImage],
        notes: list[str],
        index: Path,
        how: Decoding,
    ) -> None:
        self.items = items
        self.left_out = left_out
        self.notes = notes
        self._images = images
        self._index = index
        self._how = how

    @classmethod
    def open(cls, request: DatasetRequest) -> Folder:
        """The images of the root. With a limit only the taken images are looked at, and may be found bad.

        Raises BadImages with all bad files, or leaves them out under "skip"; DatasetError for a folder that is not
        there or has no images, and for an archive that can't be trusted.
        """
        packed = find_packed(request.root, request.cache_dir) if request.root is not None else None
        unlisted: list[BadImage] = []
        if packed is None:
            folder = _FolderImages(_existing_folder(request.root))
            unlisted = folder.unlisted
            if not folder.ids:
                packed = packed_in(folder.where, folder.aside, request.cache_dir)
        images = packed or folder
        if not images.ids and not unlisted:
            raise _nothing_found(images)
        ids = spread(images.ids, request.limit)
        place = os.path.realpath(images.where)
        index = request.cache_dir / f"folder-{sha256(os.fsencode(place)).hexdigest()[:16]}.json"
        checked, note = images.check(ids, index, request.decoding)
        bad = [BadImage(images.label(i), checked[i].reason) for i in ids if checked[i].reason] + unlisted
        good = [i for i in ids if not checked[i].reason]
        if bad and request.on_bad_image == "stop":
            raise BadImages(bad)
        if not good:
            raise DatasetError(
                f"none of the {len(bad)} images in {printable(images.where)} can be read; "
                f"the first: {bad[0].path}: {bad[0].reason}"
            )
        cluster_of = _clusters(request.cluster or "file", good)
        items = [Item(i, cluster_of[i], checked[i].sha256) for i in good]
        notes = notes_on(checked, items, request.eval_size)
        if images.aside:
            kinds = counted_endings(images.aside)
            what = "member(s)" if packed else "file(s) in the folder"
            notes.append(f"{images.aside.total():,} other {what} left aside: {kinds}")
        if not_read := unread_formats(images.aside):
            notes.append(not_read)
        if note:
            notes.append(note)
        return cls(items, images, bad, notes, index, request.decoding)

    @classmethod
    def needs(cls) -> DatasetNeeds:
        return DatasetNeeds(
            "any folder of images, recursive, or tar, zip, parquet: dataset=folder dataset.root=DIR", None
        )

    def read(self, item: Item) -> np.ndarray:
        read, label = self._images.read, self._images.label(item.id)
        return decode_checked(lambda: read(item.id), label, item, self._index, self._how)


class _FolderImages:
    """What `list_folder` lists, as `PackedImages` has it."""

    def __init__(self, folder: Path) -> None:
        listing = list_folder(folder)
        self.where, self.aside, self._paths = folder, listing.aside, listing.images
        self.ids = sorted(listing.images)
        self.unlisted = [BadImage(error.path, error.reason) for error in listing.unlisted]

    def label(self, key: str) -> str:
        return printable(self._paths[key])

    def read(self, key: str) -> bytes:
        return read_bytes(self._paths[key])

    def check(self, ids: list[str], index: Path, how: Decoding) -> tuple[dict[str, Checked], str]:
        return check_all({i: self._paths[i] for i in ids}, index, how)


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
        raise DatasetError(
            "dataset=folder needs a folder: write dataset=folder dataset.root=DIR (or a tar, zip or parquet)"
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        found = "is a file: name the folder that holds it" if folder.exists() else "does not exist"
        raise DatasetError(f"dataset.root={printable(folder)} {found} (absolute: {printable(folder.absolute())})")
    return folder


def _nothing_found(images: _FolderImages | PackedImages) -> DatasetError:
    aside = images.aside
    found = f"{aside.total():,} other file(s): {counted_endings(aside)}" if aside else "no files at all"
    return DatasetError(
        f"no images in {printable(images.where.absolute())}: found {found}. Looked, in all folders below it, for names "
        f"that end in {' '.join(sorted(extensions()))}. {unread_formats(aside)}".rstrip(". ")
    )
