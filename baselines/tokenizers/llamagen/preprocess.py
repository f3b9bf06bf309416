"""LlamaGen's own conventions for pictures, which its golden cases hold: the crop, and the rounding to uint8.

The benchmark resizes and rounds by its protocol instead (evals/tasks/protocol.py); facts from the published
dataset/augmentation.py and tokenizer/tokenizer_image/reconstruction_vq_ddp.py.
"""

from __future__ import annotations

from PIL import Image
from torch import Tensor


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """The central size x size square of `picture` after its shorter side was brought to `size`.

    Both sides are halved (BOX) while the shorter is at least twice the target, then scaled by BICUBIC.
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(sides, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def to_uint8(images: Tensor) -> Tensor:
    """Pictures around [-1, 1] to uint8 of the same shape: clamp(127.5 x + 128, 0, 255), truncated."""
    return (127.5 * images + 128).clamp(0, 255).byte()
