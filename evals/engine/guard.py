"""What a plugin gives back is checked at once, and a wrong result is named with what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from lactok.interface import Codes, TokenizerInfo

# A decoder may overshoot [0, 1] a little (the protocol clamps); more than this share outside by more than the margin
# means another range, such as [-1, 1] or [0, 255].
RANGE_MARGIN = 0.25
RANGE_SHARE = 0.05


class PluginError(Exception):
    """A tokenizer returned something that can't be measured; the message says what, and what was expected."""


def owned(codes: Codes) -> Codes:
    """A copy in memory of its own: runtimes return the same buffers every call, and some write into what they get."""
    return Codes(**{name: tensor.clone() for name, tensor in codes.tensors().items()})


def check_codes(codes: object, batch: int, info: TokenizerInfo) -> Codes:
    """`codes` if they are what `info` promises. Raises PluginError."""
    if not isinstance(codes, Codes):
        raise PluginError(f"encode returned {type(codes).__name__}, expected lactok.interface.Codes")
    if len(codes) != batch:
        raise PluginError(f"encode returned codes of {len(codes)} pictures for a batch of {batch}")
    if codes.ids is None:
        if not torch.isfinite(codes.latents).all():
            raise PluginError("encode returned latents with NaN or infinite values")
        if info.ids_per_image is not None:
            raise PluginError(f"encode returned latents, but info.ids_per_image is {info.ids_per_image}")
        return codes
    ids = codes.ids
    if ids.dtype != torch.int64 or ids.ndim not in (2, 3):
        raise PluginError(f"ids are {ids.dtype} of shape {tuple(ids.shape)}, expected int64 (B, N) or (B, N, K)")
    if info.vocabulary is None or info.ids_per_image is None:
        raise PluginError("encode returned ids, but info states no vocabulary or no ids_per_image")
    if ids[0].numel() != info.ids_per_image:
        raise PluginError(f"{ids[0].numel()} ids an image, but info.ids_per_image is {info.ids_per_image}")
    vocabulary = torch.as_tensor(info.vocabulary, device=ids.device)
    if ids.numel() and (ids.min() < 0 or (ids >= vocabulary).any()):
        raise PluginError(
            f"ids from {int(ids.min())} to {int(ids.max())}, expected 0 to below the vocabulary, {info.vocabulary}"
        )
    if codes.lengths is not None and (codes.lengths.shape != (batch,) or codes.lengths.max() > ids.shape[1]):
        raise PluginError(f"lengths {codes.lengths.tolist()}: expected {batch} numbers of at most {ids.shape[1]}")
    return codes


def check_images(images: object, batch: int, size: int) -> Tensor:
    """`images` if they are float (batch, 3, size, size), finite and about [0, 1]. Raises PluginError."""
    if not isinstance(images, Tensor):
        raise PluginError(f"decode returned {type(images).__name__}, expected a float tensor (B, 3, H, W)")
    if tuple(images.shape) != (batch, 3, size, size) or not images.is_floating_point():
        raise PluginError(
            f"decode returned {images.dtype} {tuple(images.shape)}, expected float ({batch}, 3, {size}, {size})"
        )
    bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
    if bad:
        raise PluginError(f"decode returned NaN or infinite values in {bad} of {batch} pictures")
    outside = ((images < -RANGE_MARGIN) | (images > 1 + RANGE_MARGIN)).float().mean()
    if outside > RANGE_SHARE:
        raise PluginError(
            f"decode returned values from {float(images.min()):.3g} to {float(images.max()):.3g}, "
            "expected RGB in [0, 1] (a model that works in [-1, 1] needs (x + 1) / 2)"
        )
    return images
