"""Pictures decoded once into one packed uint8 file, read through a memory map.

The pack stands in the run's folder, so a resumed run starts at once; it is made anew when the pictures change.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from lactok.data.held_out import held_out_name
from lactok.data.pictures import DataError, Unreadable, decode, list_pictures, unreadable_error
from lactok.weights import sha256_of

PACK_VERSION = 1


@dataclass(frozen=True)
class PackIndex:
    """What a pack holds. names: paths relative to the root; sizes: (height, width) of each; offsets: in bytes."""

    fingerprint: str
    names: list[str]
    sizes: list[tuple[int, int]]
    offsets: list[int]


class Pack:
    """Decoded pictures: `pack[i]` is uint8 (H, W, 3) RGB, a view of the memory map."""

    def __init__(self, index: PackIndex, data: np.ndarray) -> None:
        self.index, self._data = index, data

    def __len__(self) -> int:
        return len(self.index.names)

    def __getitem__(self, i: int) -> np.ndarray:
        height, width = self.index.sizes[i]
        start = self.index.offsets[i]
        return self._data[start : start + height * width * 3].reshape(height, width, 3)


def open_pack(
    root: str | os.PathLike, folder: str | os.PathLike, side: int, check_held_out: bool = True, workers: int = 4
) -> Pack:
    """The pictures below `root`, shrunk (never enlarged) to a shorter side of at most `side` pixels.

    folder: where `pictures.bin` and `pictures.json` stand or are written.
    check_held_out: refuse photographs of the evaluation set; off only where nothing is evaluated.
    Raises DataError for a missing or empty folder, for unreadable pictures (all listed) and for held-out ones.
    """
    paths = list_pictures(root)
    base = Path(root).expanduser()
    fingerprint = _fingerprint(paths, base, side, check_held_out)
    data_path, index_path = Path(folder) / "pictures.bin", Path(folder) / "pictures.json"
    if index_path.is_file() and data_path.is_file():
        index = PackIndex(**json.loads(index_path.read_text()))
        if index.fingerprint == fingerprint:
            return Pack(index, np.memmap(data_path, np.uint8, mode="r"))
    Path(folder).mkdir(parents=True, exist_ok=True)
    index_path.unlink(missing_ok=True)  # from here on the old data file has no index
    index = _write(paths, base, fingerprint, side, check_held_out, workers, data_path)
    partial = index_path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(index)))
    os.replace(partial, index_path)
    return Pack(index, np.memmap(data_path, np.uint8, mode="r"))


def _fingerprint(paths: list[Path], base: Path, side: int, check_held_out: bool) -> str:
    """sha256 hex over what the pack is made from: the files' names, sizes and modification times."""
    rows = [f"{PACK_VERSION} {side} {check_held_out}"]
    for path in paths:
        stat = path.stat()
        rows.append(f"{path.relative_to(base).as_posix()}\t{stat.st_size}\t{stat.st_mtime_ns}")
    return sha256("\n".join(rows).encode()).hexdigest()


def _write(
    paths: list[Path], base: Path, fingerprint: str, side: int, check_held_out: bool, workers: int, target: Path
) -> PackIndex:
    """Decode all pictures into `target`, in order."""
    bad: list[Unreadable] = []
    refused: list[str] = []
    index = PackIndex(fingerprint, [], [], [])
    offset = 0
    with ThreadPoolExecutor(workers) as pool, open(target, "wb") as file:
        for path, result in zip(paths, pool.map(lambda p: _prepare(p, side, check_held_out), paths)):
            if isinstance(result, Unreadable):
                bad.append(result)
            elif isinstance(result, str):
                refused.append(f"  {path}: {result}")
            else:
                file.write(result.tobytes())
                index.names.append(path.relative_to(base).as_posix())
                index.sizes.append((result.shape[0], result.shape[1]))
                index.offsets.append(offset)
                offset += result.size
    if bad:
        raise unreadable_error(bad)
    if refused:
        raise DataError(
            f"{len(refused)} picture(s) belong to the evaluation set, and training on them would spoil every number:\n"
            + "\n".join(refused)
            + "\nTake them out of data.root, then run again"
        )
    return index


def _prepare(path: Path, side: int, check_held_out: bool) -> np.ndarray | Unreadable | str:
    """Decoded and shrunk pixels, or why it can't be read, or the held-out photograph that it is."""
    try:
        pixels = decode(path)
    except ValueError as error:
        return Unreadable(str(path), str(error))
    if check_held_out and (name := held_out_name(sha256_of(path), pixels)):
        return f"is {name} of scikit-image"
    return shrink(pixels, side)


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) with the shorter side at most `side`, antialiased bicubic; never enlarged."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(round(width * scale), side), max(round(height * scale), side))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
