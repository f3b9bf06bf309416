"""Where a dataset's images come from: named members of a folder or of an archive, read in place.

And what an archive may hold: one member that breaks a rule refuses the whole archive: it is not what it should be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from evals.datasets.base import BadImage, DataError
from lactok.images import tars
from lactok.images.tars import MAX_MEMBER

# Declared bytes for each stored byte. Photographs hardly compress again; deflate's limit is about 1030.
MAX_RATIO = 200


class ImageSource(ABC):
    """Named members and their bytes.

    members: names with forward slashes, in the order in which reading them is cheapest; where: the folder or archive;
    unlisted: parts of it that can't be listed. A source can be pickled: a process opens its own handles.
    """

    members: list[str]
    where: Path
    unlisted: list[BadImage]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A member's bytes, whole. Safe to call from threads. Raises DataError when they are not as declared, and
        ImageError when a file of a folder can't be read."""

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


def safe_name(name: str, archive: Path) -> str:
    """The member's name with forward slashes and without "./". Raises DataError for one that leaves the archive:
    absolute, with a drive letter, with "..", or with a byte 0."""
    if (safe := tars.safe_name(name)) is None:
        raise refused(archive, name, "its path leaves the archive")
    return safe


def check_size(size: int, stored: int, name: str, archive: Path) -> None:
    """size: bytes that the member declares; stored: bytes that it takes in the archive. Raises DataError."""
    if not 0 <= size <= MAX_MEMBER:
        raise refused(archive, name, f"it declares {size:,} bytes; at most {MAX_MEMBER:,} are read")
    if size > MAX_RATIO * stored:
        raise refused(archive, name, f"{stored:,} bytes would become {size:,}, more than {MAX_RATIO} times as many")


def check_length(data: bytes, size: int, name: str, archive: Path) -> bytes:
    """`data`, if it has the declared number of bytes. Raises DataError."""
    if len(data) != size:
        raise DataError(f"{archive}: {name!r} holds {len(data):,} bytes and declares {size:,}: get the archive again")
    return data


def refused(archive: Path, name: str, reason: str) -> DataError:
    """An archive that is not read at all because of one member."""
    return DataError(str(tars.refused(archive, name, reason)))


def damaged(archive: Path, reason: object) -> DataError:
    """An archive that is cut off or otherwise not whole."""
    return DataError(str(tars.damaged(archive, reason)))
