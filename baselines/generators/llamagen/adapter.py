"""LlamaGen from text (arXiv 2406.06525) behind the benchmark's interface: both published stages, and the miniature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from baselines.tokenizers.llamagen.adapter import MINI, LlamaGenMini, LlamaGenMiniOptions, LlamaGenOptions, LlamaGenT2I
from lactok.generators.from_tokens import MiniTokenGenerator, PublishedSamplingOptions, PublishedTokenGenerator
from lactok.generators.lactokgen import GPT_MINI, MiniSampling
from lactok.models.gpt import GPTConfig
from lactok.weights import HubWeights, WeightsSource

REPOSITORY, REVISION = "peizesun/llamagen_t2i", "276f5c5a3d915b922899a03f1912605531574747"
_OTHERWISE = "name a local copy by options.NAME.gpt=PATH"


@dataclass
class LlamaGenT2IOptions(PublishedSamplingOptions, LlamaGenOptions):
    """Defaults of the published script: guidance 7.5, top-k 1000, temperature 1, flan-t5-xl in bfloat16."""


@dataclass
class LlamaGenT2I512Options(LlamaGenT2IOptions):
    """The same at 512 pixels."""

    input_size: int = 512


class LlamaGenFromText(PublishedTokenGenerator):
    """Stage 1, at 256 pixels: LAION-COCO captions."""

    Options: ClassVar[type] = LlamaGenT2IOptions
    expected_side: ClassVar[int | None] = 256
    path_options = ("gpt", "text_encoder", "weights")
    code_licence = "MIT"
    weights_licence = "MIT (the hub's licence tag)"
    DECODER = LlamaGenT2I
    FAMILY = "LlamaGen"
    GPT_FILE = HubWeights(REPOSITORY, "t2i_XL_stage1_256.pt", REVISION, otherwise=_OTHERWISE)


class LlamaGenFromText512(LlamaGenFromText):
    """Stage 2, at 512 pixels: stage 1 fine-tuned on images of high aesthetic quality."""

    Options = LlamaGenT2I512Options
    expected_side = 512
    GPT_FILE = HubWeights(REPOSITORY, "t2i_XL_stage2_512.pt", REVISION, otherwise=_OTHERWISE)
    GPT_CONFIG = GPTConfig(block_size=1024)


@dataclass
class LlamaGenMiniT2IOptions(MiniSampling, LlamaGenMiniOptions):
    """`SamplingOptions` and those of the tokenizer llamagen-mini."""


class LlamaGenMiniFromText(MiniTokenGenerator):
    """The same ids as LacTokGen's miniatures, decoded by llamagen-mini."""

    Options = LlamaGenMiniT2IOptions
    path_options = ("gpt", "weights")
    DECODER = LlamaGenMini
    FAMILY = "LlamaGen"
    GPT_FILE = GPT_MINI

    @classmethod
    def vq_source(cls, options: Any) -> WeightsSource:
        return MINI.source(options.weights)
