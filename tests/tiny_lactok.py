"""LacTok's training chain at a size that a test can afford: overrides that make each recipe tiny."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lactok.feature_extractors import effnet
from lactok.train.config import TrainConfig, compose_config

TINY = {
    "vae": (
        "options.image_size=32", "options.perceptual=0", "options.model.block_out_channels=[8,16]",
        "options.model.norm_num_groups=4", "options.model.latent_channels=4",
    ),
    "ldm": (
        "options.image_size=32", "options.sample_steps=2", "options.model.unet.in_channels=4",
        "options.model.unet.out_channels=4", "options.model.unet.block_out_channels=[16,32]",
        "options.model.unet.down_block_types=[DownBlock2D,CrossAttnDownBlock2D]",
        "options.model.unet.up_block_types=[CrossAttnUpBlock2D,UpBlock2D]",
        "options.model.unet.transformer_layers_per_block=[1,1]", "options.model.unet.attention_head_dim=[1,2]",
        "options.model.unet.norm_num_groups=4", "options.model.unet.cross_attention_dim=8",
        "options.model.unet.addition_time_embed_dim=4", "options.model.unet.projection_class_embeddings_input_dim=32",
    ),
    "accelerator": ("options.image_size=32", "options.lora.rank=2", "options.lora.alpha=2", "options.rollout=3"),
    "diffusion": ("options.condition_widths=[8]", "options.picture_sizes=[32]", "options.sample_steps=2"),
    "pixel": ("options.condition_widths=[8]", "options.picture_sizes=[32]", "options.perceptual_stages=2"),
}  # fmt: skip
"""By recipe: what is smaller than in its preset. Images of 32 pixels, 8x8 latents of 4 channels."""

CHAIN = {
    "vae-mini": ("vae", None),
    "ldm-mini": ("ldm", None),
    "accelerator-hypersd-mini": ("accelerator", "hypersd"),
    "accelerator-tlcm-mini": ("accelerator", "tlcm"),
    "diffusion-mini": ("diffusion", None),
    "pixel-hypersd-mini": ("pixel", "hypersd"),
    "pixel-tlcm-mini": ("pixel", "tlcm"),
}
"""The runs of the chain in order, by the name of their folder: recipe and accelerator. vq is the one that ships."""

SHARED = (
    "device=cpu", "threads=1", "batch_size=4", "sample_every=100", "log_every=1", "data.validation=2",
    "data.smallest_crop=64", "data.largest_crop=128", "optimizer.warmup_steps=1", "optimizer.ema_decay=0.8",
)  # fmt: skip
"""What every tiny run has."""


def settings(run: str, data: Path, runs: Path, *more: str) -> tuple[TrainConfig, type]:
    """Config and class of a tiny run in the folder `runs`/`run`, from the files of those beside it."""
    recipe, accelerator = CHAIN[run]
    chosen = [f"recipe={recipe}", *([f"accelerator={accelerator}"] if accelerator else [])]
    return compose_config([*chosen, f"data.root='{data}'", f"out='{runs / run}'", *SHARED, *TINY[recipe], *more])


@contextlib.contextmanager
def quick_training() -> Iterator[None]:
    """No plots; Lite2 is read once; threads are afterwards as they were."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lactok.train.loop.plot", lambda logs, target: None)
        patch.setattr(effnet, "_load", functools.cache(effnet._load))
        yield
    torch.set_num_threads(before)
