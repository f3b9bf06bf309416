"""What tells that two images are one: a 256-bit perceptual hash that finds candidates, a thumbnail that confirms them.

The hash holds the signs of 256 random projections of the image's 8 x 8 means, each channel less its own mean. A bit of
two images differs with the probability of the angle between these over pi (Charikar, STOC 2002); brightness and
contrast do not count. Unlike hashes of neighbouring pixels (dHash) or of a DCT's coefficients (pHash), each bit reads
the whole image, so that flat areas decide nothing by noise. Frequencies of the means are weighted by their root, which
the spectra of photographs fall with: unweighted, whatever has a bright top and a dark bottom would be near. An
image's hash is a sum of integers: the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
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
NEAR = 48
"""Bits in which the hashes of two candidates for a duplicate differ at most. Of 2 million pairs of photographs 4 are
that near and share a part by chance (`benchmarks/duplicates.py`): few enough to confirm among 20 million images."""
NEAR_HELD = 64
"""The same of an image and one of an evaluation set, of which there are fewer."""
GAINS, OFFSETS = (0.7, 1.4), (-64.0, 64.0)


@dataclass(frozen=True)
class Limits:
    """What two thumbnails of one picture differ by at most, after the best gain and offset between them, of 255.

    mean: of the differences' size; colour, luma: of the mean of the signed differences over any square, by its side:
    compression and resizing move edges to and fro, another object moves a whole square, and colours that are stored at
    half the size run over it. noise: the largest square of 8 may have so many times the mean, and so much more.
    """

    mean: float
    colour: Mapping[int, float]
    luma: Mapping[int, float]
    noise: tuple[float, float] = (0.0, 255.0)


# Chosen on copies and crops of scenes and photographs, and on scenes that differ by where an object stands
# (`benchmarks/duplicates.py`; the figures are in docs/data-construction.md).
WHOLE = Limits(9.5, {4: 22.0, 8: 11.5}, {4: 9.5, 8: 5.5})
"""Of images as they stand."""
TRIMMED = Limits(13.0, {4: 17.0, 8: 6.4}, {4: 16.0, 8: 5.5}, (0.75, 2.0))
"""Of an image and the window of another one that shows it, with at most TRIM pixels of a thumbnail cut off a side."""
CROPPED = Limits(13.0, {4: 16.0, 8: 6.0}, {4: 16.0, 8: 6.0}, (0.75, 0.7))
"""The same with at most MARGIN pixels cut off: what differs must be noise, or an object may stand elsewhere."""
TRIM, MARGIN = 1, 4
STEPS = 10


@dataclass(frozen=True)
class Print:
    """signature: BITS / 8 bytes; thumbnail: SIDE x SIDE x 3 bytes."""

    signature: bytes
    thumbnail: bytes


@cache
def _directions() -> np.ndarray:
    """int64 (BITS, COARSE * COARSE * 3): signs of -1 and 1, weighted by frequency, in 1024ths."""
    count = BITS * COARSE * COARSE * 3
    octets = np.frombuffer(shake_256(b"lactok prints 1").digest(count // 8), np.uint8)
    signs = np.unpackbits(octets).astype(np.float64).reshape(BITS, COARSE, COARSE, 3) * 2 - 1
    place = np.arange(COARSE)
    cosines = np.cos(np.pi * (2 * place[None] + 1) * place[:, None] / (2 * COARSE)) * np.sqrt(2 / COARSE)
    cosines[0] /= np.sqrt(2)
    weights = (place[:, None] ** 2 + place[None] ** 2) ** 0.25
    spectrum = np.einsum("ui,vj,bijc->buvc", cosines, cosines, signs) * weights[None, :, :, None]
    weighted = np.einsum("ui,vj,buvc->bijc", cosines, cosines, spectrum)
    return np.rint(weighted * 1024).astype(np.int64).reshape(BITS, -1)


def print_of(pixels: np.ndarray) -> Print:
    """The print of an image, uint8 (H, W, 3) RGB of any size."""
    small = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.HAMMING))
    step = SIDE // COARSE
    sums = small.reshape(COARSE, step, COARSE, step, 3).astype(np.int64).sum(axis=(1, 3)).reshape(-1, 3)
    centred = (sums * len(sums) - sums.sum(axis=0)).reshape(-1)  # times their number: no division
    return Print(np.packbits(_directions() @ centred > 0).tobytes(), small.tobytes())


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """The image, uint8 (H, W, 3), left to right."""
    return np.ascontiguousarray(pixels[:, ::-1])


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits in which hashes differ. a, b: uint8 (..., BITS / 8), broadcast."""
    return np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int64)


def same_picture(a: bytes, b: bytes) -> bool:
    """Whether two thumbnails show one picture, but for compression, size, a little brightness and contrast, and a few
    percent that were cut off its sides."""
    x, y = (np.frombuffer(t, np.uint8).reshape(SIDE, SIDE, 3) for t in (a, b))
    if _alike(x, y, WHOLE):
        return True
    for whole, part in ((x, y), (y, x)):
        window, cut = _window(whole, part)
        if _alike(window, part, TRIMMED if cut <= TRIM else CROPPED):
            return True
    return False


def _alike(x: np.ndarray, y: np.ndarray, limits: Limits) -> bool:
    """Whether y is x, a little brighter, darker or of other contrast, within the limits."""
    first, second = x.astype(np.float64), y.astype(np.float64)
    dx, dy = first - first.mean(), second - second.mean()
    spread = float((dx * dx).sum())
    gain = float((dx * dy).sum()) / spread if spread else 1.0
    offset = float(second.mean() - gain * first.mean())
    if not (GAINS[0] <= gain <= GAINS[1] and OFFSETS[0] <= offset <= OFFSETS[1]):
        return False
    off = np.clip(gain * first + offset, 0, 255) - second
    mean = float(np.abs(off).mean())
    if mean >= limits.mean or _worst(off, 8) >= limits.noise[0] * mean + limits.noise[1]:
        return False
    kinds = ((off, limits.colour), (off @ _LUMA, limits.luma))
    return all(_worst(values, side) < most for values, squares in kinds for side, most in squares.items())


_LUMA = np.array([[0.299], [0.587], [0.114]])


def _worst(off: np.ndarray, side: int) -> float:
    squares = off.reshape(SIDE // side, side, SIDE // side, side, off.shape[-1]).mean(axis=(1, 3))
    return float(np.abs(squares).max())


def _window(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """The window of x that is most like y, as a thumbnail, and the pixels that are cut off a side at most.

    Gauss-Newton over the four sides, a gain and an offset (Lucas and Kanade, IJCAI 1981), smoothed first, to sixteenths
    of a pixel."""
    image, sharp = Image.fromarray(x), y.astype(np.float64)
    soft = _smoothed(sharp)
    box, smooth = np.array([0.0, 0.0, SIDE, SIDE]), True
    part = (np.arange(SIDE) + 0.5) / SIDE
    u, v = part[None, :, None], part[:, None, None]
    ridge = np.diag([1600.0] * 4 + [1e-6] * 2)  # sides stay where the picture is flat
    for step in range(STEPS):
        now = _cut(image, box).astype(np.float64)
        now, wanted = (_smoothed(now), soft) if smooth else (now, sharp)
        dy, dx = np.gradient(now, axis=(0, 1))
        dx, dy = dx * (SIDE / (box[2] - box[0])), dy * (SIDE / (box[3] - box[1]))
        moves = [dx * (1 - u), dy * (1 - v), dx * u, dy * v, now, np.ones_like(now)]
        system = np.stack(moves, axis=-1).reshape(-1, len(moves))
        best = np.linalg.solve(system.T @ system + ridge, system.T @ wanted.reshape(-1))
        if not 0.5 < best[4] < 2:
            break
        moved = box + np.clip(best[:4] / best[4], -2, 2)
        moved[:2], moved[2:] = np.clip(moved[:2], 0, MARGIN), np.clip(moved[2:], SIDE - MARGIN, SIDE)
        moved = np.round(moved * 16) / 16
        still = np.abs(moved - box).max() <= 1 / 16
        if still and not smooth:
            break
        smooth = smooth and not still and step < STEPS // 2
        box = moved
    return _cut(image, box), float(max(*box[:2], *(SIDE - box[2:])))


def _cut(image: Image.Image, box: np.ndarray) -> np.ndarray:
    sides = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=sides))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Three times 1-2-1 each way."""
    for _ in range(3):
        wide = np.pad(values, ((1, 1), (1, 1), (0, 0)), "edge")
        rows = wide[:-2] + 2 * wide[1:-1] + wide[2:]
        values = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    return values


def bands(signatures: np.ndarray) -> np.ndarray:
    """The parts of hashes: uint8 (N, BITS / 8) to uint64 (N, BANDS), each with its place in it."""
    parts = signatures.reshape(len(signatures), BANDS, -1).astype(np.uint64)
    values = np.zeros(parts.shape[:2], np.uint64)
    for octet in range(parts.shape[2]):
        values = (values << np.uint64(8)) | parts[:, :, octet]
    return (values << np.uint64(4)) | np.arange(BANDS, dtype=np.uint64)
