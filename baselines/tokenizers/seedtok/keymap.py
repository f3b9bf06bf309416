"""Names of SEED-2's published checkpoints <-> those of `SeedModel`.

Two files make one model: `seed_quantizer.pt`, and `eva_vit_g.pth` of BLIP-2, whose names get the prefix that the
published class gives them (`visual_encoder.`). The networks are the same; the published ViT keeps biases of query and
value apart, where transformers has one vector for query, key and value, the key's part being zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from baselines.tokenizers.seedtok.model import SeedConfig, SeedModel
from lactok.weights import require_entries

VIT_PREFIX = "visual_encoder."

_SEGMENTS = (  # ours (a regular expression), published
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

_UNUSED = re.compile(  # published, and without effect on pictures
    r"Qformer\.bert\.embeddings\.(?:position_ids|word_embeddings\.weight|position_embeddings\.weight)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(?:intermediate|output)\..+"  # the text branch
    r"|Qformer\.cls\..+"  # the language model's head
    r"|pos_embed|blocks\..+"  # a training target of the text side
    r"|visual_encoder\.(?:norm|fc_norm|head)\..+"
)
_VIT_BLOCK = re.compile(r"visual_encoder\.blocks\.(\d+)\..+")


def official_shapes(model: SeedModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a published state dict must hold for `model`; it may be on the meta device."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        published = official_name(name)
        if match := _FUSED_BIAS.fullmatch(published):
            shapes |= {f"{match[1]}.{part}_bias": (len(tensor) // 3,) for part in "qv"}
        else:
            shapes[published] = tuple(tensor.shape)
    return shapes


def official_name(name: str) -> str:
    """The published name of one entry of `SeedModel.state_dict()`; a fused bias keeps its own ("attn.qkv.bias")."""
    for ours, published in _SEGMENTS:
        name = re.sub(ours, published, name)
    return name


def used(state: Mapping[str, Tensor], model: SeedModel) -> dict[str, Tensor]:
    """`state` without the entries that are known to have no effect on pictures.

    Those of the Q-Former's text branch, of the text-side training target, and of the ViT's blocks after the last.
    """
    depth = model.config.vit.depth

    def unused(name: str) -> bool:
        block = _VIT_BLOCK.fullmatch(name)
        return bool(_UNUSED.fullmatch(name)) or (block is not None and int(block[1]) >= depth)

    return {name: tensor for name, tensor in state.items() if not unused(name)}


def from_official(state: Mapping[str, Tensor], model: SeedModel) -> dict[str, Tensor]:
    """A published state dict (both files joined) under the names of `model`, float32.

    Raises lactok.weights.CheckpointMismatch listing what is missing, unexpected, or of another shape; entries that
    are known to be without effect (`used`) may be there.
    """
    require_entries(used(state, model), official_shapes(model), "the configured SEED-2 tokenizer")
    return {name: _published(state, official_name(name)) for name in model.state_dict()}


def _published(state: Mapping[str, Tensor], name: str) -> Tensor:
    if match := _FUSED_BIAS.fullmatch(name):
        query, value = (state[f"{match[1]}.{part}_bias"].float() for part in "qv")
        return torch.cat([query, torch.zeros_like(query), value])
    return state[name].float()


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `SeedModel` state dict under the published names; the keys' biases, which are zero, are left out."""
    published: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _FUSED_BIAS.fullmatch(official_name(name)):
            query, _key, value = tensor.chunk(3)
            published |= {f"{match[1]}.q_bias": query.clone(), f"{match[1]}.v_bias": value.clone()}
        else:
            published[official_name(name)] = tensor
    return published


def load_official(model: SeedModel, state: Mapping[str, Tensor]) -> SeedModel:
    """Give `model` the weights of a published state dict (strictly); returns it, off the meta device.

    Raises lactok.weights.CheckpointMismatch as `from_official`.
    """
    model.load_state_dict(from_official(state, model), strict=True, assign=True)
    return model


def meta_model(config: SeedConfig) -> SeedModel:
    """A `SeedModel` without memory, to be filled by `load_official`."""
    with torch.device("meta"):
        return SeedModel(config)
