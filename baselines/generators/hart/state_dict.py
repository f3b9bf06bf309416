"""Names of HART's published checkpoints <-> those of `HartTransformer` and `HartTokenizer`."""

from __future__ import annotations

import re
from collections.abc import MutableMapping

import torch
from torch import Tensor

from baselines.generators import taming
from baselines.generators.hart.config import TransformerConfig
from baselines.generators.hart.tokenizer import HartTokenizer
from baselines.generators.hart.transformer import HartTransformer
from lactok.state_dict import Shape, StateDictAdapter
from lactok.weights import CheckpointMismatch

LEVELS = "lvl_1L"
_TRAINING_MASK = "attn_bias_for_masking"


def level_index(config: TransformerConfig) -> Tensor:
    """The level of each position, int64 (1, positions): 0 for the context, s for the map of scale s."""
    sizes = [config.context_token, *(side**2 for side in config.patch_nums[1:])]
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes), output_size=sum(sizes))[None]


class HartStateDict(StateDictAdapter[HartTransformer]):
    """`ema_model.bin` and `pytorch_model.bin`: the names are the same but for the residual head's. The mask of training
    (380 MB) is left out; the index of levels is compared with the configuration's scales and then left out."""

    model_name = "the configured HART transformer"

    def published_name(self, name: str) -> str:
        return name.replace("residual_head.", "diffloss.net.", 1)

    def is_unused(self, published_name: str, model: HartTransformer) -> bool:
        return published_name in (LEVELS, _TRAINING_MASK)

    def from_published(self, published: MutableMapping[str, Tensor], model: HartTransformer) -> dict[str, Tensor]:
        """As `StateDictAdapter.from_published`; raises CheckpointMismatch for levels that are not those of `patch_nums`
        too, since no other tensor's shape tells."""
        if (levels := published.get(LEVELS)) is not None:
            expected = level_index(model.config)
            if levels.shape != expected.shape or not (levels.is_meta or torch.equal(levels.cpu().long(), expected)):
                raise CheckpointMismatch(
                    f"{LEVELS} of shape {tuple(levels.shape)} is not that of patch_nums "
                    f"{list(model.config.patch_nums)} with {model.config.context_token} context tokens, "
                    f"{tuple(expected.shape)}"
                )
        return super().from_published(published, model)


_ATTENTION = re.compile(r"(.+\.attentions\.\d+)\.to_([qkv])\.(weight|bias)")


class TokenizerStateDict(StateDictAdapter[HartTokenizer]):
    """The tokenizer's file, with the prefix `vae.`. Queries, keys and values are published as one 1x1 convolution.

    Its discriminator, counters and, where the configuration has one, second decoder are left out.
    """

    model_name = "the configured HART tokenizer"

    def __init__(self, model: HartTokenizer) -> None:
        self.levels, self.shared = len(model.config.ch_mult), model.config.share_quant_resi

    def published_name(self, name: str) -> str:
        if name.startswith("embedding."):
            return f"vae.quantize.{name}"
        if match := re.fullmatch(r"residual\.(\d+)\.(.+)", name):
            place = {0: match[1], 1: "qresi"}.get(self.shared, f"qresi_ls.{match[1]}")
            return f"vae.quantize.quant_resi.{place}.{match[2]}"
        return "vae." + taming.published_name(name, self.levels)

    def published_shape(self, name: str, shape: Shape) -> Shape:
        return (*shape, 1, 1) if taming.is_projection(name) else shape

    def is_unused(self, published_name: str, model: HartTokenizer) -> bool:
        second = published_name.startswith(("vae.decoder2.", "vae.post_quant_conv2."))
        counters = published_name == "vae.quantize.ema_vocab_hit_SV"
        return published_name.startswith("disc.") or counters or (second and model.config.double_decoder)

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Queries' entry becomes the fused one's: of three times the height, its own part first, the rest zero."""
        if not (match := _ATTENTION.fullmatch(name)):
            return super().split(name, tensor)
        tensor = tensor.reshape(self.published_shape(name, tuple(tensor.shape)))
        zeros = torch.zeros_like(tensor)
        parts = [tensor if part == match[2] else zeros for part in "qkv"]
        return {self._fused(match): torch.cat(parts)}

    def join(self, name: str, shape: Shape, published: MutableMapping[str, Tensor]) -> Tensor:
        if not (match := _ATTENTION.fullmatch(name)):
            return super().join(name, shape, published)
        return published[self._fused(match)].chunk(3)["qkv".index(match[2])].reshape(shape).clone()

    def to_published(self, state: MutableMapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]  # a dict, as it is made anew
        """A model's state dict under the published names; queries, keys and values are put together."""
        published: dict[str, Tensor] = {}
        for name, tensor in state.items():
            for key, part in self.split(name, tensor).items():
                published[key] = published[key] + part if key in published else part
        return published

    def _fused(self, match: re.Match[str]) -> str:
        return "vae." + taming.published_name(f"{match[1]}.qkv.{match[3]}", self.levels)
