"""The use of the codebook: known values, lengths, slots, and tokens on which it is not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evals.metrics.tokens import CodebookUse, TokenError, count_tokens
from lactok.interface import TokenizerInfo, Tokens


def measure(ids: Tensor, codebook_size: int | tuple[int, ...] | None, lengths: Tensor | None = None):
    info = TokenizerInfo("toy", ids[0].numel() if len(ids) else None, codebook_size, 64, 64)
    return CodebookUse().compute(Tokens(ids, lengths), info)


def test_known_values():
    found = measure(torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]]), 16)
    assert found == pytest.approx({"codebook use": 4 / 16, "perplexity": 4.0, "entropy": 2.0})
    assert list(found) == [c.name for c in CodebookUse.columns]
    alone = measure(torch.zeros(3, 5, dtype=torch.int64), 10)
    assert alone == {"codebook use": 0.1, "perplexity": 1.0, "entropy": 0.0}


def test_lengths():
    """Positions beyond an image's length do not count, whatever they hold."""
    ids = torch.tensor([[0, 1, -1], [2, -1, -1]])
    found = measure(ids, 3, torch.tensor([2, 1]))
    assert found == pytest.approx({"codebook use": 1.0, "perplexity": 3.0, "entropy": math.log2(3)})


def test_slots():
    """Slots are counted apart, each with its own codebook, and averaged."""
    ids = torch.stack([torch.tensor([[0, 1, 2, 3]]), torch.tensor([[7, 7, 7, 7]])], dim=2)
    found = measure(ids, (4, 8))
    assert found == pytest.approx({"codebook use": (1 + 1 / 8) / 2, "perplexity": 2.5, "entropy": 1.0})
    assert measure(ids, 8)["codebook use"] == pytest.approx((4 / 8 + 1 / 8) / 2)


def test_counts_add_up():
    ids = torch.from_numpy(np.random.RandomState(0).randint(0, 50, (6, 9, 2)))
    whole, parts = count_tokens(Tokens(ids), 50), [count_tokens(Tokens(part), 50) for part in ids.split(2)]
    for slot, counts in enumerate(whole):
        assert torch.equal(sum(p[slot] for p in parts), counts)


@pytest.mark.parametrize(
    ("ids", "codebook_size", "lengths", "message"),
    [
        (torch.tensor([[0, 16]]), 16, None, "ids from 0 to 16, expected 0 to 15"),
        (torch.tensor([[-1, 3]]), 16, None, "ids from -1 to 3, expected 0 to 15"),
        (torch.zeros(2, 3, 2, dtype=torch.int64), (4, 4, 4), None, "3 codebook sizes"),
        (torch.zeros(4, dtype=torch.int64), 4, None, r"shape \(4,\)"),
        (torch.zeros(0, 4, dtype=torch.int64), 4, None, "no token to count"),
        (torch.zeros(2, 4, dtype=torch.int64), 4, torch.zeros(2, dtype=torch.int64), "no token to count"),
        (torch.zeros(2, 4, dtype=torch.int64), None, None, "states no codebook size"),
    ],
)
def test_not_defined(ids, codebook_size, lengths, message):
    with pytest.raises(TokenError, match=message):
        measure(ids, codebook_size, lengths)
    assert issubclass(TokenError, ValueError)


def test_a_codebook_too_large_to_count_in_full():
    ids = torch.tensor([[0, 5, 5, 2**36 - 1]])
    found = CodebookUse().compute(Tokens(ids), TokenizerInfo("x", 4, 2**36, None, None))
    assert found["codebook use"] == 3 / 2**36
    assert found["entropy"] == pytest.approx(1.5)
