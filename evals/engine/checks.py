"""What a plugin returns is checked at once, and a wrong result is named with what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lactok.interface import Latents, TokenizerInfo, Tokens

# A decoder may overshoot [0, 1] a little (the protocol clamps); more than this share outside by more than the margin
# means another range, such as [-1, 1] or [0, 255].
RANGE_MARGIN = 0.25
RANGE_SHARE = 0.05


class PluginError(Exception):
    """A model returned something that can't be measured; the message says what, and what was expected."""


def check_encoded(encoded: object, batch: int, info: TokenizerInfo) -> Tokens | Latents:
    """A copy of `encoded` if it is what `info` promises. Raises PluginError."""
    if not isinstance(encoded, (Tokens, Latents)):
        raise PluginError(f"encode returned {type(encoded).__name__}, expected lactok.interface.Tokens or Latents")
    if len(encoded) != batch:
        raise PluginError(f"encode returned {len(encoded)} images' tokens for a batch of {batch}")
    if isinstance(encoded, Latents):
        if not torch.isfinite(encoded.values).all():
            raise PluginError("encode returned latents with NaN or infinite values")
        if info.tokens_per_image is not None:
            raise PluginError(f"encode returned latents, but info.tokens_per_image is {info.tokens_per_image}")
        return encoded.owned()
    ids = encoded.ids
    if ids.dtype != torch.int64 or ids.ndim not in (2, 3):
        raise PluginError(f"ids are {ids.dtype} of shape {tuple(ids.shape)}, expected int64 (B, N) or (B, N, K)")
    if info.codebook_size is None or info.tokens_per_image is None:
        raise PluginError("encode returned tokens, but info states no codebook_size or no tokens_per_image")
    if ids[0].numel() != info.tokens_per_image:
        raise PluginError(f"{ids[0].numel()} tokens an image, but info.tokens_per_image is {info.tokens_per_image}")
    sizes = torch.as_tensor(info.codebook_size, device=ids.device)
    if ids.numel() and (ids.min() < 0 or (ids >= sizes).any()):
        raise PluginError(
            f"ids from {int(ids.min())} to {int(ids.max())}, expected 0 to below the codebook size, "
            f"{info.codebook_size}"
        )
    lengths = encoded.lengths
    if lengths is not None and (lengths.shape != (batch,) or lengths.min() < 0 or lengths.max() > ids.shape[1]):
        raise PluginError(f"lengths {lengths.tolist()}: expected {batch} numbers from 0 to {ids.shape[1]}")
    return encoded.owned()


def check_images(images: object, batch: int, size: int) -> Tensor:
    """`images` if they are float (batch, 3, size, size), finite and about [0, 1]. Raises PluginError."""
    if not isinstance(images, Tensor):
        raise PluginError(f"decode returned {type(images).__name__}, expected a float tensor (B, 3, H, W)")
    if tuple(images.shape) != (batch, 3, size, size) or not images.is_floating_point():
        raise PluginError(
            f"decode returned {images.dtype} {tuple(images.shape)}, expected float ({batch}, 3, {size}, {size})"
        )
    _check_values(images, "decode")
    return images


def check_image_list(images: object, batch: int, step: str) -> list[Tensor]:
    """`images` as `batch` tensors, if each is float (3, H, W), finite and about [0, 1]. Raises PluginError."""
    if not isinstance(images, (Tensor, Sequence)) or len(images) != batch:
        seen = f"{len(images)} images" if isinstance(images, (Tensor, Sequence)) else type(images).__name__
        raise PluginError(f"{step} returned {seen} for a batch of {batch}")
    for image in images:
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            seen = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise PluginError(f"{step} returned an image that is {seen}, expected float (3, H, W)")
        _check_values(image[None], step)
    return list(images)


def _check_values(images: Tensor, step: str) -> None:
    bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
    if bad:
        raise PluginError(f"{step} returned NaN or infinite values in {bad} of {len(images)} images")
    outside = ((images < -RANGE_MARGIN) | (images > 1 + RANGE_MARGIN)).float().mean()
    if outside > RANGE_SHARE:
        raise PluginError(
            f"{step} returned values from {float(images.min()):.3g} to {float(images.max()):.3g}, "
            "expected RGB in [0, 1] (a model that works in [-1, 1] needs (x + 1) / 2)"
        )
