"""Captions to the states that condition a `GPT`: flan-t5-xl's encoder through transformers, and their layout.

Facts from the published code (FoundationVision/LlamaGen, language/t5.py and autoregressive/sample/sample_t2i.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lactok.generators.captions import clean_caption
from lactok.state_dict import StateDictAdapter, errors_name, meta_skeleton
from lactok.weights import HubWeights, LocalWeights, WeightsError, load_state_dict, locate_all, saved_network

if TYPE_CHECKING:
    from transformers import T5EncoderModel

POSITIONS = 120
"""Tokens of a caption, the end of the sequence included; longer ones are cut, shorter ones padded."""

REPOSITORY, REVISION = "google/flan-t5-xl", "7d6315df2c2fb742f0f5b556879d730926ca9001"
FILES = (
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The whole model, 11.4 GB; its encoder, 4.9 GB in float32, is what is kept."""

_OTHERWISE = "name a local folder that holds it by options.NAME.text_encoder=DIR"


def text_encoder_sources(folder: str | None = None) -> tuple[HubWeights | LocalWeights, ...]:
    """The files of flan-t5-xl: of the hub, or of a local folder, where the tensors may have any of the usual names.

    Raises WeightsError for a folder with several variants of the tensors.
    """
    if folder is None:
        return tuple(HubWeights(REPOSITORY, name, REVISION, otherwise=_OTHERWISE) for name in FILES)
    path = Path(folder).expanduser()
    others = [path / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json")]
    return tuple(LocalWeights(str(file)) for file in [*others, *saved_network(path, "transformers")[1]])


class EncoderStateDict(StateDictAdapter[Any]):
    """A whole T5 checkpoint, of which the encoder is taken. Tied tensors may be stored under one name or both."""

    model_name: ClassVar[str] = "the configured T5 encoder"

    def published_name(self, name: str) -> str:
        return "shared.weight" if name == "encoder.embed_tokens.weight" else name

    def is_unused(self, published_name: str, model: Any) -> bool:
        return published_name.startswith(("decoder.", "lm_head.")) or published_name == "encoder.embed_tokens.weight"


class TextEncoder:
    """Captions to states (B, L, D) and where they are, (B, L), both left-padded.

    encoder: a T5 encoder on its device, in eval mode; tokenizer: of transformers, padding on the right; positions: L.
    """

    def __init__(self, encoder: T5EncoderModel, tokenizer: Any, positions: int = POSITIONS) -> None:
        self.encoder, self.tokenizer, self.positions = encoder, tokenizer, positions

    @classmethod
    def load(cls, device: torch.device, folder: str | None = None, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """flan-t5-xl from the hub or a local folder, in dtype; the published scripts run it in bfloat16 (LlamaGen) and
        in float32 (LaCToK).

        Raises MissingWeights naming each missing file and how to get it, WeightsError for files of something else.
        """
        from transformers import AutoTokenizer, T5Config, T5EncoderModel

        paths = locate_all(text_encoder_sources(folder))
        home = paths[0].parent
        tensors = saved_network(home, "transformers")[1][0]
        try:
            config = T5Config.from_pretrained(str(home), local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(str(home), local_files_only=True)
            skeleton = meta_skeleton(T5EncoderModel, config)
        except (ValueError, OSError, RuntimeError, KeyError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"{home} can't be loaded as a T5 encoder with its tokenizer: {reason}") from error
        with errors_name(tensors):
            encoder = EncoderStateDict().load(skeleton, load_state_dict(tensors))
        encoder.tie_weights()
        return cls(encoder.eval().requires_grad_(False).to(device, dtype), tokenizer)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], clean: bool = True) -> tuple[Tensor, Tensor]:
        """States of captions in the encoder's dtype, padding zero, and the int64 mask; clean: by `clean_caption`.

        Raises ModuleNotFoundError where what cleans is not installed.
        """
        texts = [clean_caption(caption) for caption in captions] if clean else list(captions)
        tokens = self.tokenizer(
            texts,
            max_length=self.positions,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).to(self.encoder.device)
        states = self.encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return left_pad(states["last_hidden_state"], tokens["attention_mask"])


def left_pad(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, L, D) of captions that come first, padding after them, the other way round; padding becomes zero.

    mask: (B, L), nonzero where the caption is. Gives the states and the mask (in its dtype) of that layout.
    """
    order = mask.bool().int().argsort(dim=1, stable=True)
    moved = states.gather(1, order[..., None].expand_as(states))
    mask = mask.gather(1, order)
    return moved * mask[..., None].to(states.dtype), mask
