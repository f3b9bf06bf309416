"""Names of autoencoders in the layout of taming-transformers <-> those of diffusers' `Encoder` and `Decoder`.

The networks are the same. Levels of a published decoder count from the highest resolution, diffusers' from the lowest.
"""

from __future__ import annotations

import re

from lactok.state_dict import rename

_RULES = (  # diffusers', published
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.down_blocks\.", ".down."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
_UP = re.compile(r"\.up_blocks\.(\d+)\.")
_PROJECTION = re.compile(r"\.attentions\.\d+\.to_(?:[qkv]|out\.0)\.weight$")


def published_name(name: str, levels: int) -> str:
    """The published name of "encoder.down_blocks.0..." or "decoder....". levels: how many the decoder has."""
    return rename(_UP.sub(lambda match: f".up.{levels - 1 - int(match[1])}.", name), _RULES)


def is_projection(name: str) -> bool:
    """Whether it is the matrix (C, C) of an attention's projection, published as a 1x1 convolution (C, C, 1, 1)."""
    return _PROJECTION.search(name) is not None
