"""Looks at every picture of a folder or an archive once before a run: can it be decoded, and what is its sha256?

The answers are kept in an index, so that a second run is instant; an answer holds while the file's size and time of
change are the same, and the decoding rules and Pillow's version are. An index that can't be read is made anew; one
that can't be written costs time on the next run and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import PIL

from evals.datasets import picture
from evals.datasets.meter import Meter
from evals.datasets.picture import PictureError, decode, read_bytes
from evals.datasets.sources.base import DataError, PictureSource, file_stamp
from evals.store import StoreError, write_atomically

# Threads that decode (Pillow releases the interpreter's lock); more would only hold more pictures in memory.
MAX_THREADS = 16
# Seconds between two writings of the index.
SAVE_EVERY = 60.0


@dataclass(frozen=True)
class Checked:
    """What is known of a file. size: bytes; mtime_ns: time of change, -1 for an answer that must not be kept (the
    file could not be opened); sha256: hex, of its bytes; reason: why it is no picture, "" when it is; notes: see
    evals.datasets.picture.Decoded."""

    size: int
    mtime_ns: int
    sha256: str
    reason: str = ""
    notes: tuple[str, ...] = ()


def check_all(paths: Mapping[str, Path], index: Path) -> tuple[dict[str, Checked], str]:
    """What is known of each file, by id; files that the index does not know are decoded in threads.

    Returns also a note, "" unless the index could not be written.
    """
    return _check_all({i: partial(file_stamp, path) for i, path in paths.items()}, lambda i: check(paths[i]), index)


def check_source(source: PictureSource, members: Mapping[str, str], index: Path) -> tuple[dict[str, Checked], str]:
    """The same for members of a source: id to member name, looked at in the order given."""
    stamps = {i: partial(source.stamp, name) for i, name in members.items()}
    return _check_all(stamps, lambda i: check_member(source, members[i]), index)


def _check_all(
    stamps: Mapping[str, Callable[[], tuple[int, int]]], look: Callable[[str], Checked], index: Path
) -> tuple[dict[str, Checked], str]:
    """stamps: by id, what a kept answer must still equal; look: looks at one."""
    known = _read_index(index)
    found = {i: known[i] for i, stamp in stamps.items() if i in known and _unchanged(stamp, known[i])}
    todo = [i for i in stamps if i not in found]
    if not todo:
        return found, ""
    note = ""

    def save() -> None:
        nonlocal note
        note = _write_index(index, known | found)

    try:
        _check_in_threads(todo, look, found, save)
    finally:
        save()
    return found, note


def check(path: Path) -> Checked:
    """Read, hash and decode one file."""
    try:
        stat = path.stat()
        data = read_bytes(path)
    except PictureError as error:
        return Checked(0, -1, "", error.reason)
    except OSError as error:
        return Checked(0, -1, "", f"can't be read: {error.strerror or error}")
    return _decoded(data, stat.st_size, stat.st_mtime_ns)


def check_member(source: PictureSource, name: str) -> Checked:
    """Read, hash and decode one member."""
    try:
        size, mtime_ns = source.stamp(name)
        data = source.read(name)
    except PictureError as error:
        return Checked(0, -1, "", error.reason)
    except DataError as error:
        return Checked(0, -1, "", str(error))
    except OSError as error:
        return Checked(0, -1, "", f"can't be read: {error.strerror or error}")
    return _decoded(data, size, mtime_ns)


def _decoded(data: bytes, size: int, mtime_ns: int) -> Checked:
    digest = sha256(data).hexdigest()
    try:
        return Checked(size, mtime_ns, digest, "", decode(data).notes)
    except PictureError as error:
        return Checked(size, mtime_ns, digest, error.reason)


def _check_in_threads(
    todo: Sequence[str], look: Callable[[str], Checked], found: dict[str, Checked], save: Callable[[], None]
) -> None:
    """Adds an answer for each of `todo` to `found`; calls `save` now and then."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    saved = time.monotonic()
    try:
        with Meter(len(todo), "checking pictures") as meter:
            futures = {pool.submit(look, i): i for i in todo}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                meter.advance()
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)


def _unchanged(stamp: Callable[[], tuple[int, int]], known: Checked) -> bool:
    try:
        return stamp() == (known.size, known.mtime_ns)
    except OSError:
        return False


def _rules() -> str:
    """What an answer depends on besides the file."""
    return f"rules {picture.VERSION}, Pillow {PIL.__version__}"


def _read_index(index: Path) -> dict[str, Checked]:
    try:
        data = json.loads(index.read_bytes())
        if data["rules"] != _rules():
            return {}
        return {
            i: Checked(size, mtime_ns, sha256, reason, tuple(notes))
            for i, (size, mtime_ns, sha256, reason, notes) in data["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def _write_index(index: Path, checked: Mapping[str, Checked]) -> str:
    """Writes the index; returns a note when that is not possible."""
    kept = {i: dataclasses.astuple(c) for i, c in sorted(checked.items()) if c.mtime_ns >= 0}
    try:
        write_atomically(index, json.dumps({"rules": _rules(), "files": kept}).encode())
    except (StoreError, OSError) as error:
        reason = error.__cause__ or error
        return f"the index of checked pictures was not kept ({reason}): the next run checks them again"
    return ""
