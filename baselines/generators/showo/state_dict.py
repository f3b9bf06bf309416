"""Names of Show-o's published checkpoints <-> those of `Showo` and `Magvit`."""

from __future__ import annotations

from baselines.generators import taming
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
)


class MagvitStateDict(StateDictAdapter[Magvit]):
    """The file of showlab/magvitv2. levels: how many the decoder has."""

    model_name = "the configured MAGVITv2"

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def published_name(self, name: str) -> str:
        return taming.published_name(rename(name, _RULES), self.levels)

    def published_shape(self, name: str, shape: Shape) -> Shape:
        return (*shape, 1, 1) if taming.is_projection(name) else shape

    def is_unused(self, published_name: str, model: Magvit) -> bool:
        """The weights of a code's bits, which are powers of two."""
        return published_name == "quantize.power_vals"
