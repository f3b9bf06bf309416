"""Colour profiles (ICC) of image files: whether one says other than sRGB, and conversion to sRGB.

Conversions are LittleCMS's, as Pillow's ImageCms calls it: relative colorimetric with black-point compensation, what
Photoshop and the browsers do, in 8 bits a channel. A conversion from sRGB itself may move a sample by 1 of 255.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# Levels of 255 by which a profile may move a colour and still be sRGB, as vendors' versions of it do.
SAME = 3
# A profile's colour space (ICC.1:2022, table 19) to the mode of the images that it is for.
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class ProfileError(ValueError):
    """A colour profile can't be used with its image; the message says why."""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """A loaded image without alpha, of mode L, RGB or CMYK, to sRGB. Raises ProfileError."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space
        mode = _MODES.get(space)
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if mode != image.mode:
            raise ProfileError(f"its colour profile is for {space.strip()}, the image is {image.mode}")
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ProfileError(f"its colour profile can't be used: {error}") from error
    assert converted is not None, "it is None only for a conversion in place"
    return converted


@lru_cache(maxsize=32)  # a profile of CMYK takes a MB
def is_srgb(profile: bytes) -> bool:
    """Whether a profile leaves all colours about as they are. Raises ProfileError where it can't be read."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(27, 27, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ProfileError(f"its colour profile can't be read: {error}") from error
    if space not in ("RGB ", "GRAY"):
        return False
    plain = colours if space == "RGB " else greys
    image = Image.fromarray(plain)
    moved = np.asarray(to_srgb(image if space == "RGB " else image.convert("L"), profile)).astype(int) - plain
    return int(np.abs(moved).max()) <= SAME
