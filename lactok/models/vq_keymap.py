"""Names of LlamaGen's published VQ checkpoint (FoundationVision/LlamaGen, vq_model.py) <-> those of `VQModel`.

LacTok's checkpoint has the same names for its `VQEncoder`.

The network is the same; only names differ, and the published attention projects by 1x1 convolutions (C, C, 1, 1)
where diffusers has linear layers (C, C).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lactok.models.vq import VQConfig, VQModel
from lactok.weights import require_entries

_SEGMENTS = (  # ours (a regular expression), published; the first that fits a place is taken
    (r"mid_block\.resnets\.0\.", "mid.0."),
    (r"mid_block\.attentions\.0\.", "mid.1."),
    (r"mid_block\.resnets\.1\.", "mid.2."),
    (r"(?:down|up)_blocks\.", "conv_blocks."),
    (r"resnets\.", "res."),
    (r"attentions\.", "attn."),
    (r"downsamplers\.0\.", "downsample."),
    (r"upsamplers\.0\.", "upsample."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"group_norm\.", "norm."),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0\.", "proj_out."),
    (r"conv_norm_out\.", "norm_out."),
    (r"quantizer\.", "quantize."),
)
_PROJECTION = re.compile(r"\.attentions\.\d+\.to_(?:[qkv]|out\.0)\.weight$")


def official_name(name: str) -> str:
    """The published name of one entry of the state dict of a `VQModel` or `VQEncoder`."""
    for ours, published in _SEGMENTS:
        name = re.sub(rf"(?<![^.]){ours}", published, name)
    return name


def official_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The published shape of our entry `name` of `shape`."""
    return (*shape, 1, 1) if _PROJECTION.search(name) else shape


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `VQModel` state dict under the published names and shapes."""
    return {official_name(name): t.reshape(official_shape(name, tuple(t.shape))) for name, t in state.items()}


def from_official(state: Mapping[str, Tensor], model: VQModel) -> dict[str, Tensor]:
    """A published state dict under the names and shapes of `model`, float32; the model may be on the meta device.

    Raises CheckpointMismatch listing what is missing, unexpected, or of another shape.
    """
    ours = {official_name(name): (name, tensor) for name, tensor in model.state_dict().items()}
    want = {published: official_shape(name, tuple(tensor.shape)) for published, (name, tensor) in ours.items()}
    require_entries(state, want, "the configured LlamaGen VQ model")
    return {name: state[published].reshape(tensor.shape).float() for published, (name, tensor) in ours.items()}


def load_official(model: VQModel, state: Mapping[str, Tensor]) -> VQModel:
    """Give `model` the weights of a published state dict (strictly); returns it, off the meta device.

    Raises CheckpointMismatch as `from_official`.
    """
    model.load_state_dict(from_official(state, model), strict=True, assign=True)
    return model


def meta_model(config: VQConfig) -> VQModel:
    """A `VQModel` without memory, to be filled by `load_official` or `load_state_dict(assign=True)`."""
    with torch.device("meta"):
        return VQModel(config)
