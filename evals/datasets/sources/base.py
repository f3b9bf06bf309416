"""Where a dataset's files come from: named members of a folder or of an archive, read in place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from evals.datasets.base import BadPicture, DatasetError


class DataError(DatasetError):
    """The data are here but can't be trusted: an archive is cut off, damaged, or holds what it must not. The message
    names the file."""


class MissingData(DatasetError):
    """The data are not here; the message says where they were looked for and what to place there."""


class PictureSource(ABC):
    """Named members and their bytes.

    members: names with forward slashes, in the order in which reading them is cheapest; where: the folder or archive;
    unlisted: parts of it that can't be listed. A source can be pickled: a process opens its own handles.
    """

    members: list[str]
    where: Path
    unlisted: list[BadPicture]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A member's bytes, whole. Safe to call from threads. Raises DataError when they are not as declared, and
        PictureError when a file of a folder can't be read."""

    @abstractmethod
    def stamp(self, name: str) -> tuple[int, ...]:
        """What tells that a member is unchanged: `file_stamp` of the file that holds it, and in an archive its own
        size in bytes. Raises OSError when that is gone."""

    @abstractmethod
    def label(self, name: str) -> str:
        """A member for a message: its path, or "ARCHIVE: NAME"."""


def file_stamp(path: Path) -> tuple[int, int, int, int]:
    """(size in bytes, time of change in ns, the same of the inode, the inode's number). Raises OSError.

    The first two are kept by `cp -p`, `rsync -t` and `tar x`; no program can set the third.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
