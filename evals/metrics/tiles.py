"""Parts of a picture that stay in a processor's cache while a chain of elementwise operations passes over them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

ELEMENTS_PER_THREAD = 32_768  # int32: 128 KiB an operand, so that several fit a second-level cache of 1 MiB


def tiles(height: int, width: int, device: torch.device, channels: int = 3) -> Iterator[tuple[slice, slice]]:
    """(channels, rows) slices that cover (channels, height, width) once; a single one on CUDA.

    Bands of whole rows of one channel, or of all channels where a whole picture fits.
    """
    if device.type == "cuda":
        yield slice(0, channels), slice(0, height)
        return
    elements = ELEMENTS_PER_THREAD * max(2, torch.get_num_threads())
    if channels * height * width <= elements:
        yield slice(0, channels), slice(0, height)
        return
    rows = max(1, elements // width)
    for channel in range(channels):
        for row in range(0, height, rows):
            yield slice(channel, channel + 1), slice(row, min(row + rows, height))
