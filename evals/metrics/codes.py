"""How a tokenizer uses its codebook: share in use, perplexity and entropy of the ids over all pictures.

With K ids a position each slot has its own distribution, and the figures are means over the slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evals.metrics.base import Column

COLUMNS = (
    Column("codebook use", "higher", digits=1, unit="%", note="share of the vocabulary that occurs; grows with N"),
    Column("perplexity", None, digits=0, note="2 to the entropy: as many equally likely ids would be as uncertain"),
    Column("entropy", None, digits=2, note="bits per id of the empirical distribution; low for small N"),
)


class IdError(ValueError):
    """Ids that are not what the tokenizer's vocabulary says."""


def measure(ids: Tensor, vocabulary: int | tuple[int, ...], lengths: Tensor | None = None) -> dict[str, float]:
    """Column name to value, over all pictures.

    ids: int64 (B, N) or (B, N, K); vocabulary: of every slot, or one a slot; lengths: int64 (B,), how many of the N
    positions count, None when all do. Raises IdError for ids outside the vocabulary, or when none counts.
    """
    counts = count_ids(ids, vocabulary, lengths)
    entropies = torch.stack([_entropy(c) for c in counts])
    return {
        "codebook use": float(torch.stack([(c > 0).double().mean() for c in counts]).mean()),
        "perplexity": float((2**entropies).mean()),
        "entropy": float(entropies.mean()),
    }


def count_ids(ids: Tensor, vocabulary: int | tuple[int, ...], lengths: Tensor | None = None) -> list[Tensor]:
    """How often each id occurs: int64 (vocabulary,) for each slot. Arguments and errors as for `measure`."""
    slots = ids.unsqueeze(2) if ids.ndim == 2 else ids
    if slots.ndim != 3:
        raise IdError(f"ids of shape {tuple(ids.shape)}: expected (B, N) or (B, N, K)")
    sizes = (vocabulary,) * slots.shape[2] if isinstance(vocabulary, int) else vocabulary
    if len(sizes) != slots.shape[2]:
        raise IdError(f"ids of shape {tuple(ids.shape)} with {len(sizes)} vocabularies: expected one a slot")
    counted = torch.ones(slots.shape[:2], dtype=torch.bool, device=ids.device)
    if lengths is not None:
        counted = torch.arange(slots.shape[1], device=ids.device) < lengths.to(ids.device).unsqueeze(1)
    if not counted.any():
        raise IdError(f"no id to count in ids of shape {tuple(ids.shape)}")
    return [_count(slots[..., k][counted], size) for k, size in enumerate(sizes)]


def _count(ids: Tensor, size: int) -> Tensor:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise IdError(f"ids from {low} to {high}, expected 0 to {size - 1} for a vocabulary of {size}")
    return torch.bincount(ids, minlength=size)


def _entropy(counts: Tensor) -> Tensor:
    """Bits per id, float64."""
    shares = counts[counts > 0].double() / counts.sum()
    return -(shares * shares.log2()).sum()
