"""Images cut into tiles that stay in a processor's cache while a chain of elementwise operations passes over them.

The chain runs on one thread: operations on a tile take microseconds, and threads that must meet after each of them lose
more than they gain (twenty times slower, measured, where another process uses one of two cores).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

ELEMENTS = 65_536  # of a tile with its border; int32: 256 KiB, so that several fit a second-level cache of 1 MiB
WIDTH = 1100  # wider images are cut between columns too, or a tile would be nearly all border


@dataclass(frozen=True)
class Tile:
    """A part of (C, H, W)."""

    channels: slice
    rows: slice
    columns: slice

    @property
    def index(self) -> tuple[slice, slice, slice]:
        return self.channels, self.rows, self.columns

    def grown(self, border: int) -> tuple[slice, slice, slice]:
        """The index of the tile with `border` more rows and columns at its end."""
        rows, columns = (slice(s.start, s.stop + border) for s in (self.rows, self.columns))
        return self.channels, rows, columns


def tiles(shape: Sequence[int], border: int, device: torch.device) -> list[Tile]:
    """Tiles that cover (C, H, W) once, each to be grown by `border`; a single one on CUDA."""
    channels, height, width = shape
    if device.type == "cuda" or channels * (height + border) * (width + border) < ELEMENTS:
        return [Tile(slice(0, channels), slice(0, height), slice(0, width))]
    columns = _even(width, WIDTH - border)
    rows = _even(height, max(1, (ELEMENTS - 1) // (columns[0].stop + border) - border))
    return [Tile(slice(c, c + 1), r, k) for c in range(channels) for r in rows for k in columns]


def _even(length: int, most: int) -> list[slice]:
    """The fewest slices of at most `most`, the first the longest, that cover `length`."""
    count = -(-length // most)
    step = -(-length // count)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def for_each(work: Callable[[int, int], None], images: int, parts: int) -> None:
    """Call work(image, part) for all numbers of both, with torch held to one thread on CPUs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for image in range(images):
            for part in range(parts):
                work(image, part)
    finally:
        torch.set_num_threads(threads)
