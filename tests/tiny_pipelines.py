"""The pipelines of the diffusion baselines at a size that a test can afford, in the published folder layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

WIDTH = 16  # of the text encoders
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # printable, as CLIP's byte-level alphabet has them


def clip_tokenizer(folder: Path, pad: str) -> int:
    """The four published files for an alphabet of bytes without merges; returns the number of words."""
    folder.mkdir(parents=True)
    letters = [chr(b) for b in BYTES] + [chr(256 + n) for n in range(256 - len(BYTES))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": pad}
    for name, content in (
        ("vocab", {word: i for i, word in enumerate(words)}),
        ("special_tokens_map", special),
        ("tokenizer_config", special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(words)


def t5_tokenizer(folder: Path) -> int:
    """A unigram tokenizer of single letters, by `save_pretrained`; returns the number of words."""
    letters = [chr(c) for c in range(97, 123)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in letters)]
    tokenizer = transformers.T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def _clip(words: int, projected: bool) -> transformers.PreTrainedModel:
    config = transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    return transformers.CLIPTextModelWithProjection(config) if projected else transformers.CLIPTextModel(config)


def _t5(words: int) -> transformers.PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=words, d_model=2 * WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config)


def _vae(channels: int, **more: object) -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=channels,
        sample_size=32,
        layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **more,
    )


def _unet(width: int, **more: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=width,
        use_linear_projection=True,
        **more,
    )


def write_sd15(folder: Path) -> Path:
    """A StableDiffusionPipeline: images of 2 pixels a latent."""
    torch.manual_seed(0)
    words = clip_tokenizer(folder / "tokenizer", "<|endoftext|>")
    _clip(words, False).save_pretrained(folder / "text_encoder")
    _vae(4).save_pretrained(folder / "vae")
    _unet(WIDTH).save_pretrained(folder / "unet")
    PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    return folder


def write_sdxl(folder: Path) -> Path:
    """A StableDiffusionXLPipeline; its autoencoder is to be run in float32."""
    torch.manual_seed(1)
    for part, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        words = clip_tokenizer(folder / part, pad)
    _clip(words, False).save_pretrained(folder / "text_encoder")
    _clip(words, True).save_pretrained(folder / "text_encoder_2")
    _vae(4, force_upcast=True).save_pretrained(folder / "vae")
    _unet(
        2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    ).save_pretrained(folder / "unet")
    EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    return folder


def write_sd3(folder: Path) -> Path:
    """A StableDiffusion3Pipeline; its T5 is in several files, as published."""
    torch.manual_seed(2)
    for part, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        words = clip_tokenizer(folder / part, pad)
    for part in ("text_encoder", "text_encoder_2"):
        _clip(words, True).save_pretrained(folder / part)
    _t5(t5_tokenizer(folder / "tokenizer_3")).save_pretrained(folder / "text_encoder_3", max_shard_size="10KB")
    _vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False).save_pretrained(folder / "vae")
    SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    ).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    return folder


def write_flux(folder: Path) -> Path:
    """A FluxPipeline with an embedded guidance; its transformer and T5 are in several files, as published."""
    torch.manual_seed(3)
    _clip(clip_tokenizer(folder / "tokenizer", "<|endoftext|>"), False).save_pretrained(folder / "text_encoder")
    _t5(t5_tokenizer(folder / "tokenizer_2")).save_pretrained(folder / "text_encoder_2", max_shard_size="10KB")
    _vae(4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False).save_pretrained(folder / "vae")
    FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).save_pretrained(folder / "transformer", max_shard_size="30KB")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0).save_pretrained(folder / "scheduler")
    return folder


WRITE: dict[str, Callable[[Path], Path]] = {
    "sd1.5": write_sd15,
    "sdxl": write_sdxl,
    "sd3": write_sd3,
    "flux.1-dev": write_flux,
}
"""By registered name, what writes such a pipeline."""
