"""Low-rank adapters (LoRA, arXiv 2106.09685) of the diffusion network: added to be trained, merged to be run.

Names are peft's: a wrapped layer holds `base_layer.weight`, `lora_A.default.weight` and `lora_B.default.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Number = TypeVar("Number", int, float)

A_WEIGHT = ".lora_A.default.weight"
B_WEIGHT = ".lora_B.default.weight"
BASE = ".base_layer."


@dataclass(frozen=True)
class LoRAConfig:
    """rank of the update, its alpha (scale: alpha / rank), and the layers that get one, by the end of their names.

    rank_pattern, alpha_pattern: other ranks and alphas of some layers, by regular expressions for the end of their
    names (whole parts of it), of which the first that matches counts; peft's rule. A layer's scale is its alpha by its
    rank.
    The defaults are those of TLCM's LoRA and of the released LaCTok-T: peft's default alpha of 8 at rank 64.
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
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON gives lists

    def rank_of(self, layer: str) -> int:
        """Of the layer of that name in the network."""
        return _matching(self.rank_pattern, layer, self.rank)

    def scale_of(self, layer: str) -> float:
        """Of the product B A when it is added to the layer's weight (0.125 where no pattern says otherwise)."""
        return _matching(self.alpha_pattern, layer, self.alpha) / self.rank_of(layer)

    def covers(self, layer: str) -> bool:
        """Whether the layer of that name gets an adapter; peft's rule for a list of targets."""
        return any(layer == target or layer.endswith(f".{target}") for target in self.targets)

    def shapes(self, layer: str, weight: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B for a layer's weight (out, in) or (out, in, kh, kw): A has the kernel, B is 1x1."""
        (out, into, *kernel), rank = weight, self.rank_of(layer)
        return (rank, into, *kernel), (out, rank, *(1 for _ in kernel))


def _matching(patterns: Mapping[str, Number], layer: str, default: Number) -> Number:
    """The value of the first pattern that matches a layer's name, as `peft.utils.other.get_pattern_key` has it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def product(a: Tensor, b: Tensor) -> Tensor:
    """B A in float32: of linear A (r, in), B (out, r); or of convolutions A (r, in, kh, kw), B (out, r, 1, 1)."""
    return (b.float().flatten(1) @ a.float().flatten(1)).view(b.shape[0], *a.shape[1:])


def merge(state: MutableMapping[str, Tensor], lora: LoRAConfig, prefix: str = "") -> None:
    """Turn a state dict under peft's names into a plain one, in place: W becomes W + scale B A, float32.

    prefix: of the network's names in it.
    Layer by layer, the adapter's tensors leaving `state` as they are used: a checkpoint of 16 GB is not held twice.
    """
    for name in [name for name in state if BASE in name]:
        layer, _, leaf = name.partition(BASE)
        tensor = state.pop(name)
        if leaf == "weight":
            delta = product(state.pop(layer + A_WEIGHT), state.pop(layer + B_WEIGHT))
            tensor = tensor.float() + lora.scale_of(layer.removeprefix(prefix)) * delta
        state[f"{layer}.{leaf}"] = tensor


@torch.no_grad()
def add_to_weights(network: nn.Module, adapters: Mapping[str, tuple[Tensor, Tensor]], lora: LoRAConfig) -> None:
    """Add scale B A to the weight of each named layer of a plain network, in place.

    adapters: A and B by layer. Raises ValueError naming layers that the network does not have, or of another rank.
    """
    layers = dict(network.named_modules())
    if unexpected := [name for name in adapters if name not in layers]:
        raise ValueError(f"{len(unexpected)} unexpected layers: {', '.join(unexpected[:3])}")
    for name, (a, b) in adapters.items():
        if len(a) != lora.rank_of(name):
            raise ValueError(f"{name}: rank {len(a)}, expected {lora.rank_of(name)} as the settings say")
        weight = layers[name].weight
        delta = product(a.to(weight.device), b.to(weight.device))
        if delta.shape != weight.shape:
            raise ValueError(f"{name}: update of shape {tuple(delta.shape)}, expected {tuple(weight.shape)}")
        weight.add_(lora.scale_of(name) * delta)


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
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
    )
    unet.add_adapter(settings)
