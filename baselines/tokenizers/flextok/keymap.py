"""Names of FlexTok's published checkpoints (apple/ml-flextok) <-> those of `FlexTok`; shapes are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from baselines.tokenizers.flextok.checkpoint_config import REPA
from baselines.tokenizers.flextok.config import FlexTokConfig
from baselines.tokenizers.flextok.model import FlexTok
from lactok.weights import require_entries

_STARTS = {  # ours, published (below `encoder.module_dict.` and `decoder.module_dict.`)
    "vae.": "vae.vae.",
    "encoder.patch_embed.": "enc_patch_emb.patch_proj.",
    "encoder.positions": "enc_posemb_module.posembs",
    "encoder.registers": "enc_register_module.registers",
    "encoder.blocks.": "enc_transformer.blocks.",
    "encoder.head.": "enc_to_latents.proj.",
    "decoder.embed_codes.": "dec_from_latents.proj.",
    "decoder.register_positions": "dec_registers_posemb_module.posembs",
    "decoder.mask_token": "dec_nested_dropout.dropout_mask_token",
    "decoder.null_token": "dec_latent_dropout.nullcond",
    "decoder.patch_embed.": "dec_noise_patch_emb.patch_proj.",
    "decoder.positions": "dec_patches_posemb_module.posembs",
    "decoder.time_embed.": "dec_time_embedder.mlp.",
    "decoder.blocks.": "dec_transformer.blocks.",
    "decoder.modulation.": "dec_to_patches.adaLN_modulation.1.",
    "decoder.head.": "dec_to_patches.proj.",
}
_IN_BLOCK = (  # ours (a regular expression), published
    (r"\.attn\.to_([qkv])\.", r".attn.w\1."),
    (r"\.attn\.to_out\.", ".attn.proj."),
    (r"\.modulation\.", ".adaLN_modulation.1."),
)
_REPA = f"decoder.module_dict.{REPA}"
"""Start of the published names that only training reads: accepted, and left out."""


def official_name(name: str) -> str:
    """The published name of one entry of `FlexTok.state_dict()`."""
    ours = next(start for start in _STARTS if name.startswith(start))
    half = ours.partition(".")[0]
    rest = name[len(ours) :]
    if ours.endswith(".blocks."):
        for pattern, published in _IN_BLOCK:
            rest = re.sub(pattern, published, rest)
    return ("" if half == "vae" else f"{half}.module_dict.") + _STARTS[ours] + rest


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `FlexTok` state dict under the published names."""
    return {official_name(name): tensor for name, tensor in state.items()}


def from_official(state: Mapping[str, Tensor], model: FlexTok) -> dict[str, Tensor]:
    """A published state dict under the names of `model`, float32; the model may be on the meta device.

    Raises lactok.weights.CheckpointMismatch listing what is missing, unexpected, or of another shape.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_REPA)}
    require_entries(state, {official_name(name): shape for name, shape in ours.items()}, "the configured FlexTok")
    return {name: state[official_name(name)].float() for name in ours}


def load_official(model: FlexTok, state: Mapping[str, Tensor]) -> FlexTok:
    """Give `model` the weights of a published state dict (strictly); returns it, off the meta device.

    Raises lactok.weights.CheckpointMismatch as `from_official`.
    """
    model.load_state_dict(from_official(state, model), strict=True, assign=True)
    return model


def meta_model(config: FlexTokConfig) -> FlexTok:
    """A `FlexTok` without memory, to be filled by `load_official` or `load_state_dict(assign=True)`."""
    with torch.device("meta"):
        return FlexTok(config)
