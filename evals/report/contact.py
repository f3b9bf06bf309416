"""The contact sheet: references in the top row, each model's images below, labels at the left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels. With eight images of 128 px the sheet is 1,220 wide, and still readable where a README shows it at 1,000.
SHEET = 1220
LABELS = 168
GAP = 4
MAX_CELL = 256
FONT = 17
BACKGROUND, INK, FAINT = "white", "#1f2328", "#59636e"


def contact_sheet(references: Sequence[np.ndarray], rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Image.Image:
    """The sheet as an RGB image.

    references: uint8 (H, W, 3) each, [] where there are none; rows: (label, a model's images of the same items) from
    top to bottom. Raises ValueError where there is no image at all.

    Where all images have one size, small ones are enlarged by a whole number without smoothing, so that what is shown
    is what was scored. Where sizes differ, cells are equal and each image keeps its shape, enlarged twice at most.
    Large ones are reduced (Lanczos).
    """
    lines = [("reference", references)] * bool(references) + list(rows)
    shapes = {image.shape[:2] for _, images in lines for image in images}
    if not shapes:
        raise ValueError("a contact sheet without images: expected references, or a row with images")
    count = max(len(images) for _, images in lines)
    room = max(1, min(MAX_CELL, (SHEET - LABELS - (count - 1) * GAP) // count))
    sizes = {(width, height): _shown_size(width, height, room, len(shapes) == 1) for height, width in shapes}
    cell = max(width for width, _ in sizes.values()), max(height for _, height in sizes.values())
    size = (LABELS + count * (cell[0] + GAP) - GAP, len(lines) * (cell[1] + GAP) - GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    for line, (label, images) in enumerate(lines):
        top = line * (cell[1] + GAP)
        text = "\n".join(wrapped(label, LABELS - 12, font))
        ink = FAINT if references and not line else INK
        draw.multiline_text((4, top + cell[1] / 2), text, fill=ink, font=font, anchor="lm", spacing=3)
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels)
            width, height = sizes[image.size]
            left = LABELS + column * (cell[0] + GAP)
            place = (left + (cell[0] - width) // 2, top + (cell[1] - height) // 2)
            sheet.paste(_resized(image, (width, height)), place)
    return sheet


def _shown_size(width: int, height: int, room: int, alone: bool) -> tuple[int, int]:
    """Width and height of an image as shown: a whole multiple when it is smaller than `room`, else reduced to it.

    alone: whether all images have this size; only the width is then held to `room`.
    """
    longer = width if alone else max(width, height)
    if longer <= room:
        factor = room // longer if alone else min(2, room // longer)
        return width * factor, height * factor
    return max(1, round(width * room / longer)), max(1, round(height * room / longer))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.NEAREST if image.width < size[0] else Image.Resampling.LANCZOS)


def wrapped(label: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The label in lines of at most `room` pixels; broken after - [ , = and else wherever it must."""
    lines = [""]
    for character in label:
        if font.getlength(lines[-1] + character) > room:
            cut = max(lines[-1].rfind(mark) for mark in "-[,= /") + 1
            head, tail = (lines[-1][:cut], lines[-1][cut:]) if cut > 1 else (lines[-1], "")
            lines[-1:] = [head, tail]
        lines[-1] += character
    return lines
