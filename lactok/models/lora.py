"""Low-rank adapters (LoRA, arXiv 2106.09685) of the diffusion network: added to be trained, merged to be run.

Names are peft's: a wrapped layer holds `base_layer.weight`, `lora_A.default.weight` and `lora_B.default.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

A_WEIGHT = ".lora_A.default.weight"
B_WEIGHT = ".lora_B.default.weight"
BASE = ".base_layer."


@dataclass(frozen=True)
class LoRAConfig:
    """rank of the update, its alpha (scale: alpha / rank), and the layers that get one, by the end of their names.

    The defaults are those of TLCM's adapter and of the released LaCTok-T: peft's default alpha of 8 at rank 64.
    """

    rank: int = 64
    alpha: float = 8.0
    targets: tuple[str, ...] = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "proj_in",
        "proj_out",
        "ff.net.0.proj",
        "ff.net.2",
        "conv1",
        "conv2",
        "conv_shortcut",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
        "time_emb_proj",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON gives lists

    @property
    def scale(self) -> float:
        """Of the product B A when it is added to a weight (0.125)."""
        return self.alpha / self.rank

    def covers(self, layer: str) -> bool:
        """Whether the layer of that name gets an adapter; peft's rule for a list of targets."""
        return any(layer == target or layer.endswith(f".{target}") for target in self.targets)

    def shapes(self, weight: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B for a weight (out, in) or (out, in, kh, kw): A has the kernel, B is 1x1."""
        out, into, *kernel = weight
        return (self.rank, into, *kernel), (out, self.rank, *(1 for _ in kernel))


def product(a: Tensor, b: Tensor) -> Tensor:
    """B A in float32: of linear A (r, in), B (out, r); or of convolutions A (r, in, kh, kw), B (out, r, 1, 1)."""
    return (b.float().flatten(1) @ a.float().flatten(1)).view(b.shape[0], *a.shape[1:])


def merge(state: MutableMapping[str, Tensor], scale: float) -> None:
    """Turn a state dict under peft's names into a plain one, in place: W becomes W + scale B A, float32.

    Layer by layer, the adapter's tensors leaving `state` as they are used: a checkpoint of 16 GB is not held twice.
    """
    for name in [name for name in state if BASE in name]:
        layer, _, leaf = name.partition(BASE)
        tensor = state.pop(name)
        if leaf == "weight":
            delta = product(state.pop(layer + A_WEIGHT), state.pop(layer + B_WEIGHT))
            tensor = tensor.float() + scale * delta
        state[f"{layer}.{leaf}"] = tensor


@torch.no_grad()
def add_to_weights(network: nn.Module, adapters: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> None:
    """Add scale B A to the weight of each named layer of a plain network, in place.

    adapters: A and B by layer. Raises ValueError naming layers that the network does not have.
    """
    layers = dict(network.named_modules())
    if strangers := [name for name in adapters if name not in layers]:
        raise ValueError(f"{len(strangers)} layers that the network does not have: {', '.join(strangers[:3])}")
    for name, (a, b) in adapters.items():
        weight = layers[name].weight
        delta = product(a.to(weight.device), b.to(weight.device))
        if delta.shape != weight.shape:
            raise ValueError(f"{name}: update of shape {tuple(delta.shape)}, expected {tuple(weight.shape)}")
        weight.add_(scale * delta)


def add_lora(unet: UNet2DConditionModel, config: LoRAConfig | None = None) -> None:
    """Wrap the layers of `unet` with adapters that start as no change, by diffusers and peft; only they are trained.

    The base weights are frozen. `unet.disable_adapters()` switches them off; `merge` takes the state dict.
    """
    from peft import LoraConfig

    config = config or LoRAConfig()
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft annotates int, and only divides it by the rank
        target_modules=list(config.targets),
    )
    unet.add_adapter(settings)
