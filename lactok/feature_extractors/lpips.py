"""LPIPS (Zhang et al. 2018): the `lpips` package's own module, version 0.1, with AlexNet, VGG-16 or SqueezeNet 1.1.

The linear layers are those inside the installed package; the backbones are torchvision's ImageNet weights, which the
package itself would fetch through torchvision without a checksum of ours, so they come from `imagenet.py` instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lactok.feature_extractors.imagenet import BACKBONES, Net
from lactok.weights import LocalWeights, WeightsError, WeightsSource, load_state_dict, load_tensors, locate

if TYPE_CHECKING:
    from lpips import LPIPS

# Pixels a side that leave every stage at least one (measured on the networks, and tested).
SMALLEST: Mapping[Net, int] = {"alex": 31, "vgg": 16, "squeeze": 17}
LINEAR: Mapping[str, LocalWeights] = {
    net: LocalWeights(f"weights/v0.1/{net}.pth", package="lpips", sha256=sha256)
    for net, sha256 in {
        "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    }.items()
}


def sources(net: Net) -> tuple[WeightsSource, ...]:
    """The files that `load` reads: backbone, linear layers."""
    return BACKBONES[net], LINEAR[net]


def load(net: Net, device: torch.device | str = "cpu") -> LPIPS:
    """The published LPIPS. Raises lactok.weights.MissingWeights when the backbone is not available."""
    return build(net, backbone_state(net, load_tensors(BACKBONES[net])), device)


def backbone_state(net: Net, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under torchvision's names ("features.0.weight"), float32, under the module's own ("net.slice1.0.weight").

    Raises WeightsError where one is missing.
    """
    names = list(_empty(net).net.state_dict())
    missing = [f"net.{name}" for name in names if torchvision_name(name) not in published]
    if missing:
        raise WeightsError(f"{BACKBONES[net]} has no tensor for {', '.join(missing)}")
    return {f"net.{name}": published[torchvision_name(name)].float() for name in names}


def load_alex(device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with AlexNet: what most papers report."""
    return load("alex", device)


def load_vgg(device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with VGG-16."""
    return load("vgg", device)


def load_squeeze(device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with SqueezeNet 1.1."""
    return load("squeeze", device)


def build(net: Net, backbone: Mapping[str, Tensor], device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with the given backbone and the package's linear layers; frozen, in eval mode.

    backbone: the module's own names ("net.slice1.0.weight"). Raises WeightsError when a tensor is missing, unexpected
    or has another shape.
    """
    from lpips import ScalingLayer

    module = _empty(net)
    module.scaling_layer = ScalingLayer()
    linear = load_state_dict(locate(LINEAR[net]))  # "lin0.model.1.weight", registered a second time as "lins.0..."
    tensors = dict(backbone) | linear | {f"lins.{name[3:]}": value for name, value in linear.items()}
    tensors |= {f"scaling_layer.{name}": value for name, value in module.scaling_layer.state_dict().items()}
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"these tensors are no lpips-{net} backbone: {error}") from error
    return module.eval().requires_grad_(False).to(device)


def skeleton(net: Net) -> LPIPS:
    """LPIPS as a meta skeleton: sizes without weights, for a dry run."""
    return _empty(net).requires_grad_(False)


def _empty(net: Net) -> LPIPS:
    """The module's structure, without memory for weights and without a download."""
    from lpips import LPIPS

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", module="torchvision")  # lpips passes torchvision a deprecated keyword
        return LPIPS(net=net, version="0.1", pretrained=False, pnet_rand=True, verbose=False)


def torchvision_name(name: str) -> str:
    """ "slice2.3.weight" to "features.3.weight": lpips cuts torchvision's feature layers into slices."""
    return f"features.{name.split('.', 1)[1]}"
