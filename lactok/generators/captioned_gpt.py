"""A `GPT` and what turns captions into its conditions: the file that `recipe=generator` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lactok.checkpoint_file import CheckpointMetadata, read_checkpoint
from lactok.generators.word_encoder import WordEncoder, WordEncoderConfig
from lactok.models.gpt import GPT, TEXT, GPTConfig, padding_mask
from lactok.state_dict import meta_skeleton
from lactok.weights import WeightsError

ENCODER = "VQ encoder"
"""The part that a file was made with: the header has the sha256 of its tensors."""


@dataclass(frozen=True)
class CaptionedGPTConfig:
    """Header of the file. gpt: the network; words: the text encoder that learned with it, None where it was flan-t5-xl.

    tokenizer: identity of what made the ids; text_encoder: of what made the states, "" where `words` did.
    """

    gpt: GPTConfig = field(default_factory=GPTConfig)
    words: WordEncoderConfig | None = None
    tokenizer: str = ""
    text_encoder: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.gpt, Mapping):
            object.__setattr__(self, "gpt", GPTConfig(**self.gpt))
        if isinstance(self.words, Mapping):
            words: dict[str, Any] = dict(self.words)
            words["vocabulary"] = tuple(words.get("vocabulary", ()))
            object.__setattr__(self, "words", WordEncoderConfig(**words))
        if self.gpt.model_type != TEXT:
            raise ValueError(f"model_type {self.gpt.model_type!r}: expected {TEXT!r}, as captions are what it knows")
        if self.words is not None:
            seen, expected = (self.words.positions, self.words.dim), (self.gpt.cls_token_num, self.gpt.caption_dim)
            if seen != expected:
                raise ValueError(
                    f"words of {seen[0]} positions and width {seen[1]}: the GPT has cls_token_num {expected[0]} and "
                    f"caption_dim {expected[1]}"
                )


class CaptionedGPT(nn.Module):
    """gpt: the network; words: a text encoder, None where states are made outside."""

    def __init__(self, config: CaptionedGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.words = None if config.words is None else WordEncoder(config.words)
        self.gpt = GPT(config.gpt)

    def conditions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States (B, L, D) and where they are, bool (B, L), by its own text encoder, on its device."""
        if self.words is None:
            raise ValueError("this GPT has no text encoder of its own: expected states of captions")
        device = self.gpt.output.weight.device
        ids, seen = (part.to(device) for part in self.words.tokenize(captions))
        return self.words(ids, seen), seen

    def logits(self, ids: Tensor, states: Tensor, seen: Tensor, drop: Tensor | None = None) -> Tensor:
        """float32 (B, N, V) for each of an image's ids (B, N), under teacher forcing. drop: see `GPT.prefix`.

        Padding is masked, for dropped captions, too, as published.
        """
        mask = padding_mask(seen, self.config.gpt.positions)
        return self.gpt.training_logits(ids, states, mask, drop)


def load_captioned_gpt(path: Path) -> tuple[CaptionedGPT, CheckpointMetadata]:
    """The networks of such a file, on the CPU in float32. Raises WeightsError."""
    state, metadata = read_checkpoint(path)
    try:
        model = meta_skeleton(lambda: CaptionedGPT(metadata.build_config(CaptionedGPTConfig)))
        model.load_state_dict(state, strict=True, assign=True)
    except (WeightsError, RuntimeError) as error:
        raise WeightsError(f"{path}: {' '.join(str(error).split())}") from error
    return model.float(), metadata


def own_seed(seed: int, purpose: int) -> int:
    """Another 63-bit seed for another purpose of the same image, so that two RNG streams share no numbers."""
    return (seed + purpose * 0x9E3779B97F4A7C15) % 2**63
