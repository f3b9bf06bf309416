"""Backgrounds: flat, gradient, checker, stripes, soft noise, in colours that no object has. In integers alone."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from lactok.data.scenes.draws import Draws
from lactok.data.scenes.vocabulary import RGB

# Families of muted colours. Every mixture of two of a family is at least 24 apart in CIELAB (delta E 1976) from every
# colour that an object can have, so contrast needs no choice.
FAMILIES: tuple[tuple[RGB, ...], ...] = (
    ((160, 216, 248), (130, 190, 230), (150, 220, 235)),  # sky
    ((170, 238, 205), (145, 210, 175), (178, 218, 172)),  # mint
    ((224, 208, 150), (205, 190, 145), (190, 178, 130)),  # sand
    ((140, 140, 140), (160, 160, 160), (172, 174, 170)),  # grey
    ((96, 120, 144), (70, 90, 115), (110, 130, 150)),  # slate
    ((8, 112, 104), (40, 140, 140), (30, 95, 100)),  # teal
    ((140, 160, 120), (112, 128, 85), (150, 150, 105)),  # sage
    ((168, 152, 176), (140, 120, 150), (150, 140, 165)),  # mauve
    ((180, 175, 225), (150, 155, 215), (165, 165, 205)),  # lilac
    ((190, 160, 150), (165, 140, 130), (180, 150, 135)),  # clay
    ((45, 85, 120), (50, 95, 125), (60, 100, 140)),  # night
    ((150, 115, 125), (135, 105, 115), (160, 130, 135)),  # plum
)


LIGHT = tuple(family[0] for family in (FAMILIES[0], FAMILIES[1], FAMILIES[2], FAMILIES[8]))
"""Sky, mint, sand and lilac: on these the miniatures' tokenizers keep an object's shape best."""


class Background(StrEnum):
    """How two colours of a family share the image."""

    FLAT = "flat"
    GRADIENT = "gradient"
    CHECKER = "checker"
    STRIPES = "stripes"
    NOISE = "noise"


BACKGROUNDS = tuple(Background)
SHARES = 256
NOISE_CELLS = 7


def paint(kind: Background, height: int, width: int, draws: Draws) -> np.ndarray:
    """uint8 (height, width, 3)."""
    first, second = (np.array(colour, np.int32) for colour in draws.two(draws.choice(FAMILIES)))
    share = _share(kind, height, width, draws)[..., None]
    return ((first * (SHARES - share) + second * share + SHARES // 2) // SHARES).astype(np.uint8)


def paint_light(height: int, width: int, draws: Draws) -> np.ndarray:
    """uint8 (height, width, 3) of one of the LIGHT colours."""
    return np.broadcast_to(np.array(draws.choice(LIGHT), np.uint8), (height, width, 3)).copy()


def _share(kind: Background, height: int, width: int, draws: Draws) -> np.ndarray:
    """int32 (height, width) or what broadcasts to it, of 0 to SHARES: how much of the second colour."""
    y, x = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)[None]
    if kind is Background.FLAT:
        return np.zeros((height, width), np.int32)
    if kind is Background.NOISE:
        return _noise(height, width, draws)
    # the direction, as a step across and one down
    across, down = draws.choice(((1, 0), (0, 1), (1, 1), (1, -1)))
    if kind is Background.GRADIENT:
        along = across * x * max(height - 1, 1) + down * y * max(width - 1, 1)
        low, high = int(along.min()), int(along.max())
        share = (along - low).astype(np.int64) * SHARES // max(high - low, 1)
        return np.broadcast_to(share.astype(np.int32), (height, width))
    period = max(min(height, width) * draws.between(70, 200) // 1024, 2)
    shift = draws.below(2 * period)
    if kind is Background.STRIPES:
        band = (across * x + down * y + shift) // period
    else:
        band = (x + shift) // period + (y + shift) // period
    return np.broadcast_to((band & 1) * SHARES, (height, width))


def _noise(height: int, width: int, draws: Draws) -> np.ndarray:
    """A lattice of NOISE_CELLS cells along the shorter side, interpolated linearly."""
    shorter = min(height, width)
    rows, columns = (NOISE_CELLS * side // shorter + 2 for side in (height, width))
    lattice = draws.octets(rows * columns).astype(np.int64).reshape(rows, columns)
    (y, v), (x, u) = (divmod(np.arange(side, dtype=np.int64) * NOISE_CELLS, shorter) for side in (height, width))
    upper, lower = lattice[y], lattice[y + 1]
    v = v[:, None]
    mixed = upper * (shorter - v) + lower * v
    return ((mixed[:, x] * (shorter - u) + mixed[:, x + 1] * u) // (shorter * shorter)).astype(np.int32)
