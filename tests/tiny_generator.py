"""Generators at a size that a test can afford: captioned images, a tiny flan-t5, shards, settings of a tiny GPT."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lactok import registry
from lactok.checkpoint_file import tensors_sha256
from lactok.data.scenes import write_folder
from lactok.data.token_shards import TokenShards
from lactok.generators.captioned_gpt import ENCODER, CaptionedGPT, CaptionedGPTConfig
from lactok.generators.word_encoder import WordEncoderConfig
from lactok.interface import TrainingCompute
from lactok.models.gpt import GPTConfig
from lactok.tokenizers import miniature
from lactok.train.config import TrainConfig, compose_config
from lactok.train.loop import train
from lactok.train.recipe import Provenance, export_model
from lactok.train.recipes.generator import GeneratorRecipe
from lactok.train.tokens import TokenExtraction
from lactok.weights import locate

WORDS = ["a", "red", "cat", "on", "the", "sofa"]
"""The vocabulary of `write_flan`."""

GPT = (
    "options.model.dim=32", "options.model.n_layer=2", "options.model.n_head=2", "options.model.cls_token_num=12",
    "options.model.caption_dim=16", "options.embeddings=random",
)  # fmt: skip
TINY = (
    *GPT, "options.words.positions=12", "options.words.dim=16", "options.words.layers=1", "options.words.heads=2",
    "options.words.ffn_dim=32",
)  # fmt: skip
"""Over the preset generator-mini: llamagen-mini's 64 ids of 1024, and little else."""
SHARED = (
    "device=cpu", "threads=1", "steps=6", "batch_size=4", "sample_every=100", "checkpoint_every=3", "log_every=2",
    "data.validation=2", "optimizer.warmup_steps=1", "optimizer.ema_decay=0.5",
)  # fmt: skip


def write_captioned(folder: Path, captions: Sequence[str], table: str = "captions.jsonl") -> Path:
    """Images of seeded noise in coarse squares, of different sides, with these captions."""
    folder.mkdir(parents=True)
    file_key, text_key = {"captions.jsonl": ("file", "caption"), "metadata.jsonl": ("file_name", "text")}[table]
    lines = []
    for number, caption in enumerate(captions):
        draws = np.random.default_rng(number)
        squares = draws.integers(0, 256, (6, 5 + number % 3, 3), dtype=np.uint8)
        height, width = squares.shape[:2]
        Image.fromarray(squares).resize((16 * width, 16 * height)).save(folder / f"{number:03}.png")
        lines.append(json.dumps({file_key: f"{number:03}.png", text_key: caption}, ensure_ascii=False))
    (folder / table).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return folder


def write_flan(folder: Path) -> Path:
    """A small encoder-decoder of flan-t5's kind, as transformers saves it, with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    vocabulary = {word: place for place, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = T5Config(
        vocab_size=16, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def extraction(images: Path, out: Path, *more: str) -> TrainConfig:
    """Settings of recipe=tokens: llamagen-mini's ids in shards of three."""
    given = ("device=cpu", "threads=1", "batch_size=2", "options.shard_size=3")
    return compose_config(["recipe=tokens", f"data.root='{images}'", f"out='{out}'", *given, *more])[0]


def extracted(images: Path, out: Path, *more: str, check_held_out: bool = True) -> TokenShards:
    """The shards of these images."""
    TokenExtraction(extraction(images, out, *more), check_held_out).run()
    return TokenShards(out)


def scene_shards(folder: Path, count: int = 10, *more: str) -> Path:
    """The folder of shards of so many scenes."""
    write_folder(folder / "scenes", count, 0, 64)
    extracted(folder / "scenes", folder / "shards", *more)
    return folder / "shards"


def settings(shards: Path, out: Path, *more: str) -> TrainConfig:
    """Settings of recipe=generator with a text encoder that learns."""
    return compose_config(["recipe=generator", f"data.root='{shards}'", f"out='{out}'", *SHARED, *TINY, *more])[0]


def train_tiny(shards: Path, out: Path, *more: str, recipe: type[GeneratorRecipe] = GeneratorRecipe) -> Path:
    """The file that a finished run exports."""
    outcome = train(settings(shards, out, *more), recipe)
    assert outcome.finished
    assert outcome.export is not None
    return outcome.export


def warm() -> None:
    """Import what runs import, for the processes that are forked from this one."""
    registry.load("tokenizers", "llamagen-mini")
    for module in (
        "hydra.compose",
        "transformers.models.t5.modeling_t5",
        "lactok.generators.text_encoder",
        "ftfy",
        "bs4",
    ):
        importlib.import_module(module)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """No plots; files of miniatures are read once; threads are afterwards as they were."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lactok.train.loop.plot", lambda logs, target: None)
        patch.setattr(miniature, "read_checkpoint", functools.cache(miniature.read_checkpoint))
        yield
    torch.set_num_threads(before)


WORD_SIZES = {"positions": 12, "dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32}


def gpt_config(**changed: object) -> GPTConfig:
    """A tiny GPT of llamagen-mini's ids, from twelve states of 16 values."""
    small = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32, "vocab_size": 1024, "block_size": 64}
    return GPTConfig(**{**small, "cls_token_num": 12, "caption_dim": 16, **changed})  # type: ignore[arg-type]


def llamagen_mini() -> str:
    """sha256 of the tensors of the VQ tokenizer that ships."""
    tokenizer = registry.load("tokenizers", "llamagen-mini")
    return tensors_sha256(locate(tokenizer.weights(tokenizer.Options())[0]))


def captioned_gpt(words: bool = True, **changed: object) -> CaptionedGPT:
    """Seeded, with weights that draw many ids, all of them float16 numbers."""
    config = CaptionedGPTConfig(gpt_config(**changed), WordEncoderConfig(**WORD_SIZES) if words else None)
    torch.manual_seed(0)
    model = CaptionedGPT(config).eval()
    with torch.no_grad():
        for parameter in model.gpt.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.half().float()


def write_gpt(path: Path, model: CaptionedGPT, vq: str | None = None) -> Path:
    """The file that recipe=generator would export. vq: of another encoder than llamagen-mini's."""
    cost = TrainingCompute(steps=7, images=28, core_hours=0.5)
    export_model(path, model, model.config, Provenance("a command", 64, cost, "0"), {ENCODER: vq or llamagen_mini()})
    return path
