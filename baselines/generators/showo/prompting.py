"""Show-o's sequences: text and image positions in one row of ids, and which position attends to which.

A row is padding, t2i, bos, the text, eos (together max_seq_length + 1 positions), soi, N image positions, eoi
(published training/prompting_utils.py, `t2i_gen_prompt` and `create_attention_mask_predict_next`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MASKED = -1
"""Stands in a canvas (B, N) of image codes for a position that is not known yet."""

DISALLOWED = -(2.0**63)
"""What the published mask adds where a position may not attend: the smallest int64, as float."""

CONTROL_TOKENS = (
    "[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>",
)  # fmt: skip
"""What Show-o adds to the text tokenizer, in the order of their ids."""


@dataclass(frozen=True)
class Vocabulary:
    """Where the kinds of ids lie; the defaults are the published ones (configs/showo_demo.yaml, and the ids that
    follow from adding CONTROL_TOKENS to the 50,295 entries of phi-1_5's tokenizer).

    text_size: ids of text are below it; bos, eos, pad, soi, eoi, t2i: ids. first_code: image code c has the id
    first_code + c; codes: how many there are; mask: the id of an unknown image position.
    """

    text_size: int = 50295
    bos: int = 50256
    eos: int = 50256
    pad: int = 50295
    soi: int = 50296
    eoi: int = 50297
    t2i: int = 50300
    first_code: int = 50305
    codes: int = 8192
    mask: int = 58497


def text_row(ids: Sequence[int], vocabulary: Vocabulary, max_seq_length: int) -> list[int]:
    """The max_seq_length + 1 ids of a prompt's text, padded on the left.

    bos is not doubled where the text starts with it; no text at all gives t2i, bos, eos. Of a text that is too long
    the first max_seq_length ids (t2i and bos included) stay, then comes eos.
    """
    v = vocabulary
    row = [v.t2i, *([] if ids and ids[0] == v.bos else [v.bos]), *ids, v.eos]
    if len(row) > max_seq_length + 1:
        return [*row[:max_seq_length], v.eos]
    return [v.pad] * (max_seq_length + 1 - len(row)) + row


def sequences(texts: Tensor, canvas: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Text rows (B, T) and image codes (B, N), MASKED where unknown, as ids int64 (B, T + N + 2)."""
    image = torch.where(canvas == MASKED, vocabulary.mask, canvas + vocabulary.first_code)
    soi, eoi = (torch.full_like(texts[:, :1], value) for value in (vocabulary.soi, vocabulary.eoi))
    return torch.cat([texts, soi, image, eoi], 1)


def attention_allowed(rows: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Of ids (B, L): bool (B, L, L), true where the position of the row may attend to that of the column.

    Text is causal and does not see padding; soi, image and eoi see all text and the whole image, but no padding;
    padding is causal among padding, so that no row is empty.
    """
    starts, ends = (rows == vocabulary.soi), (rows == vocabulary.eoi)
    image = (starts.cumsum(1) > ends.cumsum(1)) | starts | ends
    padding = rows == vocabulary.pad
    causal = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=rows.device).tril()
    from_text = causal & (padding[:, :, None] == padding[:, None, :])
    return torch.where(image[:, :, None], ~padding[:, None, :], from_text)


def additive(allowed: Tensor) -> Tensor:
    """A mask (B, L, L) as float32 (B, 1, L, L): 0 or DISALLOWED. Eager attention reads a boolean one as 0 and 1."""
    zeros = torch.zeros(allowed.shape, device=allowed.device)
    return zeros.masked_fill(~allowed, DISALLOWED)[:, None]
