"""A tar archive, read in place by an index of offsets.

One that is compressed as a whole can't be: it is expanded once, to a plain tar in the cache, and that is read.
"""

from __future__ import annotations

import gzip
import os
import time
import zlib
from hashlib import sha256
from pathlib import Path

from evals.datasets.base import BadImage, DataError
from evals.datasets.images.sources.base import (
    MAX_RATIO,
    ImageSource,
    check_length,
    damaged,
    file_stamp,
    refused,
)
from lactok.files import WriteError
from lactok.images.tars import ArchiveError, tar_members

_READ = 2**20  # bytes that are expanded at a time
_STALE = 3600.0  # seconds without a write after which an expansion was killed


class TarSource(ImageSource):
    """Members of an uncompressed tar. Raises DataError for one that is cut off or holds what it must not.

    archive: the name for messages, where `plain` was expanded from it.
    """

    def __init__(self, plain: Path, archive: Path | None = None) -> None:
        self.where = archive or plain
        self.unlisted: list[BadImage] = []
        self._plain = plain
        self._places = _index(plain, self.where)
        self.members = list(self._places)

    def read(self, name: str) -> bytes:
        offset, size = self._places[name]
        try:
            with open(self._plain, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{self.label(name)} can't be read: {error.strerror or error}") from error
        return check_length(data, size, name, self.where)

    def stamp(self, name: str) -> tuple[int, ...]:
        return self._places[name][1], *file_stamp(self.where)

    def label(self, name: str) -> str:
        return f"{self.where}: {name}"


def _index(plain: Path, archive: Path) -> dict[str, tuple[int, int]]:
    """(offset, size) of each file's bytes, by safe name, in the order in which they lie."""
    try:
        return {member.name: (member.offset, member.size) for member in tar_members(plain, archive)}
    except ArchiveError as error:
        raise DataError(str(error)) from error


def expand(archive: Path, cache_dir: Path) -> Path:
    """The plain tar in a gzipped one, kept in the cache under a name made from its path and stamp.

    Raises DataError when the archive is cut off, or would become more than 200 times as large; WriteError when the
    cache can't be written.
    """
    size, *changed = file_stamp(archive)
    key = sha256(f"{os.path.realpath(archive)}\n{size}\n{changed}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    plain = cache_dir / f"expanded-{key}.tar"
    if plain.is_file():
        return plain
    part = cache_dir / f".expanded-{key}.{os.getpid()}.tmp"
    try:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            for left in cache_dir.glob(".expanded-*.tmp"):
                if time.time() - left.stat().st_mtime > _STALE:
                    left.unlink(missing_ok=True)
            target = open(part, "wb")  # noqa: SIM115 (its errors are another's than those of reading)
        except OSError as error:
            raise _unwritable(cache_dir, archive, error) from error
        with target, gzip.open(archive, "rb") as source:
            while block := _next_bytes(source, archive):
                if target.tell() + len(block) > MAX_RATIO * size + _READ:
                    raise refused(archive, archive.name, f"it expands to more than {MAX_RATIO} times its size")
                try:
                    target.write(block)
                except OSError as error:
                    raise _unwritable(cache_dir, archive, error) from error
        os.replace(part, plain)
    finally:
        part.unlink(missing_ok=True)
    return plain


def _next_bytes(source: gzip.GzipFile, archive: Path) -> bytes:
    try:
        return source.read(_READ)
    except (EOFError, zlib.error, OSError) as error:
        raise damaged(archive, error) from error


def _unwritable(cache_dir: Path, archive: Path, error: OSError) -> WriteError:
    return WriteError(
        f"can't expand {archive} into {cache_dir}: {error.strerror or error}. It needs room for the plain tar there: "
        f"free some, name another folder by out=DIR, or expand it yourself (`gunzip -k {archive}`)"
    )
