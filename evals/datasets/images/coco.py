"""MSCOCO 2017's validation images: 5,000, with their captions where the annotations are there."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from evals.datasets.base import DataError
from evals.datasets.images.download import Download
from evals.datasets.images.paper import PaperDataset, is_image
from evals.datasets.images.sources.zipped import ZipSource

_STEM = re.compile(r"\d{12}")

# Sizes and hashes: as stated, alike, by several public projects that pin the publisher's files (ParlAI's COCO builder
# among them, for the images).
FILES = (
    Download(
        "http://images.cocodataset.org/zips/val2017.zip",
        "val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    Download(
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        "annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
)
CAPTIONS = "annotations/captions_val2017.json"


@dataclass(frozen=True)
class Caption:
    """One caption of an image; number: its id in the annotations; image: the item's id."""

    number: int
    image: str
    text: str


def captions(root: Path) -> list[Caption]:
    """All captions below `root`, by image and number; [] when the annotations are not there.

    Looked for: annotations/captions_val2017.json, captions_val2017.json, and the former in
    annotations_trainval2017.zip. Raises DataError for a file that can't be read as such.
    """
    for path in (root / CAPTIONS, root / "captions_val2017.json"):
        if path.is_file():
            return parse_captions(path.read_bytes(), str(path))
    archive = root / "annotations_trainval2017.zip"
    if not archive.is_file():
        return []
    source = ZipSource(archive)
    if CAPTIONS not in source.members:
        raise DataError(f"{archive} holds no {CAPTIONS}: get it again")
    return parse_captions(source.read(CAPTIONS), source.label(CAPTIONS))


def parse_captions(data: bytes, label: str) -> list[Caption]:
    """The annotations of a captions json, by image and number. Raises DataError, naming `label`."""
    try:
        found = [
            Caption(int(a["id"]), f"{int(a['image_id']):012d}", " ".join(str(a["caption"]).split()))
            for a in json.loads(data)["annotations"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{label} is no COCO captions file ({type(error).__name__}: {error}): get it again") from error
    return sorted(found, key=lambda c: (c.image, c.number))


class CocoVal2017(PaperDataset):
    """MSCOCO 2017's validation images."""

    name = "coco-val2017"
    expected = 5_000
    summary = "MSCOCO 2017 validation, 5,000 images: val2017.zip or its folder"
    obtain = (
        "`python -m evals data get coco-val2017 root=DIR` downloads it (0.8 GB and 0.25 GB of annotations), or "
        f"place {FILES[0].url} there"
    )
    downloads = FILES
    archives = ("val2017.zip",)
    folders = ("val2017", ".")

    @staticmethod
    def item_id(name: str) -> str | None:
        """ "val2017/000000000139.jpg" to "000000000139"; None for any other name."""
        stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return stem if _STEM.fullmatch(stem) and is_image(name) else None
