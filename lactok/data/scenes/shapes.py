"""The silhouettes of the classes, and their coverage at a size in pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lactok.data.scenes.raster import Ellipse, Primitive, Step, box, coverage, cut, disc, polygon
from lactok.data.scenes.vocabulary import CLASSES

# All of a silhouette hangs together. Coordinates: `lactok.data.scenes.raster`.
SHAPES: dict[str, tuple[Primitive | Step, ...]] = {
    "circle": (disc(500, 500, 500),),
    "square": (box(50, 50, 950, 950),),
    "triangle": (polygon(500, 50, 1000, 930, 0, 930),),
    "star": (polygon(500, 0, 618, 338, 976, 346, 690, 562, 794, 905, 500, 700, 206, 905, 310, 562, 24, 346, 382, 338),),
    "ring": (disc(500, 500, 500), cut(disc(500, 500, 280))),
    "cross": (box(350, 0, 650, 1000), box(0, 350, 1000, 650)),
    "diamond": (polygon(500, 0, 870, 500, 500, 1000, 130, 500),),
    "arrow": (box(0, 380, 560, 620), polygon(500, 130, 1000, 500, 500, 870)),
    "house": (
        polygon(500, 30, 1000, 480, 0, 480),
        box(120, 440, 880, 970),
        box(720, 80, 840, 400),
        cut(box(420, 660, 580, 980)),
        cut(box(200, 540, 340, 680)),
        cut(box(660, 540, 800, 680)),
    ),
    "tree": (
        polygon(500, 0, 740, 330, 260, 330),
        polygon(500, 150, 850, 600, 150, 600),
        polygon(500, 370, 950, 850, 50, 850),
        box(420, 840, 580, 1000),
    ),
    "car": (
        polygon(20, 720, 20, 530, 80, 460, 230, 430, 350, 240, 690, 240, 830, 430, 940, 470, 985, 540, 985, 720),
        disc(250, 720, 140),
        disc(760, 720, 140),
        cut(disc(250, 720, 60)),
        cut(disc(760, 720, 60)),
        cut(polygon(320, 440, 400, 310, 490, 310, 490, 440)),
        cut(polygon(550, 440, 550, 310, 655, 310, 745, 440)),
    ),
    "boat": (
        polygon(30, 690, 970, 690, 800, 940, 200, 940),
        box(455, 40, 545, 720),
        polygon(480, 80, 480, 600, 110, 600),
        polygon(520, 170, 520, 600, 860, 600),
    ),
    "fish": (
        Ellipse(400, 500, 400, 270),
        polygon(690, 500, 1000, 230, 920, 500, 1000, 770),
        polygon(250, 290, 480, 120, 600, 320),
        cut(disc(210, 430, 60)),
    ),
    "cup": (
        disc(740, 430, 240),
        cut(disc(740, 430, 135)),
        polygon(80, 150, 740, 150, 690, 700, 570, 830, 250, 830, 130, 700),
        Ellipse(410, 880, 410, 60),
    ),
    "key": (
        disc(230, 500, 230),
        cut(disc(200, 500, 100)),
        box(400, 435, 1000, 565),
        box(700, 540, 800, 730),
        box(890, 540, 1000, 700),
    ),
    "heart": (
        disc(265, 310, 260),
        disc(735, 310, 260),
        polygon(70, 482, 500, 970, 930, 482, 735, 310, 500, 340, 265, 310),
    ),
    "sun": (
        disc(500, 500, 265),
        polygon(500, 0, 590, 290, 410, 290),
        polygon(500, 1000, 590, 710, 410, 710),
        polygon(0, 500, 290, 590, 290, 410),
        polygon(1000, 500, 710, 590, 710, 410),
        polygon(146, 146, 415, 288, 288, 415),
        polygon(854, 854, 585, 712, 712, 585),
        polygon(146, 854, 288, 585, 415, 712),
        polygon(854, 146, 712, 415, 585, 288),
    ),
    "moon": (disc(500, 500, 490), cut(disc(710, 420, 400))),
    "flower": (
        disc(500, 130, 130),
        disc(690, 268, 130),
        disc(618, 492, 130),
        disc(382, 492, 130),
        disc(310, 268, 130),
        disc(500, 320, 150),
        cut(disc(500, 320, 85)),
        box(460, 550, 540, 1000),
        Ellipse(330, 800, 150, 70),
        Ellipse(670, 730, 150, 70),
    ),
    "cat": (
        Ellipse(500, 590, 440, 370),
        polygon(90, 560, 120, 50, 480, 270),
        polygon(910, 560, 880, 50, 520, 270),
        cut(Ellipse(330, 540, 75, 90)),
        cut(Ellipse(670, 540, 75, 90)),
        cut(polygon(430, 700, 570, 700, 500, 780)),
    ),
    "mushroom": (
        disc(500, 490, 490),
        cut(box(0, 500, 1000, 1000)),
        cut(disc(270, 350, 80)),
        cut(disc(530, 200, 85)),
        cut(disc(740, 370, 75)),
        polygon(370, 490, 630, 490, 670, 960, 330, 960),
    ),
    "umbrella": (
        disc(500, 510, 490),
        cut(box(0, 490, 1000, 1010)),
        cut(Ellipse(175, 500, 150, 75)),
        cut(Ellipse(500, 500, 150, 75)),
        cut(Ellipse(825, 500, 150, 75)),
        disc(420, 870, 125),
        cut(disc(420, 870, 38)),
        cut(box(290, 700, 550, 870)),
        box(455, 300, 545, 880),
    ),
    "rocket": (
        Ellipse(500, 400, 190, 400),
        polygon(350, 500, 140, 880, 400, 760),
        polygon(650, 500, 860, 880, 600, 760),
        polygon(400, 740, 600, 740, 500, 1000),
        cut(disc(500, 340, 90)),
    ),
    "bell": (
        disc(500, 130, 90),
        disc(500, 420, 280),
        polygon(220, 420, 780, 420, 810, 620, 930, 790, 70, 790, 190, 620),
        disc(500, 810, 120),
    ),
}
assert tuple(SHAPES) == tuple(CLASSES)


@lru_cache(maxsize=4096)
def _drawn(class_name: str, side: int) -> np.ndarray:
    mask = coverage(SHAPES[class_name], side)
    mask.setflags(write=False)
    return mask


def silhouette(class_name: str, side: int, mirrored: bool = False) -> np.ndarray:
    """uint8 (side, side) of 0 to `raster.FULL`; mirrored: left and right exchanged. Small ones are remembered."""
    mask = _drawn(class_name, side) if side <= 256 else coverage(SHAPES[class_name], side)
    return mask[:, ::-1] if mirrored else mask
