"""Names of SEED-2's published checkpoints <-> those of `SeedModel`.

Two files make one model: `seed_quantizer.pt`, and `eva_vit_g.pth` of BLIP-2, whose names get the prefix that the
published class gives them (`visual_encoder.`). The networks are the same; the published ViT keeps biases of query and
value apart, where transformers has one vector for query, key and value, the key's part being zero.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import MutableMapping

import torch
from torch import Tensor

from baselines.tokenizers.seedtok.model import SeedModel
from lactok.state_dict import Shape, StateDictAdapter, rename

VIT_PREFIX = "visual_encoder."

_RULES = (  # ours, published
    (r"^vision\.post_layernorm\.", "ln_vision."),
    (r"^vision\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision\.encoder\.layers\.", "visual_encoder.blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"^qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^qformer\.encoder\.", "Qformer.bert.encoder."),
    (r"attention\.attention\.", "attention.self."),
)
_FUSED_BIAS = re.compile(r"(visual_encoder\.blocks\.\d+\.attn)\.qkv\.bias")

_UNUSED = re.compile(  # published, and without effect on images
    r"Qformer\.bert\.embeddings\.(?:position_ids|word_embeddings\.weight|position_embeddings\.weight)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(?:intermediate|output)\..+"  # the text branch
    r"|Qformer\.cls\..+"  # the language model's head
    r"|pos_embed|blocks\..+"  # a training target of the text side
    r"|visual_encoder\.(?:norm|fc_norm|head)\..+"
)
_VIT_BLOCK = re.compile(r"visual_encoder\.blocks\.(\d+)\..+")


class SeedStateDict(StateDictAdapter[SeedModel]):
    """Both published files joined, the ViT's names with VIT_PREFIX."""

    model_name = "the configured SEED-2 tokenizer"

    def published_name(self, name: str) -> str:
        """The published name; a fused bias, which is published in two parts, keeps its own ("attn.qkv.bias")."""
        return rename(name, _RULES)

    def is_unused(self, published_name: str, model: SeedModel) -> bool:
        """Entries of the Q-Former's text branch, of the text-side training target, of ViT blocks after the last."""
        block = _VIT_BLOCK.fullmatch(published_name)
        after_the_last = block is not None and int(block[1]) >= model.config.vit.depth
        return after_the_last or bool(_UNUSED.fullmatch(published_name))

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """As published; the keys' biases, which are zero, are left out."""
        if match := _FUSED_BIAS.fullmatch(self.published_name(name)):
            query, _key, value = tensor.chunk(3)
            return {f"{match[1]}.q_bias": query.clone(), f"{match[1]}.v_bias": value.clone()}
        return super().split(name, tensor)

    def join(self, name: str, shape: Shape, published: MutableMapping[str, Tensor]) -> Tensor:
        if match := _FUSED_BIAS.fullmatch(self.published_name(name)):
            query, value = (published[f"{match[1]}.{part}_bias"].float() for part in "qv")
            return torch.cat([query, torch.zeros_like(query), value])
        return super().join(name, shape, published)

    def without_unexpected(
        self, published: MutableMapping[str, Tensor], model: SeedModel, path: str
    ) -> MutableMapping[str, Tensor]:
        """`published` without unexpected keys, all of which a warning names; `path` is where they were found.

        The published file is known to hold 146 keys that its class ignores, not all of which are known. They stay
        if a key that `model` needs is missing, so that the mismatch lists both.
        """
        needed = self.published_shapes(model)
        unexpected = [name for name in published if name not in needed and not self.is_unused(name, model)]
        if not unexpected or any(name not in published for name in needed):
            return published
        warnings.warn(f"{path}: {len(unexpected)} unexpected keys are ignored: {', '.join(unexpected)}", stacklevel=2)
        return {name: tensor for name, tensor in published.items() if name not in unexpected}
