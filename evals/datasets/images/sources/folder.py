"""The images of a folder, as lactok/images/folder.py lists them."""

from __future__ import annotations

from pathlib import Path

from evals.datasets.base import BadImage
from evals.datasets.images.sources.base import MAX_MEMBER, ImageSource, file_stamp
from lactok.images.decode import ImageError, read_bytes
from lactok.images.folder import list_folder, printable


class FolderSource(ImageSource):
    """Files below a folder, by their path in it."""

    def __init__(self, folder: Path) -> None:
        listing = list_folder(folder)
        self.where = folder
        self.members = sorted(listing.images)
        self.unlisted = [BadImage(error.path, error.reason) for error in listing.unlisted]
        self._paths = listing.images

    def read(self, name: str) -> bytes:
        path = self._paths[name]
        if path.is_file() and path.stat().st_size > MAX_MEMBER:
            raise ImageError(printable(path), f"{path.stat().st_size:,} bytes; at most {MAX_MEMBER:,} are read")
        return read_bytes(path)

    def stamp(self, name: str) -> tuple[int, ...]:
        return file_stamp(self._paths[name])

    def label(self, name: str) -> str:
        return printable(self._paths[name])
