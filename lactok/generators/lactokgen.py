"""LacTokGen (paper, section 4.3): LlamaGen's GPT over token ids, decoded by LacTok."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lactok.generators.from_tokens import (
    MiniTokenGenerator,
    PublishedSamplingOptions,
    PublishedTokenGenerator,
    SamplingOptions,
)
from lactok.interface import Tokenizer
from lactok.tokenizers.mini import FewStepMiniOptions, LacTokHMini, LacTokTMini, OneStepMiniOptions
from lactok.tokenizers.mini_parts import vq_source
from lactok.tokenizers.miniature import Miniature
from lactok.tokenizers.published import (
    LacTokH,
    LacTokHStar,
    LacTokOptions,
    LacTokTStar,
    LacTokTStarOptions,
)
from lactok.weights import HubWeights, UnpublishedWeights, WeightsSource

GPT_MINI = Miniature(
    "lactokgen-mini.safetensors",
    sha256="2613d63514fdf462047bb859c3bde64eb1b0b6d70830b344e637a8eba116cda5",
    command="python -m lactok.train recipe=generator scale=mini data.root=SHARDS",
)
"""The GPT of every generator in miniature."""

MINI_PATHS = ("gpt", "weights", "base", "autoencoder", "vq", "adapter")


@dataclass
class MiniSampling(SamplingOptions):
    """The miniatures' defaults: guidance 1.5, the 100 likeliest ids, temperature 0.3.

    Guidance and temperature are the best of six pairs tried on other prompts than those of `suite=geneval`
    (docs/geneval.md).
    """

    guidance_scale: float = 1.5
    temperature: float = 0.3
    top_k: int = 100


@dataclass
class LacTokGenHMiniOptions(MiniSampling, OneStepMiniOptions):
    """`SamplingOptions` and those of the tokenizer lactok-h-mini."""


@dataclass
class LacTokGenTMiniOptions(MiniSampling, FewStepMiniOptions):
    """`SamplingOptions` and those of the tokenizer lactok-t-mini."""


class LacTokGenHMini(MiniTokenGenerator):
    """LacTokGen-H in miniature: scenes, decoded in one step."""

    Options: ClassVar[type] = LacTokGenHMiniOptions
    path_options = MINI_PATHS
    DECODER: ClassVar[type[Tokenizer]] = LacTokHMini
    FAMILY = "LacTokGen"
    GPT_FILE = GPT_MINI

    @classmethod
    def vq_source(cls, options: Any) -> WeightsSource:
        return vq_source(options.vq)


class LacTokGenTMini(LacTokGenHMini):
    """LacTokGen-T in miniature: scenes, decoded in two steps."""

    Options = LacTokGenTMiniOptions
    DECODER = LacTokTMini


@dataclass
class LacTokGenSampling(PublishedSamplingOptions):
    """The released readme's: guidance 2, temperature 0.1, top-k 1000; flan-t5-xl in float32."""

    guidance_scale: float = 2.0
    temperature: float = 0.1
    text_dtype: str = "float32"


@dataclass
class LacTokGenTStarOptions(LacTokGenSampling, LacTokTStarOptions):
    """`SamplingOptions` and those of the tokenizer lactok-t-star."""


@dataclass
class LacTokGenHOptions(LacTokGenSampling, LacTokOptions):
    """`SamplingOptions` and those of the tokenizer lactok-h or lactok-h-star."""


class LacTokGenTStar(PublishedTokenGenerator):
    """The released LaCTokGen-T.pth with LaCTok-T.pth, at 1024 pixels."""

    Options: ClassVar[type] = LacTokGenTStarOptions
    path_options = ("gpt", "text_encoder", *LacTokTStar.path_options)
    code_licence = "Apache-2.0; no code of LaCToK, which states no licence"
    DECODER: ClassVar[type[Tokenizer]] = LacTokTStar
    FAMILY = "LacTokGen"
    GPT_FILE: ClassVar[WeightsSource] = HubWeights(
        "OPPOer/LaCTok", "LaCTokGen-T.pth", otherwise="name a local copy by options.NAME.gpt=PATH"
    )


class LacTokGenHStar(LacTokGenTStar):
    """The paper's LacTokGen-H*: LaCTokGen-T.pth, as one tokenizer's ids serve both; LacTok-H* was not published."""

    Options = LacTokGenHOptions
    path_options = ("gpt", "text_encoder", *LacTokHStar.path_options)
    DECODER: ClassVar[type[Tokenizer]] = LacTokHStar


class LacTokGenH(LacTokGenHStar):
    """The paper's LacTokGen-H, without constructed data; neither its GPT nor LacTok-H was published."""

    GPT_FILE = UnpublishedWeights(
        "LacTokGen-H's GPT",
        "train one by `python -m lactok.train recipe=generator scale=paper data.root=SHARDS` and name it by "
        "options.NAME.gpt=PATH",
    )
    path_options = ("gpt", "text_encoder", *LacTokH.path_options)
    DECODER = LacTokH
