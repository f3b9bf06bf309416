"""Checks of what a tokenizer's `encode` and `decode` are given. Each error says what came, and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lactok.interface import Latents, Tokens


def require_images(images: Tensor, size: int) -> None:
    """Raises ValueError unless `images` are (B, 3, size, size)."""
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(
            f"images of shape {tuple(images.shape)}, expected (B, 3, {size}, {size}); "
            "the protocol resizes to info.input_size"
        )


def require_ids(tokens: Any, count: int, codebook_size: int, prefixes: bool = False) -> Tensor:
    """The ids of `tokens`: int64 (B, count) in [0, codebook_size). prefixes: (B, n) with 1 <= n <= count will do.

    Raises ValueError for anything else.
    """
    expected = f"(B, n) with n from 1 to {count}" if prefixes else f"(B, {count})"
    if not isinstance(tokens, Tokens):
        raise ValueError(f"{type(tokens).__name__}, expected Tokens with ids of shape {expected}")
    ids = tokens.ids
    if ids.ndim != 2 or not (1 <= ids.shape[1] <= count if prefixes else ids.shape[1] == count):
        raise ValueError(f"ids of shape {tuple(ids.shape)}, expected {expected}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < codebook_size:
        raise ValueError(f"ids from {int(ids.min())} to {int(ids.max())}, expected 0 to {codebook_size - 1}")
    return ids


def require_latents(latents: Any, channels: int) -> Tensor:
    """The values of `latents`: float (B, channels, h, w). Raises ValueError for anything else."""
    expected = f"(B, {channels}, h, w)"
    if not isinstance(latents, Latents):
        raise ValueError(f"{type(latents).__name__}, expected Latents with values of shape {expected}")
    if latents.values.ndim != 4 or latents.values.shape[1] != channels:
        raise ValueError(f"latents of shape {tuple(latents.values.shape)}, expected {expected}")
    return latents.values


def require_seeds(seeds: Sequence[int], count: int) -> None:
    """Raises ValueError unless there is one seed for each of `count` images."""
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} images: expected one each")
