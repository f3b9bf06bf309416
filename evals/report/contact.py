"""The contact sheet: references in the top row, each model's images below, labels at the left, items' names below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evals.report.symbols import short_labels

# Pixels. With eight images of 128 px the sheet is 1,220 wide, and still readable where a README shows it at 1,000.
SHEET = 1220
LABELS = 168
GAP = 4
MAX_CELL = 256
FONT = 17
# A label's font is made smaller, down to the least, until the label fits beside its row; its options are this much
# smaller.
LEAST_FONT = 9
OPTIONS_SMALLER = 4
NAME_FONT, NAME_LINES = 12, 3
BACKGROUND, INK, FAINT = "white", "#1f2328", "#59636e"


def contact_sheet(
    references: Sequence[np.ndarray], rows: Sequence[tuple[str, Sequence[np.ndarray]]], names: Sequence[str] = ()
) -> Image.Image:
    """The sheet as an RGB image.

    references: uint8 (H, W, 3) each, [] where there are none; rows: (label, a model's images of the same items) from
    top to bottom; names: of the items, one a column, shown below it. Labels are shortened (`short_labels`). Raises
    ValueError where there is no image at all.

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
    named = [_fitted([(name, NAME_FONT, FAINT)], cell[0], NAME_LINES * (NAME_FONT + 3)) for name in names[:count]]
    below = max((height_of(text) for text in named), default=-GAP) + GAP
    size = (LABELS + count * (cell[0] + GAP) - GAP, len(lines) * (cell[1] + GAP) - GAP + below)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    labels = short_labels([label for label, _ in lines])
    for line, (label, (_, images)) in enumerate(zip(labels, lines, strict=True)):
        top = line * (cell[1] + GAP)
        ink = FAINT if references and not line else INK
        parts = [(label[0], FONT, ink), *((text, FONT - OPTIONS_SMALLER, FAINT) for text in label[1:])]
        _write(draw, _fitted(parts, LABELS - 12, cell[1]), (4, top), cell[1])
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels)
            width, height = sizes[image.size]
            left = LABELS + column * (cell[0] + GAP)
            place = (left + (cell[0] - width) // 2, top + (cell[1] - height) // 2)
            sheet.paste(_resized(image, (width, height)), place)
    for column, text in enumerate(named):
        _write(draw, text, (LABELS + column * (cell[0] + GAP), size[1] - below + GAP))
    return sheet


# A line of text, the size of its font, and its colour.
Line = tuple[str, int, str]


def height_of(lines: Sequence[Line]) -> int:
    """Pixels from the top of the first line to the foot of the last."""
    return sum(size + 3 for _, size, _ in lines)


def _fitted(parts: Sequence[Line], width: int, height: int) -> list[Line]:
    """The parts wrapped to `width` pixels, in smaller fonts where they would be higher than `height`; in the least font
    lines are left out at the end, and "…" says so."""
    for smaller in range(FONT - LEAST_FONT + 1):
        lines = [
            (line, size, ink)
            for text, wanted, ink in parts
            for size in [max(LEAST_FONT, wanted - smaller)]
            for line in wrapped(text, width, ImageFont.load_default(size))
        ]
        if height_of(lines) <= height:
            return lines
    lines = lines[: max(1, height // (LEAST_FONT + 3))]
    last, size, ink = lines[-1]
    return [*lines[:-1], (last[:-1] + "…", size, ink)]


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[Line], at: tuple[int, int], room: int = 0) -> None:
    """Write lines from the left, in the middle of `room` pixels of height."""
    left, top = at[0], at[1] + max(0, room - height_of(lines)) // 2
    for text, size, ink in lines:
        draw.text((left, top), text, fill=ink, font=ImageFont.load_default(size))
        top += size + 3


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
