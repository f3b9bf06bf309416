"""Names of FlexTok's published checkpoints (apple/ml-flextok) <-> those of `FlexTok`; shapes are the same."""

from __future__ import annotations

from baselines.tokenizers.flextok.checkpoint_config import REPA
from baselines.tokenizers.flextok.model import FlexTok
from lactok.state_dict import StateDictAdapter, rename

_BLOCKS = r"^((?:en|de)coder\.blocks\..*)"
_RULES = (  # ours, published
    (_BLOCKS + r"\.attn\.to_([qkv])\.", r"\1.attn.w\2."),
    (_BLOCKS + r"\.attn\.to_out\.", r"\1.attn.proj."),
    (_BLOCKS + r"\.modulation\.", r"\1.adaLN_modulation.1."),
    (r"^vae\.", "vae.vae."),
    (r"^encoder\.patch_embed\.", "encoder.module_dict.enc_patch_emb.patch_proj."),
    (r"^encoder\.positions$", "encoder.module_dict.enc_posemb_module.posembs"),
    (r"^encoder\.registers$", "encoder.module_dict.enc_register_module.registers"),
    (r"^encoder\.blocks\.", "encoder.module_dict.enc_transformer.blocks."),
    (r"^encoder\.head\.", "encoder.module_dict.enc_to_latents.proj."),
    (r"^decoder\.embed_codes\.", "decoder.module_dict.dec_from_latents.proj."),
    (r"^decoder\.register_positions$", "decoder.module_dict.dec_registers_posemb_module.posembs"),
    (r"^decoder\.mask_token$", "decoder.module_dict.dec_nested_dropout.dropout_mask_token"),
    (r"^decoder\.null_token$", "decoder.module_dict.dec_latent_dropout.nullcond"),
    (r"^decoder\.patch_embed\.", "decoder.module_dict.dec_noise_patch_emb.patch_proj."),
    (r"^decoder\.positions$", "decoder.module_dict.dec_patches_posemb_module.posembs"),
    (r"^decoder\.time_embed\.", "decoder.module_dict.dec_time_embedder.mlp."),
    (r"^decoder\.blocks\.", "decoder.module_dict.dec_transformer.blocks."),
    (r"^decoder\.modulation\.", "decoder.module_dict.dec_to_patches.adaLN_modulation.1."),
    (r"^decoder\.head\.", "decoder.module_dict.dec_to_patches.proj."),
)
_REPA = f"decoder.module_dict.{REPA}"
"""Start of the published names that only training reads."""

_LOGVAR = "vae.logvar"
"""The learned variance of the VAE's training loss, where it was trained with one."""


class FlexTokStateDict(StateDictAdapter[FlexTok]):
    """The published `model.safetensors`."""

    model_name = "the configured FlexTok"

    def published_name(self, name: str) -> str:
        return rename(name, _RULES)

    def is_unused(self, published_name: str, model: FlexTok) -> bool:
        return published_name.startswith(_REPA) or published_name == _LOGVAR
