"""The contact sheet: originals in the top row, each tokenizer's reconstructions below, labels at the left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels. With eight pictures of 128 px the sheet is 1,220 wide, and still readable where a README shows it at 1,000.
SHEET = 1220
LABELS = 168
GAP = 4
MAX_CELL = 256
FONT = 17
BACKGROUND, INK, FAINT = "white", "#1f2328", "#59636e"


def contact_sheet(originals: np.ndarray, rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """The sheet as an RGB picture.

    originals: uint8 (n, H, W, 3), n of at least 1; rows: (label, uint8 (n, H, W, 3)) from top to bottom. Small
    pictures are enlarged by a whole number without smoothing, so that what is shown is what was scored; large ones
    are reduced (Lanczos).
    """
    count, height, width = originals.shape[:3]
    cell = _cell_size(width, height, min(MAX_CELL, (SHEET - LABELS - (count - 1) * GAP) // count))
    lines = [("original", originals), *rows]
    size = (LABELS + count * (cell[0] + GAP) - GAP, len(lines) * (cell[1] + GAP) - GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    for line, (label, pictures) in enumerate(lines):
        top = line * (cell[1] + GAP)
        text = "\n".join(wrapped(label, LABELS - 12, font))
        ink = INK if line else FAINT
        draw.multiline_text((4, top + cell[1] / 2), text, fill=ink, font=font, anchor="lm", spacing=3)
        for column, pixels in enumerate(pictures):
            sheet.paste(_fitted(pixels, cell), (LABELS + column * (cell[0] + GAP), top))
    return sheet


def _cell_size(width: int, height: int, room: int) -> tuple[int, int]:
    """Width and height of a shown picture: a whole multiple when it is smaller than `room`, else `room` wide."""
    if width <= room:
        return width * (room // width), height * (room // width)
    return room, max(1, round(height * room / width))


def _fitted(pixels: np.ndarray, cell: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(pixels)
    if picture.size == cell:
        return picture
    return picture.resize(cell, Image.Resampling.NEAREST if picture.width < cell[0] else Image.Resampling.LANCZOS)


def wrapped(label: str, room: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """The label in lines of at most `room` pixels; broken after - [ , = and else wherever it must."""
    lines = [""]
    for character in label:
        if font.getlength(lines[-1] + character) > room:
            cut = max(lines[-1].rfind(mark) for mark in "-[,= /") + 1
            head, tail = (lines[-1][:cut], lines[-1][cut:]) if cut > 1 else (lines[-1], "")
            lines[-1:] = [head, tail]
        lines[-1] += character
    return lines
