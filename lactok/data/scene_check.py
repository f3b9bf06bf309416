"""What a scene shows, read from its pixels without a network: colour segmentation, then the silhouettes as templates.

Made for images that show `lactok.data.scenes` exactly or nearly: renders, their reconstructions, and samples of models
trained on them. Deterministic, but floating point: unlike a scene's bytes, a score may differ in its last digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from scipy import ndimage

from lactok.data.scenes.backgrounds import FAMILIES
from lactok.data.scenes.raster import FULL
from lactok.data.scenes.shapes import silhouette
from lactok.data.scenes.vocabulary import CLASSES, COLOURS

MIXTURES = 5
"""Of two colours of a background's family, as many mixtures stand for all; they are at most 6 apart in CIELAB."""
DRIFT = 12.0
"""A reconstruction's background is at most so far from the colours that it was drawn in (CIELAB, delta E 1976)."""
EDGE = 0.04
"""An object's edge is at most so wide, in parts of the image's shorter side (5 px at 128)."""
CORE = 3
"""An object holds a square of so many pixels; its thin parts alone don't."""
LINK = 0.04
"""Thin parts this near to an object are its own, in parts of the shorter side; objects are 0.055 apart."""
MIN_AREA = 0.008
"""The area of an object, in parts of the square of the shorter side; a crescent of the least size has 0.014."""
GRID = 32
REACH = 2.2
"""Objects are compared on GRID x GRID points within REACH standard deviations of their centroid."""
TEMPLATE_SIDES = (16, 24, 40, 96)
TEMPLATE_SCALES = (0.94, 1.0, 1.06)


@dataclass(frozen=True)
class Detection:
    """An object found. box: x0, y0, x1, y1 in [0, 1]; score: overlap with its template, soft IoU in [0, 1]."""

    class_name: str
    colour: str
    box: tuple[float, float, float, float]
    score: float


def detect(image: np.ndarray, min_score: float = 0.5) -> list[Detection]:
    """The objects in an image: uint8 (H, W, 3) RGB; best score first. Raises ValueError for another array."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}: expected uint8 (H, W, 3)")
    height, width = image.shape[:2]
    seeds = _seeds(_lab(image))
    if not seeds.any():
        return []
    alpha, owner = _alpha(image.astype(np.float64), seeds)
    found = []
    for number, colour in enumerate(COLOURS, 1):
        parts = ndimage.binary_dilation((alpha > 0.4) & (owner == number), np.ones((3, 3)))
        labels, n = ndimage.label(parts, np.ones((3, 3)))
        for label in range(1, n + 1):
            soft = np.where((labels == label) & (owner == number), alpha, 0)
            if soft.sum() < MIN_AREA * min(height, width) ** 2:
                continue
            template, score, (x0, y0, x1, y1) = _match(soft)
            if score >= min_score:
                box = (max(x0 / width, 0.0), max(y0 / height, 0.0), min(x1 / width, 1.0), min(y1 / height, 1.0))
                found.append(Detection(template.class_name, colour, box, score))
    return sorted(found, key=lambda detection: -detection.score)


def _lab(image: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of 8-bit sRGB, float64 (..., 3); IEC 61966-2-1 and CIE 15."""
    value = image / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@cache
def _families() -> list[np.ndarray]:
    """CIELAB (n, 3) of the mixtures of each family of background colours."""
    shares = np.linspace(0, 1, MIXTURES)[:, None]
    families = []
    for family in FAMILIES:
        colours = [np.array(colour, np.float64) for colour in family]
        mixed = [a + (b - a) * shares for a, b in combinations(colours, 2)]
        families.append(_lab(np.concatenate(mixed)))
    return families


def _distances(lab: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Between (n, 3) and (m, 3) colours: (n, m)."""
    squares = (lab**2).sum(axis=1)[:, None] - 2 * lab @ palette.T + (palette**2).sum(axis=1)
    return np.sqrt(squares.clip(0))


def _background(lab: np.ndarray) -> np.ndarray:
    """The mixtures (n, 3) of the family that most of (H, W, 3) is near to, moved by the median of its offset."""
    step = max(min(lab.shape[:2]) // 32, 1)
    some = lab[::step, ::step].reshape(-1, 3)
    near = [np.exp(-((_distances(some, family).min(axis=1) / (DRIFT / 2)) ** 2)).sum() for family in _families()]
    family = _families()[int(np.argmax(near))]
    distances = _distances(some, family)
    close = distances.min(axis=1) < DRIFT
    offsets = some - family[distances.argmin(axis=1)]
    return family + np.median(offsets[close], axis=0) if close.any() else family


def _seeds(lab: np.ndarray) -> np.ndarray:
    """int (H, W): 1 + the number of the colour of the object that a pixel belongs to, or 0.

    Pixels nearer to a colour of objects than to the background make objects where they hang together; an object's
    colour is the one that its pixels are nearest to on average, those farthest from the background counting most. Then
    pixels around it join that are nearer to its own mean, which a reconstruction may have moved, than to the
    background.
    """
    shape = lab.shape[:2]
    flat = lab.reshape(-1, 3)
    distances = _distances(flat, _lab(np.array(list(COLOURS.values()))))
    to_background = _distances(flat, _background(lab)).min(axis=1).reshape(shape)
    apart = (to_background - distances.min(axis=1).reshape(shape)).clip(0)
    mask = apart > 0
    cores = ndimage.binary_erosion(mask, np.ones((CORE, CORE)))
    if not cores.any():
        return np.zeros(shape, np.int64)
    parts, n = ndimage.label(ndimage.binary_propagation(cores, np.ones((3, 3)), mask), np.ones((3, 3)))
    numbers = np.arange(1, n + 1)
    sums = [ndimage.sum(apart**2 * distance.reshape(shape), parts, numbers) for distance in distances.T]
    colour = np.concatenate([[0], np.argmin(sums, axis=0) + 1])
    weights = ndimage.sum(apart**2, parts, numbers)
    means = np.stack([ndimage.sum(apart**2 * lab[..., c], parts, numbers) / weights for c in range(3)], axis=-1)
    distance, (y, x) = ndimage.distance_transform_edt(parts == 0, return_indices=True)
    nearest = parts[y, x]
    mask |= np.linalg.norm(lab - means[nearest - 1], axis=-1) < to_background
    near = mask & (distance <= LINK * min(shape))
    return np.where(ndimage.binary_propagation(near, np.ones((3, 3)), mask), colour[nearest], 0)


def _alpha(image: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's share of an object's colour in [0, 1], float64 (H, W), and the colour's number (as in `seeds`).

    A pixel's object is that of the nearest seed; the background is that of the nearest pixel beyond all edges.
    """
    edge = max(round(EDGE * min(seeds.shape)), 1)
    distance, (y, x) = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    owner = seeds[y, x]
    beyond = distance > edge
    if not beyond.any():
        return (seeds > 0).astype(np.float64), owner
    by, bx = ndimage.distance_transform_edt(~beyond, return_distances=False, return_indices=True)
    background = ndimage.median_filter(image, size=(3, 3, 1))[by, bx]
    parts, n = ndimage.label(seeds > 0, np.ones((3, 3)))
    weight = ((image - background) ** 2).sum(axis=-1) + 1  # where blur mixes the background in, little
    sums = [ndimage.sum(weight * values, parts, np.arange(n + 1)) for values in (1, *np.moveaxis(image, -1, 0))]
    means = np.stack(sums[1:], axis=-1) / sums[0][:, None]
    span = means[parts[y, x]] - background
    share = ((image - background) * span).sum(axis=-1) / np.maximum((span**2).sum(axis=-1), 1)
    return np.where(beyond, 0, np.clip(share, 0, 1)), owner


@dataclass(frozen=True)
class Frame:
    """Where a shape is and how large: its centroid and the standard deviation of its points, in pixels."""

    x: float
    y: float
    spread: float

    @staticmethod
    def of(alpha: np.ndarray) -> Frame:
        mass = alpha.sum()
        y, x = np.arange(alpha.shape[0])[:, None] + 0.5, np.arange(alpha.shape[1])[None] + 0.5
        middle_x, middle_y = (alpha * x).sum() / mass, (alpha * y).sum() / mass
        variance = (alpha * ((y - middle_y) ** 2 + (x - middle_x) ** 2)).sum() / mass / 2
        return Frame(float(middle_x), float(middle_y), float(np.sqrt(variance)))


@dataclass(frozen=True)
class Template:
    """box: x0, y0, x1, y1 of the silhouette, from its centroid in units of its spread."""

    class_name: str
    box: tuple[float, float, float, float]


def _normalised(alpha: np.ndarray, frame: Frame) -> np.ndarray:
    """float64 (GRID * GRID,): alpha around the frame's centre in units of its spread: place and size don't matter."""
    step = 2 * REACH * frame.spread / GRID
    smooth = ndimage.gaussian_filter(alpha, 0.4 * step) if step > 1 else alpha
    offsets = (np.arange(GRID) + 0.5) * step - REACH * frame.spread - 0.5
    points = np.meshgrid(frame.y + offsets, frame.x + offsets, indexing="ij")
    return ndimage.map_coordinates(smooth, points, order=1).ravel()


@cache
def _templates() -> tuple[list[Template], np.ndarray]:
    """The silhouettes at several sizes, mirrored or not, and what `_normalised` makes of them: (templates, GRID^2)."""
    templates, rows = [], []
    for name in CLASSES:
        for side in TEMPLATE_SIDES:
            for mirrored in (False, True):
                alpha = np.pad(silhouette(name, side, mirrored) / FULL, 2)
                right = Frame.of(alpha)
                y, x = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
                for scale in TEMPLATE_SCALES:
                    frame = Frame(right.x, right.y, right.spread * scale)
                    edges = (x[0] - frame.x, y[0] - frame.y, x[-1] + 1 - frame.x, y[-1] + 1 - frame.y)
                    left, top, far, low = (float(edge / frame.spread) for edge in edges)
                    templates.append(Template(name, (left, top, far, low)))
                    rows.append(_normalised(alpha, frame))
    return templates, np.stack(rows)


def _match(alpha: np.ndarray) -> tuple[Template, float, tuple[float, float, float, float]]:
    """The template that overlaps best, the soft IoU, and its box there in pixels (x0, y0, x1, y1)."""
    templates, stack = _templates()
    frame = Frame.of(alpha)
    shape = _normalised(alpha, frame)
    overlap = np.minimum(stack, shape).sum(axis=1) / np.maximum(stack, shape).sum(axis=1)
    best = int(overlap.argmax())
    x0, y0, x1, y1 = templates[best].box
    s = frame.spread
    return (
        templates[best],
        float(overlap[best]),
        (frame.x + x0 * s, frame.y + y0 * s, frame.x + x1 * s, frame.y + y1 * s),
    )
