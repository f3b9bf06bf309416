"""Images decoded once into one packed uint8 file, read through a memory map.

The pack stands in the run's folder, so a resumed run starts at once; it is made anew when the images change, or the
rules by which they are decoded.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from lactok.data.folder import DataError, decoded, name_rank, unreadable
from lactok.data.held_out import held_out_name, pixels_sha256
from lactok.data.sources import ImageFiles, image_files
from lactok.files import explained, write_atomically
from lactok.images.decode import VERSION, ImageError
from lactok.locks import waiting_lock

PACK_VERSION = 4
DATA, INDEX = "images.bin", "images.json"
"""A pack's files."""
_BLOCK = 256
"""Images that are decoded by one call of the threads, and held in memory at most: they may be faster than the disk."""


class UnreadableImages(DataError):
    """Images can't be decoded; the message lists all of them."""


@dataclass(frozen=True)
class PackIndex:
    """What a pack holds. names: below their folder, or in their tar; sizes: (height, width) of each; offsets: in bytes.

    pixels: sha256 hex of each packed image, see `pixels_sha256`. counts: images of each folder, which stand one after
    the other; names of several folders begin with the folder's place ("1/").
    """

    fingerprint: str
    names: list[str]
    sizes: list[tuple[int, int]]
    offsets: list[int]
    pixels: list[str]
    counts: list[int]

    @property
    def size(self) -> int:
        """Bytes of all images."""
        return sum(height * width * 3 for height, width in self.sizes)


class Pack:
    """Decoded images: `pack[i]` is uint8 (H, W, 3) RGB, a view of the memory map."""

    of_what = "sha256 of the images' names, sizes and pixels"

    def __init__(self, index: PackIndex, data: np.memmap) -> None:
        self.index, self._data = index, data

    @property
    def counts(self) -> list[int]:
        """Images of each folder."""
        return self.index.counts

    @property
    def ranks(self) -> np.ndarray:
        """uint64 (N,), see `name_rank`."""
        return np.array([name_rank(name) for name in self.index.names], np.uint64)

    @property
    def fingerprint(self) -> str:
        """sha256 hex over the images' names, sizes and pixels, as they are packed."""
        index = self.index
        return sha256(json.dumps([index.names, index.sizes, index.pixels]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.index.names)

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that gets it maps the file itself."""
        return _mapped, (self.index, self._data.filename)

    def __getitem__(self, i: int) -> np.ndarray:
        height, width = self.index.sizes[i]
        start = self.index.offsets[i]
        return self._data[start : start + height * width * 3].reshape(height, width, 3)


def _mapped(index: PackIndex, path: str) -> Pack:
    return Pack(index, np.memmap(path, np.uint8, mode="r"))


def open_pack(
    roots: Sequence[str | os.PathLike],
    folder: str | os.PathLike,
    side: int,
    check_held_out: bool = True,
    workers: int | None = None,
) -> Pack:
    """The images of each of `roots`, folders or tars, shrunk (never enlarged) to a shorter side of at most `side`.

    side: in pixels. folder: where `images.bin` and `images.json` stand or are written.
    check_held_out: refuse photographs of the evaluation set; off only where nothing is evaluated.
    Raises DataError for a missing or empty folder, for unreadable images (UnreadableImages) and for held-out ones,
    WriteError for a folder that can't be written.
    """
    files = [image_files(root) for root in roots]
    fingerprint = _fingerprint(files, side, check_held_out)
    folder = Path(folder)
    if stored := _stored(folder, fingerprint):
        return stored
    with explained(folder / DATA):
        folder.mkdir(parents=True, exist_ok=True)
        with waiting_lock(folder / ".images.lock"):  # of runs that share a pack, one writes
            workers = workers or max(4, os.cpu_count() or 1)
            return _stored(folder, fingerprint) or _made(files, fingerprint, side, check_held_out, workers, folder)


def _stored(folder: Path, fingerprint: str) -> Pack | None:
    """The pack that stands in the folder, if it is that one."""
    data_path, index_path = folder / DATA, folder / INDEX
    try:
        text = index_path.read_text()
        index = PackIndex(**json.loads(text))
        if index.fingerprint != fingerprint:
            return None
        data = np.memmap(data_path, np.uint8, mode="r")
        if index_path.read_text() != text or data.size != index.size:  # replaced meanwhile, or cut short
            return None
    except (OSError, TypeError, ValueError):  # missing, or another version's
        return None
    return Pack(index, data)


def _made(
    files: Sequence[ImageFiles],
    fingerprint: str,
    side: int,
    check_held_out: bool,
    workers: int,
    folder: Path,
) -> Pack:
    """A new pack, renamed into place when it is whole: a run that has the old one mapped keeps that."""
    partial = folder / f".{DATA}.tmp"
    try:
        index = _write(files, fingerprint, side, check_held_out, workers, partial)
        (folder / INDEX).unlink(missing_ok=True)  # from here on the old data file has no index
        os.replace(partial, folder / DATA)
        data = np.memmap(folder / DATA, np.uint8, mode="r")  # by this name a process that gets the pack maps it, too
    finally:
        partial.unlink(missing_ok=True)
    write_atomically(folder / INDEX, json.dumps(asdict(index)).encode())
    return Pack(index, data)


def _fingerprint(files: Sequence[ImageFiles], side: int, check_held_out: bool) -> str:
    """sha256 hex over what the pack is made from: the files' names, sizes, modification times and those of their inodes
    (`cp -p` and `tar x` keep the former), and the rules of decoding. Raises DataError."""
    rows = [f"{PACK_VERSION} {VERSION} {PIL.__version__} {side} {check_held_out}"]
    for place, of in enumerate(files):
        rows += [_prefix(place, files) + stamp for stamp in of.stamps()]
    return sha256("\n".join(rows).encode()).hexdigest()


def _prefix(place: int, files: Sequence[ImageFiles]) -> str:
    return f"{place}/" if len(files) > 1 else ""


def _write(
    files: Sequence[ImageFiles],
    fingerprint: str,
    side: int,
    check_held_out: bool,
    workers: int,
    target: Path,
) -> PackIndex:
    """Decode all images into `target`, in order."""
    bad: list[ImageError] = []
    refused: list[str] = []
    index = PackIndex(fingerprint, [], [], [], [], [len(of) for of in files])
    offset = 0
    keys = [(place, i) for place, of in enumerate(files) for i in range(len(of))]
    with _cancelling(ThreadPoolExecutor(workers)) as pool, open(target, "wb") as file:
        prepared = (
            result
            for start in range(0, len(keys), _BLOCK)
            for result in pool.map(
                lambda key: _prepare(files[key[0]], key[1], side, check_held_out), keys[start : start + _BLOCK]
            )
        )
        for (place, i), result in zip(keys, prepared, strict=True):
            if isinstance(result, ImageError):
                bad.append(result)
            elif isinstance(result, str):
                refused.append(f"  {files[place].label(i)}: {result}")
            else:
                pixels, digest = result
                file.write(pixels.tobytes())
                index.names.append(_prefix(place, files) + files[place].name(i))
                index.sizes.append((pixels.shape[0], pixels.shape[1]))
                index.offsets.append(offset)
                index.pixels.append(digest)
                offset += pixels.size
        file.flush()
        os.fsync(file.fileno())
    if bad:
        raise UnreadableImages(str(unreadable(bad)))
    if refused:
        raise evaluated(refused)
    return index


@contextlib.contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """After an error in the block, nothing more is begun: a disk that is full is told of at once."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def evaluated(refused: Sequence[str]) -> DataError:
    """One error on all images of the evaluation set, a line each."""
    return DataError(
        f"{len(refused)} image(s) belong to the evaluation set, and training on them would spoil every number:\n"
        + "\n".join(refused)
        + "\nTake them out of data.root, then run again"
    )


def _prepare(files: ImageFiles, i: int, side: int, check_held_out: bool) -> tuple[np.ndarray, str] | ImageError | str:
    """Decoded and shrunk pixels with their sha256, or why it can't be read, or the held-out photograph that it is."""
    try:
        data = files.read(i)
        pixels = decoded(data)
    except ImageError as error:
        return ImageError(files.label(i), error.reason)
    if check_held_out and (name := held_out_name(sha256(data).hexdigest(), pixels)):
        return f"is {name} of scikit-image"
    shrunk = shrink(pixels, side)
    return shrunk, pixels_sha256(shrunk)


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) with the shorter side at most `side`, antialiased bicubic; never enlarged."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(round(width * scale), side), max(round(height * scale), side))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
