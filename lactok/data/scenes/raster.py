"""Silhouettes to coverage, in integers alone.

A silhouette is described in a square frame of FRAME units, x to the right and y down, by polygons and ellipses whose
coordinates are integers. A pixel is sampled at SAMPLES x SAMPLES points; whether a point is inside is decided by exact
comparison of integers (int64 or Python's; no floating point, no library that draws), so the result is the same on
every machine and with every version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

FRAME = 1000
SAMPLES = 4
FULL = SAMPLES * SAMPLES
"""Coverage of a pixel that is wholly inside."""
MAX_SIDE = 2048
"""Pixels; a silhouette of that size takes 0.2 GB while it is made, and all products stay far below 2^63."""


@dataclass(frozen=True)
class Polygon:
    """Inside by the even-odd rule. points: (x, y)."""

    points: tuple[tuple[int, int], ...]

    def fill(self, n: int) -> np.ndarray:
        """bool (n, n): of n x n sample points, spread evenly over the frame, those inside.

        Sample k is at (2k + 1) FRAME / 2n; all is multiplied by 2n. A row's crossings toggle it from there on.
        """
        toggles = np.zeros((n, n + 1), bool)
        for (x0, y0), (x1, y1) in zip(self.points, (*self.points[1:], self.points[0])):
            if y0 == y1:
                continue
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            # rows with y0 <= y < y1
            first = max(-((FRAME - 2 * n * y0) // (2 * FRAME)), 0)
            last = min(-((FRAME - 2 * n * y1) // (2 * FRAME)), n)
            rows = np.arange(first, last, dtype=np.int64)
            height = y1 - y0
            # the smallest column whose x is at or beyond the crossing x0 + (y - y0) (x1 - x0) / height
            crossing = 2 * n * x0 * height + ((2 * rows + 1) * FRAME - 2 * n * y0) * (x1 - x0)
            columns = np.clip(-((FRAME * height - crossing) // (2 * FRAME * height)), 0, n)
            toggles[rows, columns] ^= True
        return np.logical_xor.accumulate(toggles, axis=1)[:, :n]


@dataclass(frozen=True)
class Ellipse:
    """Centre and half axes."""

    x: int
    y: int
    across: int
    down: int

    def fill(self, n: int) -> np.ndarray:
        """As Polygon.fill: where (dx down)^2 + (dy across)^2 <= (across down)^2, all but the radii times 2n."""
        inside = np.zeros((n, n), bool)
        for row in range(n):
            dy = (2 * row + 1) * FRAME - 2 * n * self.y
            room = (2 * n * self.down) ** 2 - dy * dy
            if room < 0:
                continue
            reach = isqrt(room * self.across * self.across // (self.down * self.down))  # the largest |dx|
            left = 2 * n * self.x - reach
            right = 2 * n * self.x + reach
            start = max(-((FRAME - left) // (2 * FRAME)), 0)
            stop = (right - FRAME) // (2 * FRAME) + 1
            inside[row, start : max(stop, start)] = True
        return inside


Primitive = Polygon | Ellipse


@dataclass(frozen=True)
class Step:
    """Adds a primitive to what is there, or cuts it out."""

    primitive: Primitive
    adds: bool = True


def polygon(*numbers: int) -> Polygon:
    """polygon(x0, y0, x1, y1, ...)."""
    return Polygon(tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def box(left: int, top: int, right: int, bottom: int) -> Polygon:
    """A rectangle."""
    return polygon(left, top, right, top, right, bottom, left, bottom)


def disc(x: int, y: int, radius: int) -> Ellipse:
    """A circle, filled."""
    return Ellipse(x, y, radius, radius)


def cut(primitive: Primitive) -> Step:
    """The step that cuts the primitive out of what came before it."""
    return Step(primitive, adds=False)


def coverage(steps: Sequence[Primitive | Step], side: int) -> np.ndarray:
    """uint8 (side, side) of 0 to FULL: how many of a pixel's points are inside. Raises ValueError for a wrong side."""
    if not 1 <= side <= MAX_SIDE:
        raise ValueError(f"side={side}: expected 1 to {MAX_SIDE} pixels")
    n = side * SAMPLES
    inside = np.zeros((n, n), bool)
    for step in steps:
        primitive, adds = (step.primitive, step.adds) if isinstance(step, Step) else (step, True)
        if adds:
            inside |= primitive.fill(n)
        else:
            inside &= ~primitive.fill(n)
    return inside.reshape(side, SAMPLES, side, SAMPLES).sum(axis=(1, 3), dtype=np.uint8)
