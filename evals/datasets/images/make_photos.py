"""Makes photos.csv: `python -m evals.datasets.images.make_photos`. The rules, in this order:

1. Sources: the natural colour photographs that scikit-image's wheel holds. Left out: the right view of the stereo
   pair (its left view is in), hubble_deep_field (a composite of exposures, mostly black), retina and ihc (medical,
   false or stained colours), color, logo, horse, phantom, chessboard (drawn), and all grey images.
2. Two scales: native, and shrunk by two.
3. Candidates on a grid of 32 pixels, so tiles overlap; none with a luma standard deviation below 12 of 255: at native
   scale half of the rocket's tiles are bare sky.
4. At most 12 tiles a photograph at half scale, and native ones up to 40 in all, so that no photograph dominates.
5. Within a scale the tiles are those farthest apart: the first candidate, then always the one whose nearest chosen
   tile is farthest (ties: the first in reading order).
"""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from evals.datasets.images.photos import TILE, Tile, cut, load_source, pixel_hash, scaled

SOURCES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
STRIDE = 32
MIN_LUMA_STD = 12
HALF_SCALE_TILES = 12
TILES_A_SOURCE = 40


def make_tiles() -> list[Tile]:
    """All tiles, sorted by id."""
    return sorted((tile for source in SOURCES for tile in _of_source(source)), key=lambda tile: tile.id)


def _of_source(source: str) -> list[Tile]:
    image = load_source(source)
    half = _of_scale(source, scaled(image, 2), 2, HALF_SCALE_TILES)
    return half + _of_scale(source, image, 1, TILES_A_SOURCE - len(half))


def _of_scale(source: str, image: np.ndarray, scale: int, count: int) -> list[Tile]:
    height, width = image.shape[:2]
    corners = [(x, y) for y in range(0, height - TILE + 1, STRIDE) for x in range(0, width - TILE + 1, STRIDE)]
    lively = [(x, y) for x, y in corners if has_content(cut(image, x, y))]
    return [
        Tile(f"{Path(source).stem}-s{scale}-x{x:03d}-y{y:03d}", source, scale, x, y, pixel_hash(cut(image, x, y)))
        for x, y in farthest_apart(lively, count)
    ]


def has_content(tile: np.ndarray) -> bool:
    """Whether the standard deviation of luma (Pillow's mode L, ITU-R 601) is at least 12; in whole numbers."""
    luma = np.asarray(Image.fromarray(tile).convert("L")).astype(np.int64)
    return int(luma.size * (luma**2).sum() - luma.sum() ** 2) >= (MIN_LUMA_STD * luma.size) ** 2


def farthest_apart(points: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """`count` of the points (all, when there are fewer), far from each other."""
    chosen = points[:1]
    while len(chosen) < min(count, len(points)):
        chosen.append(max(points, key=lambda p: min((p[0] - c[0]) ** 2 + (p[1] - c[1]) ** 2 for c in chosen)))
    return chosen


def as_csv(tiles: list[Tile]) -> str:
    """The text of photos.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Tile)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(tile) for tile in tiles)
    return text.getvalue()


def main() -> None:
    """Write photos.csv beside this file."""
    path = Path(__file__).with_name("photos.csv")
    tiles = make_tiles()
    path.write_text(as_csv(tiles), encoding="utf-8", newline="")
    print(f"{len(tiles)} tiles written to {path}")


if __name__ == "__main__":
    main()
