"""Pixel-shuffled outputs: how the convolution in front of one starts."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def nearest_init(conv: nn.Conv2d, area: int) -> None:
    """Make the `area` channels of each pixel-shuffle group alike: it then starts as nearest-neighbour up-sampling.

    ICNR (arXiv 1707.02937): no checkerboard at the start of training. area 1 changes nothing.
    """
    assert conv.bias is not None, "a convolution without bias, expected one with it"
    for tensor in (conv.weight, conv.bias):
        tensor.copy_(tensor[::area].repeat_interleave(area, 0))
