"""Names of TiTok's published checkpoint (bytedance/1d-tokenizer) <-> those of `TiTok`.

Only the transformer blocks are named otherwise: timm's here, torch's MultiheadAttention and CLIP's MLP there. Shapes
and the order of queries, keys and values inside the fused projection are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from baselines.tokenizers.titok.model import TiTok, TiTokConfig
from lactok.weights import require_entries

_IN_BLOCK = {  # ours, published
    "norm1.weight": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj.weight": "attn.out_proj.weight",
    "attn.proj.bias": "attn.out_proj.bias",
    "norm2.weight": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc1.bias": "mlp.c_fc.bias",
    "mlp.fc2.weight": "mlp.c_proj.weight",
    "mlp.fc2.bias": "mlp.c_proj.bias",
}
_BLOCK = re.compile(r"((?:en|de)coder\.transformer\.\d+\.)(.+)")


def official_name(name: str) -> str:
    """The published name of one entry of `TiTok.state_dict()`."""
    match = _BLOCK.fullmatch(name)
    return name if match is None else match[1] + _IN_BLOCK[match[2]]


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `TiTok` state dict under the published names."""
    return {official_name(name): tensor for name, tensor in state.items()}


def from_official(state: Mapping[str, Tensor], model: TiTok) -> dict[str, Tensor]:
    """A published state dict under the names of `model`, float32; the model may be on the meta device.

    Raises lactok.weights.CheckpointMismatch listing what is missing, unexpected, or of another shape.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    require_entries(state, {official_name(name): shape for name, shape in ours.items()}, "the configured TiTok")
    return {name: state[official_name(name)].float() for name in ours}


def load_official(model: TiTok, state: Mapping[str, Tensor]) -> TiTok:
    """Give `model` the weights of a published state dict (strictly); returns it, off the meta device.

    Raises lactok.weights.CheckpointMismatch as `from_official`.
    """
    model.load_state_dict(from_official(state, model), strict=True, assign=True)
    return model


def meta_model(config: TiTokConfig) -> TiTok:
    """A `TiTok` without memory, to be filled by `load_official` or `load_state_dict(assign=True)`."""
    with torch.device("meta"):
        return TiTok(config)
