"""128-pixel tiles of the natural colour photographs inside the installed scikit-image package.

Which tiles, and the sha256 of each one's decoded pixels, stands in photos.csv beside this file; make_photos.py made
that list and says by which rules. No network is needed.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from evals.datasets.base import DatasetError, DatasetNeeds, DatasetRequest, ImageDataset, spread
from lactok.images.decode import ImageError, decode
from lactok.items import Item

# Side of a tile in pixels: the evaluation size of protocol mini-128.
TILE = 128
# Where the hashes of photos.csv were computed.
MADE_WITH = "scikit-image 0.26.0, Pillow 13.0.0"


@dataclass(frozen=True)
class Tile:
    """One line of photos.csv. source: file name in scikit-image's data folder; scale: 1 at native size, 2 shrunk by
    two; x, y: left and upper edge in pixels of the photograph at that scale; sha256: hex, of the pixels' bytes."""

    id: str
    source: str
    scale: int
    x: int
    y: int
    sha256: str

    @property
    def cluster(self) -> str:
        """The photograph that it was cut from."""
        return Path(self.source).stem


class Photos(ImageDataset):
    """Tiles of photographs; the cluster of a tile is its photograph."""

    name = "photos"

    def __init__(self, tiles: list[Tile]) -> None:
        """Decodes the photographs and compares each tile with its hash. Raises DatasetError."""
        self.items = [Item(tile.id, tile.cluster, tile.sha256) for tile in tiles]
        self.left_out = []
        self.notes = []
        self._tiles = {tile.id: tile for tile in tiles}
        self._photographs = {
            (source, scale): scaled(load_source(source), scale)
            for source, scale in sorted({(tile.source, tile.scale) for tile in tiles})
        }
        differing = [(tile, seen) for tile in tiles if (seen := pixel_hash(self._cut(tile))) != tile.sha256]
        if differing:
            raise _other_pixels(differing, len(tiles))

    @classmethod
    def open(cls, request: DatasetRequest) -> Photos:
        """The tiles, each checked against its recorded hash. Raises DatasetError."""
        if request.root is not None:
            raise DatasetError(
                f"dataset=photos is inside the scikit-image package and takes no root (given: {request.root}); "
                "for your own images write dataset=folder dataset.root=DIR"
            )
        tiles = {tile.id: tile for tile in listed_tiles()}
        return cls([tiles[i] for i in spread(list(tiles), request.limit)])

    @classmethod
    def needs(cls) -> DatasetNeeds:
        tiles = listed_tiles()
        sources = sorted({tile.source for tile in tiles})
        folder = data_folder()
        here = folder is not None and all((folder / source).is_file() for source in sources)
        summary = f"{len(tiles)} tiles of {TILE} px from {len(sources)} photographs in the scikit-image package"
        return DatasetNeeds(summary, here, folder)

    def read(self, item: Item) -> np.ndarray:
        """uint8 (128, 128, 3) RGB."""
        return self._cut(self._tiles[item.id])

    def _cut(self, tile: Tile) -> np.ndarray:
        return cut(self._photographs[tile.source, tile.scale], tile.x, tile.y)


@cache
def listed_tiles() -> tuple[Tile, ...]:
    """The committed list."""
    text = (files("evals.datasets.images") / "photos.csv").read_text(encoding="utf-8")
    return tuple(
        Tile(line["id"], line["source"], int(line["scale"]), int(line["x"]), int(line["y"]), line["sha256"])
        for line in csv.DictReader(io.StringIO(text))
    )


def data_folder() -> Path | None:
    """scikit-image's data folder (the package itself is not imported); None when it is not installed."""
    spec = importlib.util.find_spec("skimage")
    return Path(spec.submodule_search_locations[0]) / "data" if spec and spec.submodule_search_locations else None


def load_source(source: str) -> np.ndarray:
    """One of scikit-image's photographs, uint8 (H, W, 3) RGB. Raises DatasetError when it is not there."""
    folder = data_folder()
    if folder is None:
        raise DatasetError("dataset=photos needs the scikit-image package: run `pip install scikit-image`")
    path = folder / source
    if not path.is_file():
        raise DatasetError(
            f"dataset=photos needs {path}, which scikit-image {version('scikit-image')} has not brought; "
            f"the list was made with {MADE_WITH}: install that version"
        )
    try:
        return decode(path).pixels
    except ImageError as error:
        raise DatasetError(f"{error}; install scikit-image again") from error


def scaled(image: np.ndarray, scale: int) -> np.ndarray:
    """The image shrunk by a whole number: means of scale x scale pixels in Pillow's integer arithmetic, so that the
    result is the same on every machine. uint8 (H, W, 3) to (ceil(H / scale), ceil(W / scale), 3)."""
    return image if scale == 1 else np.asarray(Image.fromarray(image).reduce(scale))


def cut(image: np.ndarray, x: int, y: int) -> np.ndarray:
    """The tile with upper left corner (x, y): uint8 (128, 128, 3), a contiguous copy."""
    return image[y : y + TILE, x : x + TILE].copy()


def pixel_hash(tile: np.ndarray) -> str:
    """sha256 hex of a tile's pixels, row by row, RGB."""
    return sha256(tile.tobytes()).hexdigest()


def _other_pixels(differing: list[tuple[Tile, str]], count: int) -> DatasetError:
    tile, seen = differing[0]
    return DatasetError(
        f"{len(differing)} of {count} tiles of dataset=photos have other pixels than the committed list, the first: "
        f"{tile.id} has sha256 {seen}, expected {tile.sha256}. Here: scikit-image {version('scikit-image')}, "
        f"Pillow {version('pillow')}; the list was made with {MADE_WITH}: install those versions "
        "(`pip install -c constraints.txt scikit-image pillow`)"
    )
