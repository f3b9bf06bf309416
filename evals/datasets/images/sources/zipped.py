"""A zip archive, read in place. Stored and deflated members only: the two whose reading is bounded by zipfile."""

from __future__ import annotations

import stat
import threading
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

from evals.datasets.base import BadImage, DataError
from evals.datasets.images.sources.base import (
    ImageSource,
    check_length,
    check_size,
    damaged,
    file_stamp,
    refused,
    safe_name,
)

_ENCRYPTED = 0x1  # general purpose bit 0 (APPNOTE 4.4.4)
_LOCAL_HEADER = 30  # bytes of a local file header without name and extra field (APPNOTE 4.3.7)


class ZipSource(ImageSource):
    """Members of a zip archive. Raises DataError for an archive that is cut off or holds what it must not."""

    def __init__(self, archive: Path) -> None:
        self.where = archive
        self.unlisted: list[BadImage] = []
        self._stamp = file_stamp(archive)
        self._lock = threading.Lock()
        self._zip: zipfile.ZipFile | None = None
        self._infos = _checked(self._handle().infolist(), archive, self._stamp[0])
        self.members = list(self._infos)

    def read(self, name: str) -> bytes:
        info = self._infos[name]
        try:
            with self._handle().open(info) as file:
                data = file.read(info.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise DataError(f"{self.label(name)} can't be read ({error}): get the archive again") from error
        return check_length(data, info.file_size, name, self.where)

    def stamp(self, name: str) -> tuple[int, ...]:
        return self._infos[name].file_size, *file_stamp(self.where)

    def label(self, name: str) -> str:
        return f"{self.where}: {name}"

    def _handle(self) -> zipfile.ZipFile:
        """One open archive a process; zipfile reads its members from several threads by a lock of its own."""
        with self._lock:
            if self._zip is None:
                try:
                    self._zip = zipfile.ZipFile(self.where)
                except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
                    raise damaged(self.where, error) from error
            return self._zip

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _checked(infos: list[zipfile.ZipInfo], archive: Path, length: int) -> dict[str, zipfile.ZipInfo]:
    """The files in an archive of `length` bytes, by safe name, in the order in which they lie. Raises DataError."""
    files: dict[str, zipfile.ZipInfo] = {}
    infos = sorted(infos, key=lambda info: info.header_offset)
    for info in infos:
        name = safe_name(info.orig_filename, archive)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refused(archive, name, "it is a link or a device, not a file")
        if info.is_dir():
            continue
        if info.flag_bits & _ENCRYPTED:
            raise refused(archive, name, "it is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refused(archive, name, f"compression method {info.compress_type}: expected 0 (stored) or 8 (deflate)")
        if name in files:
            raise refused(archive, name, "it is there twice")
        check_size(info.file_size, info.compress_size, name, archive)
        if info.header_offset < 0 or info.header_offset + _LOCAL_HEADER + info.compress_size > length:
            raise damaged(archive, f"{name!r} lies outside of the file's {length:,} bytes")
        files[name] = info
    for before, after in pairwise(infos):
        if before.header_offset + _LOCAL_HEADER + before.compress_size > after.header_offset:
            raise refused(archive, after.orig_filename, f"it overlaps with {before.orig_filename!r}")
    return files
