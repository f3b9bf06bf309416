"""Names of LlamaGen's published GPT checkpoints, and of LaCTokGen's: those of `GPT`, which has the published names."""

from __future__ import annotations

import re

from lactok.models.gpt import GPT
from lactok.state_dict import StateDictAdapter

NESTED = ("model", "module", "state_dict")
"""Where a published file keeps the state dict, in the published scripts' order of preference."""

_LEFT_BY_GENERATION = re.compile(r"(layers\.\d+\.attention\.kv_cache\.[kv]_cache|freqs_cis|causal_mask)")
"""Buffers that the published code registers when it generates or trains: no weights."""


class GPTStateDict(StateDictAdapter[GPT]):
    """The published GPT files, B to XL, from text or classes."""

    model_name = "the configured GPT"

    def published_name(self, name: str) -> str:
        return name

    def is_unused(self, published_name: str, model: GPT) -> bool:
        return _LEFT_BY_GENERATION.fullmatch(published_name) is not None
