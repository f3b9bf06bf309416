"""Show-o behind the benchmark's interface: the published checkpoints for 256 and for 512 pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from baselines.generators.local import local_checkpoint
from baselines.generators.showo.magvit import Magvit, MagvitConfig
from baselines.generators.showo.model import Showo, ShowoConfig
from baselines.generators.showo.prompting import CONTROL_TOKENS, MASKED, Vocabulary, text_row
from baselines.generators.showo.sampler import Sampling, sample, seeded_noise
from baselines.generators.showo.state_dict import MagvitStateDict, ShowoStateDict
from lactok.generators.calls import in_dtype, prompts_of, require_dtype
from lactok.interface import Generator, GeneratorInfo, Item, TrainingCompute
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.weights import HubWeights, WeightsError, WeightsSource, load_state_dict, locate_all, override

_BOS = "<|endoftext|>"  # phi-1_5's bos and eos


@dataclass
class ShowoOptions:
    """What may be set; the defaults are the published readme's for 512 pixels.

    weights, image_tokenizer: local checkpoints instead of the hub's (showlab/magvitv2 for the second), a file or a
    folder that holds pytorch_model.safetensors or .bin; text_tokenizer: phi-1_5's tokenizer.json, or its folder.
    steps, temperature, schedule: see `Sampling`. guidance_scale: 0 means none; 5 is 6 in the usual convention.
    dtype: that the transformer computes in (float32 as published, bfloat16, float16), whatever the run's precision is.
    """

    weights: str | None = None
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    steps: int = 50
    guidance_scale: float = 5.0
    temperature: float = 1.0
    schedule: str = "cosine"
    dtype: str = "float32"


@dataclass
class Showo256Options(ShowoOptions):
    """The same with the published readme's defaults for 256 pixels (as of 2024)."""

    steps: int = 18
    guidance_scale: float = 1.75


class Showo512(Generator):
    """1.4 billion parameters, 1024 codes an image. Published with GenEval 0.68, its settings unstated.

    Images are made one by one, so that none depends on what else is in the batch.
    """

    Options: ClassVar[type] = ShowoOptions
    path_options: ClassVar[tuple[str, ...]] = ("weights", "image_tokenizer", "text_tokenizer")
    scale = "paper"
    expected_side: ClassVar[int | None] = 512
    code_licence = "Apache-2.0"
    weights_licence = "MIT (the card of show-o-w-clip-vit; that of magvitv2 was not seen), MIT (phi-1_5's tokenizer)"
    # `dtype` rules, under precision=bf16 too
    dtypes: ClassVar[Mapping[str, torch.dtype]] = {"model": torch.float32, "tokenizer": torch.float32}
    REPO: ClassVar[str] = "showlab/show-o-512x512"
    IMAGE_TOKENIZER: ClassVar[str] = "showlab/magvitv2"
    TEXT_TOKENIZER: ClassVar[str] = "microsoft/phi-1_5"
    CONFIG: ClassVar[ShowoConfig] = ShowoConfig()
    MAGVIT: ClassVar[MagvitConfig] = MagvitConfig()
    CODES_PER_IMAGE: ClassVar[int] = 1024

    def __init__(self, options: ShowoOptions, device: torch.device) -> None:
        super().__init__(options, device)
        require_dtype(options.dtype)
        self.sampling = Sampling(options.steps, options.guidance_scale, options.temperature, options.schedule)
        self._side = math.isqrt(self.CODES_PER_IMAGE)
        checkpoint, image_tokenizer, text_tokenizer = self._located()
        self._ids_of = load_text_tokenizer(text_tokenizer, self.CONFIG.vocabulary)
        with errors_name(checkpoint):
            model = ShowoStateDict().load(meta_skeleton(Showo, self.CONFIG), _tensors(checkpoint))
        self.model = model.with_rotary_tables().eval().requires_grad_(False).to(device)
        with errors_name(image_tokenizer):
            adapter = MagvitStateDict(len(self.MAGVIT.decoder.ch_mult))
            tokenizer = adapter.load(meta_skeleton(Magvit, self.MAGVIT), _tensors(image_tokenizer))
        self.tokenizer = tokenizer.eval().requires_grad_(False).to(device)

    @classmethod
    def weights(cls, options: ShowoOptions) -> tuple[WeightsSource, ...]:
        """The transformer's file or files, the image tokenizer's, the text tokenizer's."""
        return tuple(source for part in cls._sources(options) for source in part)

    @classmethod
    def _sources(cls, options: ShowoOptions) -> list[list[WeightsSource]]:
        # The published code saves and looks for this name first (models/modeling_utils.py); the hub was not seen.
        file, repos = "pytorch_model.safetensors", (cls.REPO, cls.IMAGE_TOKENIZER)
        parts: list[list[WeightsSource]] = []
        for repo, option in zip(repos, ("weights", "image_tokenizer")):
            otherwise = f"name a local file or folder by options.NAME.{option}=PATH (a file pytorch_model.bin will do)"
            hub = HubWeights(repo, file, otherwise=otherwise)
            parts.append(local_checkpoint(hub, "pytorch_model", getattr(options, option)))
        otherwise = "name a local file or folder by options.NAME.text_tokenizer=PATH"
        text = HubWeights(cls.TEXT_TOKENIZER, "tokenizer.json", otherwise=otherwise)
        return [*parts, [override(text, options.text_tokenizer)]]

    def _located(self) -> list[Path]:
        """The first file of each part. Raises one MissingWeights for all that are missing."""
        parts = self._sources(self.options)
        paths = locate_all([source for part in parts for source in part])
        starts = [sum(len(part) for part in parts[:place]) for place in range(len(parts))]
        return [paths[start] for start in starts]

    @property
    def info(self) -> GeneratorInfo:
        sampling = self.sampling
        return GeneratorInfo(
            family="Show-o",
            output_size=self._side * self.MAGVIT.downsample_factor,
            settings={
                "steps": sampling.steps,
                "guidance_scale": sampling.guidance_scale,
                "temperature": sampling.temperature,
                "schedule": sampling.schedule,
                "dtype": self.options.dtype,
            },
            training=TrainingCompute(),
        )

    @torch.no_grad()
    def generate(self, items: Sequence[Item], seed_indices: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        """An image for each prompt, float32 (3, S, S) in [0, 1]; all noise of image i follows from seeds[i] alone.

        A prompt of more than 126 ids is cut, as published. Raises ItemsRefused for one that holds a control token.
        """
        prompts = prompts_of(items, seeds, _why_not)
        images = []
        for prompt, seed in zip(prompts, seeds):
            codes = self._codes(self._ids_of(prompt), seed)
            with in_dtype("float32", self.device):
                decoded = self.tokenizer.decode_codes(codes, self._side, self._side)
            images.append(((decoded[0] + 1) / 2).clamp(0, 1))
        return images

    def _codes(self, ids: Sequence[int], seed: int) -> Tensor:
        """Image codes (1, N) of a prompt's ids."""
        config, count = self.CONFIG, self.CODES_PER_IMAGE

        def text(ids: Sequence[int]) -> Tensor:
            return torch.tensor([text_row(ids, config.vocabulary, config.max_seq_length)], device=self.device)

        uncond = text([]) if self.sampling.guided else None
        predict = self.model.predictor(text(ids), uncond, count, self.sampling.guidance_scale)
        canvas = torch.full((1, count), MASKED, device=self.device)
        noise = seeded_noise([seed], count, config.vocabulary.codes, self.device)
        with in_dtype(self.options.dtype, self.device):
            return sample(predict, canvas, self.sampling, noise)


class Showo256(Showo512):
    """The first version, 256 codes an image. Published with GenEval 0.53, which other papers cite."""

    Options = Showo256Options
    expected_side = 256
    REPO = "showlab/show-o"
    CODES_PER_IMAGE = 256


def _why_not(prompt: str) -> str | None:
    held = next((token for token in CONTROL_TOKENS if token in prompt), None)
    return None if held is None else f"the prompt holds {held}, which Show-o reads as a control token"


def _tensors(path: Path) -> dict[str, Tensor]:
    return find_state_dict(load_state_dict(path))


def load_text_tokenizer(path: Path, vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """What gives the ids of a text, from a tokenizer.json.

    Raises WeightsError for a file that is none, or whose ids are not where the checkpoint has them.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise WeightsError(f"{path} can't be read as a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size, bos = tokenizer.get_vocab_size(), tokenizer.token_to_id(_BOS)
    if size != vocabulary.text_size or bos != vocabulary.bos:
        raise WeightsError(
            f"{path} holds {size} tokens with {_BOS} at {bos}, expected {vocabulary.text_size} with it at "
            f"{vocabulary.bos}: it is not phi-1_5's tokenizer, on whose ids Show-o's follow"
        )
    return lambda text: tokenizer.encode(text).ids
