"""A LacTok at a size that a test can afford, and weights for it under the published names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from lactok.models.autoencoder import AutoencoderConfig
from lactok.models.lactok import LacTokConfig, build_lactok
from lactok.models.lactok_state_dict import LacTokStateDict
from lactok.models.ladd import LatentDecoderConfig, UNetConfig
from lactok.models.lora import LoRAConfig, add_lora
from lactok.models.vq import VQConfig
from lactok.seeded import TensorSpec, seeded_state_dict
from lactok.state_dict import meta_skeleton

UNET = UNetConfig(
    block_out_channels=(8, 16, 16),
    norm_num_groups=4,
    layers_per_block=1,
    cross_attention_dim=12,
    transformer_layers_per_block=(1, 1, 2),
    attention_head_dim=(1, 2, 2),
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=6 * 4 + 10,
)
SMALL = LacTokConfig(
    vq=VQConfig(64, 4, encoder_ch_mult=(1, 2), decoder_ch_mult=(1, 2), z_channels=8, ch=8, norm_num_groups=4),
    decoder=LatentDecoderConfig(UNET, 4, (4, 8), text_positions=5, pixels_per_latent=2),
    autoencoder=AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4),
)
LORA = LoRAConfig(rank=4, alpha=2.0)
CONDITION = "decoder.controlnet.controlnet_cond_embedding."


def weights(wrapped: bool) -> dict[str, Tensor]:
    """Seeded weights under the published names, the UNet wrapped by peft or plain; tokens matter to the result."""
    model = meta_skeleton(build_lactok, SMALL)
    shapes = LacTokStateDict(LORA).wrapped_shapes(model) if wrapped else LacTokStateDict().published_shapes(model)
    state = seeded_state_dict({name: TensorSpec(shape) for name, shape in shapes.items()})
    for name in state:
        if name.startswith(CONDITION) and name.endswith(".weight"):
            state[name] = state[name] * 3
    return state


def write_adapters(unet: UNet2DConditionModel, folder: Path) -> dict[str, Path]:
    """One drawn adapter of `unet`, which gets it, in the published files of both accelerators: "tlcm", "hypersd"."""
    add_lora(unet, LORA)
    state, generator = {}, torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            state[name.replace(".default", "")] = parameter.data
    tlcm = folder / "adapter_model.safetensors"
    save_file({f"base_model.model.{name}": tensor for name, tensor in state.items()}, tlcm)
    settings = {"r": LORA.rank, "lora_alpha": LORA.alpha, "target_modules": list(LORA.targets)}
    tlcm.with_name("adapter_config.json").write_text(json.dumps(settings))
    hypersd = folder / "Hyper-SDXL-1step-lora.safetensors"
    scaled = {name: tensor * LORA.scale_of(name) if "lora_B" in name else tensor for name, tensor in state.items()}
    save_file({f"unet.{name}": tensor for name, tensor in scaled.items()}, hypersd)
    return {"tlcm": tlcm, "hypersd": hypersd}
