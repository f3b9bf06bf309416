"""The pictures of a folder, as evals/datasets/folder.py lists them."""

from __future__ import annotations

from pathlib import Path

from evals.datasets.folder import list_folder, printable
from evals.datasets.picture import PictureError, read_bytes
from evals.datasets.sources.base import PictureSource, file_stamp
from evals.datasets.sources.safety import MAX_MEMBER


class FolderSource(PictureSource):
    """Files below a folder, by their path in it."""

    def __init__(self, folder: Path) -> None:
        listing = list_folder(folder)
        self.where = folder
        self.members = sorted(listing.pictures)
        self.unlisted = listing.unlisted
        self._paths = listing.pictures

    def read(self, name: str) -> bytes:
        path = self._paths[name]
        if path.is_file() and path.stat().st_size > MAX_MEMBER:
            raise PictureError(printable(path), f"{path.stat().st_size:,} bytes; at most {MAX_MEMBER:,} are read")
        return read_bytes(path)

    def stamp(self, name: str) -> tuple[int, ...]:
        return file_stamp(self._paths[name])

    def label(self, name: str) -> str:
        return printable(self._paths[name])
