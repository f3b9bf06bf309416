"""A small GPT with a text encoder of its own, untrained, as a file for the generators in miniature."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from lactok.checkpoint_file import CheckpointMetadata, save_checkpoint
from lactok.generators.captioned_gpt import CaptionedGPT, CaptionedGPTConfig
from lactok.generators.word_encoder import WordEncoderConfig
from lactok.interface import TrainingCompute
from lactok.models.gpt import GPTConfig

WORDS = WordEncoderConfig(positions=16, dim=16, layers=1, heads=2, ffn_dim=16)


def write_gpt(path: Path, ids: int = 64, codebook: int = 1024) -> Path:
    """ids: of an image; codebook: how many there are."""
    gpt = GPTConfig(
        dim=32, n_layer=1, n_head=2, vocab_size=codebook, block_size=ids, cls_token_num=WORDS.positions,
        caption_dim=WORDS.dim,
    )  # fmt: skip
    config = CaptionedGPTConfig(gpt, WORDS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CaptionedGPT(config)
        torch.nn.init.normal_(model.gpt.output.weight)  # else it starts at zero, and guidance changes nothing
    metadata = CheckpointMetadata(
        dataclasses.asdict(config), 128, TrainingCompute(), "recipe=generator", "", "untrained"
    )
    save_checkpoint(path, model.state_dict(), metadata)
    return path
