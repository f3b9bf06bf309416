"""What tells that two images are one: a 256-bit perceptual hash that finds candidates, a thumbnail that confirms them.

The hash holds the signs of 256 random projections of the image's 8 x 8 means, each channel less its own mean. A bit of
two images differs with the probability of the angle between these over pi (Charikar, STOC 2002); brightness and
contrast do not count. Unlike hashes of neighbouring pixels (dHash) or of a DCT's coefficients (pHash), each bit reads
the whole image, so that flat areas decide nothing by noise. Integers throughout: the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import shake_256

import numpy as np
from PIL import Image

SIDE = 32
"""Of a thumbnail, pixels; uint8 (SIDE, SIDE, 3) is what is kept of an image."""
BITS = 256
COARSE = 8
BANDS = 16
"""Parts of the hash; images of which one part is equal are candidates."""
NEAR = 64
"""Bits in which the hashes of candidates differ at most."""
# An image is taken for another one where, after the best gain and offset between their thumbnails, the mean difference
# is below MEAN, and the mean of the signed differences over any square of so many pixels below SQUARES[side] (of 255):
# compression and resizing move edges to and fro, another object moves a whole square. Chosen on copies of scenes.
MEAN = 9.5
SQUARES = {4: 22.0, 8: 11.5}
GAINS, OFFSETS = (0.7, 1.4), (-64.0, 64.0)


@dataclass(frozen=True)
class Print:
    """signature: BITS / 8 bytes; thumbnail: SIDE x SIDE x 3 bytes."""

    signature: bytes
    thumbnail: bytes


@cache
def _directions() -> np.ndarray:
    """int32 (BITS, COARSE * COARSE * 3) of -1 and 1."""
    count = BITS * COARSE * COARSE * 3
    octets = np.frombuffer(shake_256(b"lactok prints 1").digest(count // 8), np.uint8)
    return np.unpackbits(octets).astype(np.int32).reshape(BITS, -1) * 2 - 1


def print_of(pixels: np.ndarray) -> Print:
    """The print of an image, uint8 (H, W, 3) RGB of any size."""
    small = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.HAMMING))
    step = SIDE // COARSE
    sums = small.reshape(COARSE, step, COARSE, step, 3).astype(np.int32).sum(axis=(1, 3)).reshape(-1, 3)
    centred = (sums * len(sums) - sums.sum(axis=0)).reshape(-1)  # times their number: no division
    bits = _directions().astype(np.int64) @ centred > 0
    return Print(np.packbits(bits).tobytes(), small.tobytes())


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits in which hashes differ. a, b: uint8 (..., BITS / 8), broadcast."""
    return np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int64)


def same_picture(a: bytes, b: bytes) -> bool:
    """Whether two thumbnails show one picture, but for compression, size and a little brightness and contrast."""
    x, y = (np.frombuffer(t, np.uint8).astype(np.float64).reshape(SIDE, SIDE, 3) for t in (a, b))
    dx, dy = x - x.mean(), y - y.mean()
    spread = float((dx * dx).sum())
    gain = float((dx * dy).sum()) / spread if spread else 1.0
    if not GAINS[0] <= gain <= GAINS[1]:
        return False
    offset = float(y.mean() - gain * x.mean())
    if not OFFSETS[0] <= offset <= OFFSETS[1]:
        return False
    off = np.clip(gain * x + offset, 0, 255) - y
    if np.abs(off).mean() >= MEAN:
        return False
    return all(_worst(off, side) < most for side, most in SQUARES.items())


def _worst(off: np.ndarray, side: int) -> float:
    return float(np.abs(off.reshape(SIDE // side, side, SIDE // side, side, 3).mean(axis=(1, 3))).max())


def bands(signatures: np.ndarray) -> np.ndarray:
    """The parts of hashes: uint8 (N, BITS / 8) to uint64 (N, BANDS), each with its place in it."""
    parts = signatures.reshape(len(signatures), BANDS, -1).astype(np.uint64)
    values = np.zeros(parts.shape[:2], np.uint64)
    for octet in range(parts.shape[2]):
        values = (values << np.uint64(8)) | parts[:, :, octet]
    return (values << np.uint64(4)) | np.arange(BANDS, dtype=np.uint64)
