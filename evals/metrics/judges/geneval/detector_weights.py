"""OpenMMLab's Mask2Former (Swin-S, COCO instances) as transformers' network, and where its weights come from.

transformers' own checkpoint of that name (facebook/mask2former-swin-small-coco-instance) was trained apart from it:
GenEval's figures with it would be others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lactok.state_dict import Rules, Shape, StateDictAdapter, errors_name, find_state_dict, meta_skeleton, rename
from lactok.weights import UrlWeights, load_state_dict, locate

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    _Adapter = StateDictAdapter[Mask2FormerForUniversalSegmentation]
else:  # naming a metric must not import transformers
    _Adapter = StateDictAdapter

SOURCE = UrlWeights(
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    "743b7d99",
)
"""The file that GenEval's own script downloads; its name has the first digits of its sha256, all that is published."""

_OF_MMDET_2: Rules = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),  # it comes first in that order
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)
"""Names of mmdetection 2 to those of mmdetection 3. Decoder layers of 2 number cross_attn first (operation_order)."""

_RULES: Rules = (
    (r"^model\.pixel_level_module\.encoder\.swin\.embeddings\.patch_embeddings\.", "backbone.patch_embed."),
    (r"^model\.pixel_level_module\.encoder\.swin\.embeddings\.norm\.", "backbone.patch_embed.norm."),
    (r"^model\.pixel_level_module\.encoder\.swin\.encoder\.layers\.(\d+)\.", r"backbone.stages.\1."),
    (r"\.attention\.relative_position_bias\.", ".attn.w_msa."),
    (r"\.attention\.o_proj\.", ".attn.w_msa.proj."),
    (r"\.attention\.[qkv]_proj\.", ".attn.w_msa.qkv."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage1\.", "backbone.norm0."),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage2\.", "backbone.norm1."),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage3\.", "backbone.norm2."),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage4\.", "backbone.norm3."),
    (r"^model\.pixel_level_module\.decoder\.", "panoptic_head.pixel_decoder."),
    (r"pixel_decoder\.level_embed$", "pixel_decoder.level_encoding.weight"),
    (r"\.input_projections\.(\d+)\.0\.", r".input_convs.\1.conv."),
    (r"\.input_projections\.(\d+)\.1\.", r".input_convs.\1.gn."),
    (r"\.mask_projection\.", ".mask_feature."),
    (r"\.adapter_1\.0\.", ".lateral_convs.0.conv."),
    (r"\.adapter_1\.1\.", ".lateral_convs.0.gn."),
    (r"\.layer_1\.0\.", ".output_convs.0.conv."),
    (r"\.layer_1\.1\.", ".output_convs.0.gn."),
    (r"^model\.transformer_module\.queries_embedder\.", "panoptic_head.query_embed."),
    (r"^model\.transformer_module\.queries_features\.", "panoptic_head.query_feat."),
    (r"^model\.transformer_module\.level_embed\.", "panoptic_head.level_embed."),
    (r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.0\.0\.", "panoptic_head.mask_embed.0."),
    (r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.1\.0\.", "panoptic_head.mask_embed.2."),
    (r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.2\.0\.", "panoptic_head.mask_embed.4."),
    (r"^model\.transformer_module\.decoder\.layernorm\.", "panoptic_head.transformer_decoder.post_norm."),
    (r"^model\.transformer_module\.decoder\.", "panoptic_head.transformer_decoder."),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norms.0."),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norms.1."),
    (r"(transformer_decoder\.layers\.\d+)\.cross_attn_layer_norm\.", r"\1.norms.0."),
    (r"(transformer_decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norms.1."),
    (r"(transformer_decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norms.2."),
    (r"(transformer_decoder\.layers\.\d+\.self_attn)\.[qkv]_proj\.", r"\1.attn.in_proj_"),
    (r"(transformer_decoder\.layers\.\d+\.self_attn)\.out_proj\.", r"\1.attn.out_proj."),
    (r"(transformer_decoder\.layers\.\d+\.cross_attn)\.", r"\1.attn."),
    (r"(layers\.\d+)\.fc1\.", r"\1.ffn.layers.0.0."),
    (r"(layers\.\d+)\.fc2\.", r"\1.ffn.layers.1."),
    (r"^class_predictor\.", "panoptic_head.cls_embed."),
)
_PART = re.compile(r"(?:\.attention|\.self_attn)\.([qkv])_proj\.")
_MERGING = re.compile(r"\.downsample\.(?:reduction|norm)\.")
_QUARTERS = [0, 2, 1, 3]
"""Of the four pixels that patch merging joins: mmdetection's order in transformers' one, and the reverse."""


class DetectorStateDict(_Adapter):
    """transformers' names of Mask2Former with Swin <-> mmdetection 3's.

    Queries, keys and values are one tensor there; patch merging has its input's quarters innermost, and in another
    order.
    """

    model_name = "OpenMMLab's Mask2Former (Swin, instances)"

    def published_name(self, name: str) -> str:
        return rename(name, _RULES)

    def published_shape(self, name: str, shape: Shape) -> Shape:
        return (3 * shape[0], *shape[1:]) if _PART.search(name) else shape

    def published_shapes(self, model: Mask2FormerForUniversalSegmentation) -> dict[str, Shape]:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return {self.published_name(name): self.published_shape(name, shape) for name, shape in shapes.items()}

    def is_unused(self, published_name: str, model: Mask2FormerForUniversalSegmentation) -> bool:
        return published_name.endswith(".relative_position_index")  # a constant, computed here

    def join(self, name: str, shape: Shape, published: MutableMapping[str, Tensor]) -> Tensor:
        tensor = published[self.published_name(name)]
        if part := _PART.search(name):
            return tensor.chunk(3)["qkv".index(part[1])].clone()
        if _MERGING.search(name):
            return tensor.unflatten(-1, (-1, 4))[..., _QUARTERS].transpose(-1, -2).reshape(shape)
        return tensor

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        published: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            theirs = self.published_name(name)
            if part := _PART.search(name):
                parts.setdefault(theirs, {})[part[1]] = tensor
            elif _MERGING.search(name):
                published[theirs] = tensor.unflatten(-1, (4, -1))[..., _QUARTERS, :].transpose(-1, -2).flatten(-2)
            else:
                published[theirs] = tensor
        return published | {name: torch.cat([found[key] for key in "qkv"]) for name, found in parts.items()}


def mask2former_config(**changes: Any) -> Mask2FormerConfig:
    """The published network's sizes (mmdetection's config of the file's name); changes: for a smaller one.

    swin: settings of the backbone; the others are Mask2FormerConfig's.
    """
    from transformers import Mask2FormerConfig, SwinConfig

    swin = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    backbone = SwinConfig(
        **(swin | changes.pop("swin", {})), drop_path_rate=0.0, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    sizes = {"num_labels": 80, "num_queries": 100}
    return Mask2FormerConfig(backbone_config=backbone, **(sizes | changes))


def skeleton(config: Mask2FormerConfig | None = None) -> Mask2FormerForUniversalSegmentation:
    """The network's names and shapes, on the meta device; for checks alone, since it lacks computed constants."""
    return _bare(meta_skeleton(_network_class(), config or mask2former_config()))


def _network_class() -> type[Mask2FormerForUniversalSegmentation]:
    from transformers import Mask2FormerForUniversalSegmentation

    return Mask2FormerForUniversalSegmentation


def _bare(model: Mask2FormerForUniversalSegmentation) -> Mask2FormerForUniversalSegmentation:
    """Without the parts that no published tensor fills and no output needs: the loss, and Swin's last normalisation."""
    model.criterion = nn.Identity()
    model.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()
    return model


def build(
    published: Mapping[str, Tensor], device: torch.device | str = "cpu", config: Mask2FormerConfig | None = None
) -> Mask2FormerForUniversalSegmentation:
    """The network with weights under mmdetection's names (2 or 3), frozen, in eval mode.

    Raises lactok.weights.CheckpointMismatch listing missing and unexpected names, and those of another shape.
    """
    bare = _bare(_network_class()(config or mask2former_config()))
    model = DetectorStateDict().load(bare, as_in_mmdet_3(published))
    return model.eval().requires_grad_(False).to(device)


def as_in_mmdet_3(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under mmdetection 3's names, whichever generation wrote it."""
    return {rename(name, _OF_MMDET_2): tensor for name, tensor in published.items()}


def load(device: torch.device | str = "cpu") -> Mask2FormerForUniversalSegmentation:
    """The published network. Raises lactok.weights.WeightsError when its file is not available, or another one."""
    path = locate(SOURCE)
    with errors_name(path):
        return build(find_state_dict(load_state_dict(path), ("state_dict",)), device)
