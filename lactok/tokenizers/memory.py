"""Options that save a GPU's memory at the cost of time, by diffusers' stock calls; shared by the large tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass
class MemoryOptions:
    """vae_slicing: the autoencoder decodes a batch image by image. vae_tiling: it decodes overlapping tiles of half an
    image's side and blends them, which changes images. cpu_offload: large networks stay in the host's memory, and each
    layer moves to the device when it runs, which takes several times as long.
    """

    vae_slicing: bool = False
    vae_tiling: bool = False
    cpu_offload: bool = False


def memory_options(options: Any) -> MemoryOptions:
    """A plugin's options where it has these among them; else those that save nothing."""
    return options if isinstance(options, MemoryOptions) else MemoryOptions()


def save_in_decoding(vae: AutoencoderKL, options: MemoryOptions, latent_side: int, factor: int) -> None:
    """Switch slicing and tiling on as the options say. latent_side: of an image; factor: its pixels by latent."""
    if options.vae_slicing:
        vae.enable_slicing()
    if options.vae_tiling:
        vae.tile_latent_min_size = max(latent_side // 2, 2)
        vae.tile_sample_min_size = vae.tile_latent_min_size * factor
        vae.enable_tiling()


def place(model: nn.Module, device: torch.device, offloaded: Iterable[nn.Module] = ()) -> None:
    """Move a model to the device but for `offloaded` parts of it, which come there layer by layer as they run."""
    from diffusers.hooks import apply_group_offloading

    stay = list(offloaded)
    if not stay:
        model.to(device)
        return
    inside = {id(module) for part in stay for module in part.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.to(device), parameter.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(device))
    for part in stay:
        apply_group_offloading(part, onload_device=device, offload_type="leaf_level")
