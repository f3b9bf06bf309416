"""sha256 of files, computed once: those of large files are kept on disk for later processes.

Every rank of a run identifies checkpoints of 16 GB; a digest is taken again only where the file's path, size, inode or
times of change are others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from lactok.files import WriteError, write_atomically

LARGE = 64 * 2**20
"""Bytes from which on a file's digest is kept on disk; a smaller one is read in well under a second."""


def digests_path() -> Path:
    """The JSON file of digests: lactok/digests.json in $XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lactok" / "digests.json"


def sha256_of(path: str | os.PathLike) -> str:
    """The file's sha256, 64 hex digits. Raises OSError for a file that can't be read."""
    return _digest(os.path.abspath(path), *stamp_of(path))


def stamp_of(path: str | os.PathLike) -> tuple[int, int, int, int]:
    """What changes when a file does: its size, times of change, and inode. Raises OSError."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, *times: int) -> str:
    if size < LARGE:
        return _computed(path)
    stamp = [size, *times]
    entry = _stored().get(path)
    if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("sha256"), str):
        return entry["sha256"]
    digest = _computed(path)
    stored = _stored() | {path: {"stamp": stamp, "sha256": digest}}  # read anew: another process may have added to it
    with contextlib.suppress(WriteError):  # a home that can't be written costs time alone
        write_atomically(digests_path(), json.dumps(stored, indent=1, sort_keys=True).encode())
    return digest


def _computed(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stored() -> dict[str, object]:
    try:
        content = json.loads(digests_path().read_bytes())
    except (OSError, ValueError):  # none yet, or damaged: computed again
        return {}
    return content if isinstance(content, dict) else {}
