"""How a tokenizer uses its codebook: share in use, perplexity and entropy of the tokens over all images, duplicates.

With K sub-codes a position each slot has its own distribution, and the figures are means over the slots.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from evals.metrics.base import Column, TokenMetric
from lactok.interface import TokenizerInfo, Tokens

DENSE = 2**26
"""Ids of a codebook up to which each has its own count: 512 MB."""


class TokenError(ValueError):
    """Tokens that are not what the tokenizer's codebook size says, or none at all."""


class CodebookUse(TokenMetric):
    """Share of the codebook that occurs, perplexity and entropy of the empirical distribution."""

    name = "codes"
    summary = "use of the codebook, perplexity and entropy of the tokens"
    columns = (
        Column(
            "codebook use",
            "higher",
            digits=1,
            unit="%",
            note="share of the codebook that occurs; grows with N",
            shown=False,
        ),
        Column(
            "perplexity",
            None,
            digits=0,
            note="2 to the entropy: as many equally likely tokens would be as uncertain",
            shown=False,
        ),
        Column(
            "entropy",
            None,
            digits=2,
            note="bits per token of the empirical distribution; low for small N",
            shown=False,
        ),
    )

    def compute(self, tokens: Tokens, info: TokenizerInfo) -> dict[str, float]:
        """The three columns. Raises TokenError for ids outside the codebook, or when no position counts."""
        if info.codebook_size is None:
            raise TokenError(f"tokens of shape {tuple(tokens.ids.shape)} of a tokenizer that states no codebook size")
        counts = count_tokens(tokens, info.codebook_size)
        sizes = (info.codebook_size,) * len(counts) if isinstance(info.codebook_size, int) else info.codebook_size
        entropies = torch.stack([_entropy(c) for c in counts])
        return {
            "codebook use": sum(int((c > 0).sum()) / size for c, size in zip(counts, sizes)) / len(counts),
            "perplexity": float((2**entropies).mean()),
            "entropy": float(entropies.mean()),
        }


def mean_bits(tokens: Tokens, info: TokenizerInfo) -> float | None:
    """Bits an image, mean over the images: positions that count times log2(codebook size), summed over the slots.

    None where the tokenizer states no codebook or there is no image.
    """
    most, positions = info.bits_per_image, tokens.ids.shape[1] if len(tokens) else 0
    if most is None or not positions:
        return None
    share = 1.0 if tokens.lengths is None else float(tokens.lengths.double().mean()) / positions
    return most * share


def count_tokens(tokens: Tokens, codebook_size: int | tuple[int, ...]) -> list[Tensor]:
    """How often each id occurs: int64 (codebook size,) for each slot; of more than 2^26 ids, those alone that occur.

    codebook_size: of every slot, or one a slot. Raises TokenError for ids outside it, or when no position counts.
    """
    ids = tokens.ids
    slots = ids.unsqueeze(2) if ids.ndim == 2 else ids
    if slots.ndim != 3:
        raise TokenError(f"ids of shape {tuple(ids.shape)}: expected (B, N) or (B, N, K)")
    sizes = (codebook_size,) * slots.shape[2] if isinstance(codebook_size, int) else codebook_size
    if len(sizes) != slots.shape[2]:
        raise TokenError(f"ids of shape {tuple(ids.shape)} with {len(sizes)} codebook sizes: expected one a slot")
    counted = torch.ones(slots.shape[:2], dtype=torch.bool, device=ids.device)
    if tokens.lengths is not None:
        counted = torch.arange(slots.shape[1], device=ids.device) < tokens.lengths.to(ids.device).unsqueeze(1)
    if not counted.any():
        raise TokenError(f"no token to count in ids of shape {tuple(ids.shape)}")
    return [_count(slots[..., k][counted], size) for k, size in enumerate(sizes)]


def _count(ids: Tensor, size: int) -> Tensor:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise TokenError(f"ids from {low} to {high}, expected 0 to {size - 1} for a codebook of {size}")
    if size > DENSE:
        return torch.unique(ids, return_counts=True)[1]
    return torch.bincount(ids, minlength=size)


def _entropy(counts: Tensor) -> Tensor:
    """Bits per token, float64."""
    shares = counts[counts > 0].double() / counts.sum()
    return -(shares * shares.log2()).sum()


class DuplicateIds(TokenMetric):
    """How much of the tokens is said twice: within an image, and by two images."""

    name = "duplicate-ids"
    summary = "share of an image's tokens that repeat an id of that image; share of images whose tokens another one has"
    columns = (
        Column(
            "repeated ids",
            None,
            digits=1,
            unit="%",
            note="share of an image's tokens whose id the image has before, in the same slot; mean over images",
            shown=False,
        ),
        Column(
            "duplicate ids",
            "lower",
            digits=1,
            unit="%",
            note="share of images whose tokens are all the same as another image's",
            shown=False,
        ),
    )

    def compute(self, tokens: Tokens, info: TokenizerInfo) -> dict[str, float]:
        """Both columns. Raises TokenError where no position counts."""
        slots = tokens.ids.unsqueeze(2) if tokens.ids.ndim == 2 else tokens.ids
        lengths = [slots.shape[1]] * len(slots) if tokens.lengths is None else tokens.lengths.tolist()
        if not any(lengths):
            raise TokenError(f"no token to count in ids of shape {tuple(tokens.ids.shape)}")
        rows = [image[:length].numpy() for image, length in zip(slots, lengths, strict=True)]
        distinct = [[len(set(slot.tolist())) / len(row) for slot in row.T] for row in rows if len(row)]
        seen = Counter(row.tobytes() for row in rows)
        return {
            "repeated ids": 1 - sum(sum(of) / len(of) for of in distinct) / len(distinct),
            "duplicate ids": sum(count for count in seen.values() if count > 1) / len(rows),
        }
