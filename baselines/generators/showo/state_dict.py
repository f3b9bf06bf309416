"""Names of Show-o's published checkpoints <-> those of `Showo` and `Magvit`."""

from __future__ import annotations

import re

from baselines.generators.showo.magvit import Magvit
from baselines.generators.showo.model import Showo
from lactok.state_dict import Shape, StateDictAdapter, rename


class ShowoStateDict(StateDictAdapter[Showo]):
    """The files of showlab/show-o and show-o-512x512: the names are the same. Those of the variants with CLIP-ViT hold
    a projector of image features besides, which text to image does not use."""

    model_name = "the configured Show-o"

    def published_name(self, name: str) -> str:
        return name

    def is_unused(self, published_name: str, model: Showo) -> bool:
        return published_name.startswith("mm_projector.")


_RULES = (
    (r"^quant_conv\.", "encoder.quant_conv."),
    (r"^post_quant_conv\.", "decoder.post_quant_conv."),
    (r"^codes$", "quantize.embedding"),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.down_blocks\.", ".down."),
    (r"\.resnets\.", ".block."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
_UP = re.compile(r"\.up_blocks\.(\d+)\.")
_PROJECTION = re.compile(r"\.attentions\.0\.to_(?:[qkv]|out\.0)\.weight$")


class MagvitStateDict(StateDictAdapter[Magvit]):
    """The file of showlab/magvitv2. Its levels of the decoder count from the highest resolution, diffusers' from the
    lowest; its attention projects by 1x1 convolutions. levels: how many the decoder has."""

    model_name = "the configured MAGVITv2"

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def published_name(self, name: str) -> str:
        return rename(_UP.sub(lambda match: f".up.{self.levels - 1 - int(match[1])}.", name), _RULES)

    def published_shape(self, name: str, shape: Shape) -> Shape:
        return (*shape, 1, 1) if _PROJECTION.search(name) else shape

    def is_unused(self, published_name: str, model: Magvit) -> bool:
        """The weights of a code's bits, which are powers of two."""
        return published_name == "quantize.power_vals"
