"""Weights drawn on the device itself, in seconds at any size: for figures that do not depend on what was learnt."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def draw_weights(network: Network, device: torch.device, seed: int = 0) -> Network:
    """Give what lies on the meta device values by `seed`, in seconds where the device is a GPU; returns the network.

    Scaled as in lactok/seeded.py, so that activations neither vanish nor overflow: kernels by 1 / sqrt(fan in), a
    norm's scale and a running variance near 1, other vectors near 0. Integers are zero.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def drawn(name: str, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype, device=device)
        values = torch.empty(like.shape, dtype=like.dtype, device=device).normal_(generator=generator)
        if like.ndim >= 2:
            return values.mul_(1 / math.sqrt(math.prod(like.shape[1:])))
        return values.mul_(0.05).add_(float(name in ("weight", "running_var")))

    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(drawn(name, parameter), requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, drawn(name, buffer))
    return network
