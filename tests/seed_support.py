"""SeedTok's three checkpoints at a size that a test can afford, in their published forms."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import Tensor

from baselines.tokenizers.seedtok.state_dict import VIT_PREFIX

TEXT_WIDTH = 16


def published_tokenizer(folder: Path) -> int:
    """The four published files with few words, whose number is returned; two of them disagree about padding."""
    folder.mkdir()
    words = ["!", "!</w>", "a", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": words[4], "eos_token": words[5], "unk_token": words[5]}
    for name, content in (
        ("vocab", {word: i for i, word in enumerate(words)}),
        ("special_tokens_map", special | {"pad_token": "!"}),
        ("tokenizer_config", special | {"pad_token": words[5], "model_max_length": 8}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(words)


def write_painter(folder: Path, embedding: int) -> Path:
    """A small unCLIP pipeline in diffusers' layout: 4 latent channels of 8 x 8, images of 16 x 16."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    words = published_tokenizer(folder / "tokenizer")
    size = {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8, 16)}
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * embedding,
        **size,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    normalizer = StableUnCLIPImageNormalizer(embedding)
    torch.nn.init.normal_(normalizer.mean)
    torch.nn.init.uniform_(normalizer.std, 0.5, 2.0)
    text = transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=None,
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=None,
        text_encoder=transformers.CLIPTextModel(text),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        ),
        vae=AutoencoderKL(latent_channels=4, sample_size=16, **blocks, **size),
    ).save_pretrained(folder)
    return folder


def write_checkpoints(official: dict[str, Tensor], folder: Path) -> dict[str, str]:
    """Quantizer and ViT as published: with the text branch and the 40th block, which are to be ignored.

    Returns the options that name them.
    """
    vit = {n.removeprefix(VIT_PREFIX): t.half().float() for n, t in official.items() if n.startswith(VIT_PREFIX)}
    extra = {"blocks.2.norm1.weight": torch.ones(88), "head.weight": torch.ones(2, 88), "fc_norm.bias": torch.ones(88)}
    torch.save(vit | extra, folder / "eva_vit_g.pth")
    rest = {n: t for n, t in official.items() if not n.startswith(VIT_PREFIX)}
    text = ("cls.predictions.bias", "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.dense.bias")
    torch.save(rest | {f"Qformer.{name}": torch.ones(3) for name in text}, folder / "seed_quantizer.pt")
    return {"weights": str(folder / "seed_quantizer.pt"), "vit": str(folder / "eva_vit_g.pth")}
