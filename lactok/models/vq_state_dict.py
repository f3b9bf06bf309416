"""Names of LlamaGen's published VQ checkpoint (FoundationVision/LlamaGen, vq_model.py) <-> those of `VQModel`.

LacTok's checkpoint has the same names for its `VQEncoder`.

The network is the same; only names differ, and the published attention projects by 1x1 convolutions (C, C, 1, 1)
where diffusers has linear layers (C, C).
"""

from __future__ import annotations

import re

from lactok.models.vq import VQModel
from lactok.state_dict import Shape, StateDictAdapter, rename

_START = r"(?<![^.])"  # of a segment of the dotted name
_RULES = tuple(
    (_START + ours, published)
    for ours, published in (
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
)
_PROJECTION = re.compile(r"\.attentions\.\d+\.to_(?:[qkv]|out\.0)\.weight$")
NESTED = ("ema", "model", "state_dict")
"""Where a published file keeps the state dict, in the published reconstruction script's order of preference."""


class VQStateDict(StateDictAdapter[VQModel]):
    """The published VQ-16 files, and the VQ half of LacTok's."""

    model_name = "the configured LlamaGen VQ model"

    def published_name(self, name: str) -> str:
        return rename(name, _RULES)

    def published_shape(self, name: str, shape: Shape) -> Shape:
        return (*shape, 1, 1) if _PROJECTION.search(name) else shape
