"""What a plugin returns is checked at once, and a wrong result is named with what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lactok.interface import (
    Generator,
    GeneratorInfo,
    Latents,
    Model,
    ModelInfo,
    Recorded,
    RecordedInfo,
    Tokenizer,
    TokenizerInfo,
    Tokens,
    TrainingCompute,
)

# What each kind of model states of itself.
INFO_OF: tuple[tuple[type[Model], type[ModelInfo]], ...] = (
    (Tokenizer, TokenizerInfo), (Generator, GeneratorInfo), (Recorded, RecordedInfo),
)  # fmt: skip
# Side of the largest native image: as in evals/tasks/protocol.py.
MAX_SIDE = 16384

# A decoder may overshoot [0, 1] a little (the protocol clamps); more than this share outside by more than the margin
# means another range, such as [-1, 1] or [0, 255].
RANGE_MARGIN = 0.25
RANGE_SHARE = 0.05


class PluginError(Exception):
    """A model returned something that can't be measured; the message says what, and what was expected."""


def check_info(info: object, cls: type[Model]) -> ModelInfo:
    """`info` if it is what a model of this class must state. Raises PluginError with the value seen and expected."""
    kind = next(kind for of, kind in INFO_OF if issubclass(cls, of))
    if not isinstance(info, kind):
        raise PluginError(f"info is {type(info).__name__}, expected lactok.interface.{kind.__name__}")
    _expect(info.family, isinstance(info.family, str), "family", "a text")
    _expect(info.deterministic, isinstance(info.deterministic, bool), "deterministic", "True or False")
    _check_training(info.training)
    if isinstance(info, TokenizerInfo):
        _check_tokens(info)
        _check_side(info.input_size, "input_size")
    if not isinstance(info, RecordedInfo):
        _check_side(info.output_size, "output_size")
    if isinstance(info, GeneratorInfo):
        _check_settings(info.settings)
    return info


def _check_tokens(info: TokenizerInfo) -> None:
    tokens, sizes = info.tokens_per_image, info.codebook_size
    _expect(tokens, tokens is None or _is_whole(tokens), "tokens_per_image", "a whole number of at least 1, or None")
    if isinstance(sizes, tuple):
        _expect(sizes, bool(sizes) and all(map(_is_whole, sizes)), "codebook_size", "whole numbers of at least 1")
        each = tokens is None or tokens % len(sizes) == 0
        _expect(tokens, each, "tokens_per_image", f"a multiple of the {len(sizes)} slots of codebook_size")
    else:
        _expect(sizes, sizes is None or _is_whole(sizes), "codebook_size", "a whole number of at least 1, or None")


def _check_side(value: object, name: str) -> None:
    fits = value is None or (_is_whole(value) and value <= MAX_SIDE)  # type: ignore[operator]  # it is a whole number
    _expect(value, fits, name, f"1 to {MAX_SIDE} pixels, or None")


def _check_training(training: object) -> None:
    if training is None:
        return
    if not isinstance(training, TrainingCompute):
        raise PluginError(f"info.training is {training!r}, expected lactok.interface.TrainingCompute or None")
    for name in ("steps", "images"):
        value = getattr(training, name)
        fits = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
        _expect(value, fits, f"training.{name}", "a whole number, or None")
    losses = training.losses
    _expect(losses, isinstance(losses, tuple) and all(isinstance(x, str) for x in losses), "training.losses", "texts")
    for name in ("core_hours", "gpu_hours"):
        value = getattr(training, name)
        fits = value is None or (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0)
        _expect(value, fits, f"training.{name}", "a finite number of at least 0, or None")


def _check_settings(settings: object) -> None:
    try:
        fits = isinstance(settings, Mapping) and json.dumps(dict(settings), allow_nan=False) != ""
    except (TypeError, ValueError):
        fits = False
    _expect(settings, fits, "settings", "names to texts and finite numbers")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _expect(value: object, fits: bool, name: str, expected: str) -> None:
    if not fits:
        raise PluginError(f"info.{name} is {value!r}, expected {expected}")


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
