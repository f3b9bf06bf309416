"""Tar archives read in place by offset: which members one has, what it must not hold, and names of several.

Nothing is ever extracted. One member that breaks a rule refuses the whole archive: it is not what it should be.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

BLOCK = 512
"""Bytes of a tar record (POSIX.1-1988 ustar)."""
MAX_MEMBER = 256 * 2**20
"""Bytes of one member. The largest image that is decoded has 89 million pixels, 256 MiB at 3 bytes each."""
_MAX_HEADER = 2**20  # bytes of one extended header; tarfile reads them into memory
_AFTER_END = 2**20  # bytes after the end-of-archive mark that are looked at; they are padding, zeros

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip -k"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dk"),
    b"\xfd7zXZ\x00": ("xz", "xz -dk"),
    b"BZh": ("bzip2", "bunzip2 -k"),
}
"""First bytes of a file that is compressed as a whole, with what expands it."""
_COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 10**6
"""Names of one brace pattern."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|\S*\s)")


class ArchiveError(Exception):
    """An archive can't be trusted or read in place; the message names it, the member and the byte, and the way out."""


@dataclass(frozen=True)
class TarMember:
    """A plain file of an archive. name: with forward slashes, bytes that are no UTF-8 as surrogates; offset, size: in
    bytes, of its content."""

    name: str
    offset: int
    size: int


def safe_name(name: str) -> str | None:
    """The name with forward slashes and without "./"; None for one that leaves the archive: absolute, with a drive
    letter, with "..", or with a byte 0."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return None if _leaves(name, parts) or not parts else "/".join(parts)


def _leaves(name: str, parts: list[str]) -> bool:
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) is not None
    return absolute or "\0" in name or ".." in parts


def tar_members(path: Path, archive: Path | None = None) -> Iterator[TarMember]:
    """The plain files of an uncompressed tar, in the order in which they lie; headers alone are read. archive: the name
    for messages.

    Raises ArchiveError for one that is compressed, cut off or damaged, or holds what it must not: a path that leaves
    it, a link or device, a name twice, a member of more than `MAX_MEMBER` bytes.
    """
    try:
        yield from _members(path, archive or path)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise damaged(archive or path, reason) from error


def _members(path: Path, archive: Path) -> Iterator[TarMember]:
    length = path.stat().st_size
    with open(path, "rb") as file:
        refuse_compressed(path, file.read(8))
    seen: set[str] = set()
    with (
        _Headers(path) as headers,
        tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape") as tar,
    ):
        while (info := tar.next()) is not None:
            cast(Any, tar).members = []  # else it keeps them all
            if info.isdir() and not _leaves(info.name, info.name.split("/")):
                continue  # "./" too, which is no name of a member
            name = safe_name(info.name)
            if name is None:
                raise refused(archive, info.name, "its path leaves the archive")
            if not info.isreg() or info.issparse():
                raise refused(archive, name, "it is a link, a device or sparse, not a plain file")
            if name in seen:
                raise refused(archive, name, "it is there twice")
            if not 0 <= info.size <= MAX_MEMBER:
                raise refused(archive, name, f"it declares {info.size:,} bytes; at most {MAX_MEMBER:,} are read")
            if info.offset_data + info.size > length:
                raise damaged(
                    archive,
                    f"its member {name!r} has {info.size:,} bytes from byte {info.offset_data:,} on, and the file ends "
                    f"at byte {length:,}",
                )
            seen.add(name)
            yield TarMember(name, info.offset_data, info.size)
        end = tar.offset
    with open(path, "rb") as file:
        file.seek(end)
        after = file.read(_AFTER_END)
    if after[:BLOCK] != bytes(BLOCK):  # tarfile ends silently at a header that it can't read
        raise damaged(archive, f"no end-of-archive mark at byte {end:,}")
    if after.strip(b"\0"):
        raise ArchiveError(
            f"{archive} goes on after its end-of-archive mark at byte {end:,}, as archives that were joined by cat do: "
            "keep each in a file of its own"
        )


class _Headers(io.FileIO):
    """A tar of which headers are read: one that declares a name or attributes of more than 1 MiB is damaged."""

    def read(self, size: int | None = -1, /) -> bytes:
        size = -1 if size is None else size
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header at byte {self.tell():,} declares {size:,} bytes")
        return super().read(size)


def refuse_compressed(path: Path, first: bytes = b"") -> None:
    """Raises ArchiveError for an archive that is compressed as a whole, by its name or its first bytes."""
    kind, command = next(((k, c) for magic, (k, c) in _COMPRESSED.items() if first.startswith(magic)), ("", ""))
    if not kind and path.name.lower().endswith(_COMPRESSED_ENDINGS):
        by_name = {".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".xz": b"\xfd7zXZ\x00"}
        kind, command = _COMPRESSED[by_name.get(path.suffix.lower(), b"BZh")]
    if kind:
        raise ArchiveError(
            f"{path} is compressed as a whole ({kind}), so no member can be read by its offset: expand it once "
            f"(`{command} {path}`; images hardly compress again) and name the plain tar"
        )


def refused(path: Path, name: str, reason: str) -> ArchiveError:
    """An archive that is not read at all because of one member."""
    return ArchiveError(f"{path} is refused because of {name!r}: {reason}. Get the archive again from its publisher")


def damaged(path: Path, reason: object) -> ArchiveError:
    """An archive that is cut off or otherwise not whole."""
    return ArchiveError(f"{path} is cut off or damaged ({reason}): get it again")


def expanded(pattern: str) -> list[str]:
    """The names that braces stand for, in order: "a-{000..012}.tar" (numbers keep their width), "{train,val}.tar".

    A text without braces is itself. Raises ValueError for a range that runs backwards or too many names.
    """
    parts = _BRACES.split(pattern)
    choices = [[part] if place % 2 == 0 else _choices(part) for place, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MOST_NAMES:
        raise ValueError(f"{pattern} stands for {count:,} names: expected at most {_MOST_NAMES:,}")
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    found = _RANGE.fullmatch(inside)
    if found is None:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(found[1]), int(found[2])
    if first > last:
        raise ValueError(f"{{{inside}}} runs backwards: expected {{{found[2]}..{found[1]}}}")
    if last - first >= _MOST_NAMES:
        raise ValueError(f"{{{inside}}} stands for {last - first + 1:,} names: expected at most {_MOST_NAMES:,}")
    width = len(found[1]) if found[1].startswith("0") else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]


def is_address(root: str) -> bool:
    """Whether it is an address (s3://, https://) or a command (pipe:cat x), which can't be read by offset."""
    return not os.path.exists(root) and _ADDRESS.match(root) is not None


def pattern_files(root: str) -> list[Path] | None:
    """The files that a brace pattern stands for, in order; None where `root` is none.

    Raises ArchiveError where some are missing, ValueError for a pattern that can't be understood.
    """
    if "{" not in root or Path(root).expanduser().exists():
        return None
    paths = [Path(name).expanduser() for name in expanded(root)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ArchiveError(
            f"{root} stands for {len(paths):,} files, of which {len(missing):,} are missing, the first: {missing[0]}: "
            "name those that are there"
        )
    return paths


def named_tars(root: str) -> list[Path] | None:
    """The tars that `root` names: one file, or a brace pattern; None where it is neither.

    Raises what `pattern_files` raises, and ArchiveError for files of another kind.
    """
    place = Path(root).expanduser()
    paths = pattern_files(root) or ([place] if place.is_file() else [])
    for path in paths:
        refuse_compressed(path)
        if path.suffix.lower() != ".tar" and len(paths) > 1:
            raise ArchiveError(f"{path} of {root} is no tar: expected names that end in .tar")
    return paths if paths and paths[0].suffix.lower() == ".tar" else None
