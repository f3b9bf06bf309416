"""What the colour classifier sees of a detection: its mask on grey, cut to its box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

BACKGROUND = "#999999"
"""What stands around the mask (GenEval's bgcolor)."""


def crop(
    image: Tensor, box: Sequence[float], mask: Tensor | None, background: str | None = BACKGROUND, to_box: bool = True
) -> Image.Image:
    """The crop, RGB. image: uint8 (3, H, W); box: x0, y0, x1, y1 in pixels, rounded half to even; mask: bool (H, W),
    None to leave everything in view.

    background: a colour as Pillow spells it, None for the image itself. to_box: whether it is cut to the box; what
    lies outside the image is black.
    """
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    if mask is not None and background is not None:
        blank = Image.new("RGB", picture.size, background)
        picture = Image.composite(picture, blank, Image.fromarray(np.ascontiguousarray(mask.cpu().numpy())))
    if not to_box:
        return picture
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    return picture.crop((x0, y0, x1, y1))
