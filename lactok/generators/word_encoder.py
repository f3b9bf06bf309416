"""A small text encoder that learns with its generator: words of a fixed vocabulary, and transformers' T5 encoder.

What a miniature has in place of flan-t5-xl. The vocabulary is that of the scenes' captions; other words are all one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lactok.data.scenes.captions import COLOURED, JOINED, OPENINGS, RELATED
from lactok.data.scenes.vocabulary import CLASSES, COLOURS, NUMBERS

PAD, END, UNKNOWN = 0, 1, 2
"""Ids before those of the words; T5's own of padding and of the end of a text."""

_WORD = re.compile(r"[^\W_]+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Lower-case words and single marks of a text."""
    return _WORD.findall(text.lower())


def scene_words() -> tuple[str, ...]:
    """Every word of the captions of `lactok.data.scenes`, sorted, but what random shapes are called.

    "a red shape" hence has an unknown word: a generator that learned from such scenes draws some shape for others, too.
    """
    forms = [*OPENINGS, *JOINED, *(form for related in RELATED.values() for form in related)]
    forms += [re.sub(r"{\w+}", "", form) for form in COLOURED]
    texts = [*forms, *CLASSES, *CLASSES.values(), *COLOURS, *NUMBERS[1:], "a", "an"]
    return tuple(sorted({word for text in texts for word in words_of(text.replace("{}", ""))}))


@dataclass(frozen=True)
class WordEncoderConfig:
    """vocabulary: words in order of their ids; empty for those of scenes' captions. positions: words of a text, its end
    included. dim, layers, heads, ffn_dim: of the encoder; dropout: share of values in training."""

    vocabulary: tuple[str, ...] = ()
    positions: int = 24
    dim: int = 128
    layers: int = 3
    heads: int = 4
    ffn_dim: int = 384
    dropout: float = 0.0

    def __post_init__(self) -> None:
        words = tuple(self.vocabulary) or scene_words()
        object.__setattr__(self, "vocabulary", words)
        if len(set(words)) < len(words) or any(words_of(word) != [word] for word in words):
            raise ValueError("vocabulary: expected lower-case words, each one once")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} with {self.heads} heads: expected a multiple")
        if self.positions < 2:
            raise ValueError(f"positions {self.positions}: expected at least 2, a word and the end")


class WordEncoder(nn.Module):
    """Texts to states (B, L, dim), left-padded with zeros, and where they are, bool (B, L)."""

    def __init__(self, config: WordEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or WordEncoderConfig()
        self.encoder = _encoder(config)
        self._ids = {word: number for number, word in enumerate(config.vocabulary, start=UNKNOWN + 1)}

    def ids(self, text: str) -> list[int]:
        """Ids of a text's words, cut to fit, and of its end."""
        return [*(self._ids.get(word, UNKNOWN) for word in words_of(text)[: self.config.positions - 1]), END]

    def unknown(self, text: str) -> list[str]:
        """The words of a text that are not in the vocabulary, in order."""
        return [word for word in words_of(text) if word not in self._ids]

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """int64 (B, L), left-padded, and bool (B, L), on the CPU."""
        rows = [self.ids(text) for text in texts]
        length = self.config.positions
        ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
        return ids, ids != PAD

    def forward(self, ids: Tensor, seen: Tensor) -> Tensor:
        """States of `tokenize`'s ids; zeros where there is padding."""
        added = torch.zeros(seen.shape, device=ids.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        # of four axes: one of two would be looked at, of which the meta device has no values
        states = self.encoder(input_ids=ids, attention_mask=added[:, None, None]).last_hidden_state
        return states * seen[..., None]


def _encoder(config: WordEncoderConfig) -> nn.Module:
    """transformers' T5 encoder; of the model around it, which ties a second name to the embeddings, nothing is kept."""
    from transformers import T5Config, T5EncoderModel

    settings: dict[str, Any] = {
        "vocab_size": UNKNOWN + 1 + len(config.vocabulary),
        "d_model": config.dim,
        "d_kv": config.dim // config.heads,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "d_ff": config.ffn_dim,
        "dropout_rate": config.dropout,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "pad_token_id": PAD,
        "eos_token_id": END,
        "use_cache": False,
        "attn_implementation": "eager",  # which takes the mask of `forward`
    }
    return T5EncoderModel(T5Config(**settings)).encoder
