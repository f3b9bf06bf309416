"""Looks at every image of a folder or an archive once before a run: can it be decoded, and what is its sha256?

The answers are kept in an index, so that a second run is instant; an answer holds while the file's stamp (its size,
times of change and inode) is the same, and the decoding rules and Pillow's version are. An index that can't be read is
made anew; one that proves wrong when an image is read is removed; one that can't be written costs time on the next run
and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from evals.datasets.base import ChangedImage, DataError, DatasetError
from evals.datasets.duplicates import look_alike, perceptual_hash
from evals.datasets.images.sources.base import ImageSource, file_stamp
from lactok.files import WriteError, write_atomically
from lactok.images.decode import VERSION, Decoding, ImageError, decode, decoders, read_bytes
from lactok.items import Item
from lactok.progress import Meter

# Threads that decode (Pillow releases the interpreter's lock); more would only hold more images in memory.
MAX_THREADS = 16
# Raise it when an answer's fields change.
INDEX_VERSION = 4
# Seconds between two writings of the index.
SAVE_EVERY = 60.0


@dataclass(frozen=True)
class Checked:
    """What is known of a file. stamp: see ImageSource.stamp, () for an answer that must not be kept (the
    file could not be opened); sha256: hex, of its bytes; reason: why it is no image, "" when it is; notes: see
    lactok.images.decode.Decoded; looks: see evals.datasets.duplicates.perceptual_hash; size: width and height in
    pixels, None for no image."""

    stamp: tuple[int, ...]
    sha256: str
    reason: str = ""
    notes: tuple[str, ...] = ()
    looks: str = ""
    size: tuple[int, int] | None = None


def check_all(paths: Mapping[str, Path], index: Path, how: Decoding) -> tuple[dict[str, Checked], str]:
    """What is known of each file, by id; files that the index does not know are decoded in threads.

    Returns also a note, "" unless the index could not be written.
    """
    stamps = {i: partial(file_stamp, path) for i, path in paths.items()}
    return _check_all(stamps, lambda i: check(paths[i], how), index, how)


def check_source(
    source: ImageSource, members: Mapping[str, str], index: Path, how: Decoding
) -> tuple[dict[str, Checked], str]:
    """The same for members of a source: id to member name, looked at in the order given."""
    stamps = {i: partial(source.stamp, name) for i, name in members.items()}
    return _check_all(stamps, lambda i: check_member(source, members[i], how), index, how)


def _check_all(
    stamps: Mapping[str, Callable[[], tuple[int, ...]]], look: Callable[[str], Checked], index: Path, how: Decoding
) -> tuple[dict[str, Checked], str]:
    """stamps: by id, what a kept answer must still equal; look: looks at one."""
    known = _read_index(index, how)
    found = {i: known[i] for i, stamp in stamps.items() if i in known and _unchanged(stamp, known[i])}
    todo = [i for i in stamps if i not in found]
    if not todo:
        return found, ""
    note = ""

    def save() -> None:
        nonlocal note
        note = _write_index(index, known | found, how)

    try:
        _check_in_threads(todo, look, found, save)
    finally:
        save()
    return found, note


def check(path: Path, how: Decoding) -> Checked:
    """Read, hash and decode one file."""
    try:
        stamp = file_stamp(path)
        data = read_bytes(path)
    except ImageError as error:
        return Checked((), "", error.reason)
    except OSError as error:
        return Checked((), "", f"can't be read: {error.strerror or error}")
    return _decoded(data, stamp, how)


def check_member(source: ImageSource, name: str, how: Decoding) -> Checked:
    """Read, hash and decode one member."""
    try:
        stamp = source.stamp(name)
        data = source.read(name)
    except ImageError as error:
        return Checked((), "", error.reason)
    except DataError as error:
        return Checked((), "", str(error))
    except OSError as error:
        return Checked((), "", f"can't be read: {error.strerror or error}")
    return _decoded(data, stamp, how)


def _decoded(data: bytes, stamp: tuple[int, ...], how: Decoding) -> Checked:
    digest = sha256(data).hexdigest()
    try:
        decoded = decode(data, how)
        height, width = decoded.pixels.shape[:2]
        return Checked(stamp, digest, "", decoded.notes, perceptual_hash(decoded.pixels), (width, height))
    except ImageError as error:
        return Checked(stamp, digest, error.reason)


def decode_checked(read: Callable[[], bytes], label: str, item: Item, index: Path, how: Decoding) -> np.ndarray:
    """The pixels of an item that was checked: uint8 (H, W, 3) RGB. read: gives its file's bytes; label: names it.

    Raises DatasetError when it is gone; ChangedImage when it is not the one that was checked, and removes the index.
    """
    try:
        data = read()
        if sha256(data).hexdigest() != item.content_hash:
            index.unlink(missing_ok=True)
            raise ChangedImage(f"{label} has changed since the run began; leave it alone and run again")
        return decode(data, how).pixels
    except ImageError as error:
        raise DatasetError(f"{label}: {error.reason}") from error


def notes_on(checked: Mapping[str, Checked], items: Sequence[Item], eval_size: int | None) -> list[str]:
    """What a report says of these images: a line for each kind of note, with their number; those that are smaller than
    the evaluation image; those that look alike."""
    kinds = Counter(note for item in items for note in checked[item.id].notes)
    counted = [f"{count:,} image(s): {note}" for note, count in sorted(kinds.items())]
    distinct = list({item.content_hash: item for item in reversed(items)}.values())[::-1]
    small = [size for item in items if (size := checked[item.id].size) and eval_size and min(size) < eval_size]
    if small:
        width, height = min(small)
        counted.append(
            f"{len(small):,} image(s) are enlarged to the evaluation size of {eval_size} px, the smallest from "
            f"{width} x {height}"
        )
    return counted + look_alike({item.id: checked[item.id].looks for item in distinct}, distinct)


def _check_in_threads(
    todo: Sequence[str], look: Callable[[str], Checked], found: dict[str, Checked], save: Callable[[], None]
) -> None:
    """Adds an answer for each of `todo` to `found`; calls `save` now and then."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    saved = time.monotonic()
    try:
        with Meter(len(todo), "checking images") as meter:
            futures = {pool.submit(look, i): i for i in todo}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                meter.advance()
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)


def _unchanged(stamp: Callable[[], tuple[int, ...]], known: Checked) -> bool:
    try:
        return stamp() == known.stamp
    except OSError:
        return False


def _rules(how: Decoding) -> str:
    """What an answer depends on besides the file."""
    return f"index {INDEX_VERSION}, rules {VERSION}, {decoders()}, {how}"


def _read_index(index: Path, how: Decoding) -> dict[str, Checked]:
    try:
        data = json.loads(index.read_bytes())
        if data["rules"] != _rules(how):
            return {}
        return {
            i: Checked(tuple(stamp), digest, reason, tuple(notes), looks, tuple(size) if size else None)
            for i, (stamp, digest, reason, notes, looks, size) in data["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def _write_index(index: Path, checked: Mapping[str, Checked], how: Decoding) -> str:
    """Writes the index; returns a note when that is not possible."""
    kept = {i: dataclasses.astuple(c) for i, c in sorted(checked.items()) if c.stamp}
    try:
        write_atomically(index, json.dumps({"rules": _rules(how), "files": kept}).encode())
    except (WriteError, OSError) as error:
        reason = error.__cause__ or error
        return f"the index of checked images was not kept ({reason}): the next run checks them again"
    return ""
