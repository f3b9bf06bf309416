"""What an archive may hold. One member that breaks a rule refuses the whole archive: it is not what it should be."""

from __future__ import annotations

import re
from pathlib import Path

from evals.datasets.sources.base import DataError

# Bytes of one member. The largest picture that is decoded has 89 million pixels, 256 MiB at 3 bytes each.
MAX_MEMBER = 256 * 2**20
# Declared bytes for each stored byte. Photographs hardly compress again; deflate's limit is about 1030.
MAX_RATIO = 200


def safe_name(name: str, archive: Path) -> str:
    """The member's name with forward slashes and without "./". Raises DataError for one that leaves the archive:
    absolute, with a drive letter, with "..", or with a byte 0."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if "\0" in name or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts or not parts:
        raise refused(archive, name, "its path leaves the archive")
    return "/".join(parts)


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
    return DataError(f"{archive} is refused because of {name!r}: {reason}. Get the archive again from its publisher")


def damaged(archive: Path, reason: object) -> DataError:
    """An archive that is cut off or otherwise not whole."""
    return DataError(f"{archive} is cut off or damaged ({reason}): get it again")
