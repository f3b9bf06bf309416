"""Text to image through token ids: a GPT draws an image's ids from its caption, and a tokenizer decodes them.

The ids of a prompt follow from its seed and the GPT's settings alone, so generators that share a GPT and differ in the
decoder decode the same ids.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lactok.generators.calls import prompts_of
from lactok.generators.captioned_gpt import ENCODER, CaptionedGPT, CaptionedGPTConfig, load_captioned_gpt, own_seed
from lactok.generators.captions import why_not_clean
from lactok.generators.text_encoder import TextEncoder, text_encoder_sources
from lactok.interface import Generator, GeneratorInfo, Item, Tokenizer, Tokens, TrainingCompute
from lactok.models.gpt import GPT, GPTConfig
from lactok.models.gpt_generation import IdGenerator, Prompt
from lactok.models.gpt_sampling import Sampling
from lactok.models.gpt_state_dict import NESTED, GPTStateDict
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.tokenizers.miniature import Miniature
from lactok.weights import (
    HubWeights,
    UnpublishedWeights,
    WeightsError,
    WeightsSource,
    load_state_dict,
    locate,
    locate_all,
    override,
    read_metadata,
)

DECODING = 1
"""The decoder's noise is of another RNG stream than the ids."""


@dataclass
class SamplingOptions:
    """How ids are drawn; a generator's options are these and its decoder's.

    gpt: a local checkpoint of the GPT. guidance_scale: at most 1 means no guidance; temperature: of logits;
    top_k: 0 for all ids; top_p: see `lactok.models.gpt_sampling.Sampling`. together: prompts in the GPT at a time.
    compile: torch.compile of the GPT's blocks, which takes a minute once and pays off over many images; ids may differ
    where logits are close.
    """

    gpt: str | None = None
    guidance_scale: float = 7.5
    temperature: float = 1.0
    top_k: int = 1000
    top_p: float = 1.0
    together: int = 16
    compile: bool = False


class TokenGenerator(Generator):
    """A GPT and a tokenizer's decoder; subclasses name the decoder and load the GPT.

    Options: a dataclass of `SamplingOptions` and the decoder's options.
    """

    DECODER: ClassVar[type[Tokenizer]]
    FAMILY: ClassVar[str]
    path_options: ClassVar[tuple[str, ...]] = ("gpt",)

    def __init__(self, options: Any, device: torch.device) -> None:
        super().__init__(options, device)
        self.sampling = Sampling(
            options.guidance_scale, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
        )
        if options.together < 1:
            raise ValueError(f"together {options.together}: expected at least 1")
        self._drawing: IdGenerator | None = None
        locate_all(self.weights(options))  # all that is missing is told together
        self.model, self._training = self._load()
        self.model.eval().requires_grad_(False).to(device)
        self.decoder = self.DECODER(options, device)
        decoded, drawn = self.decoder.info, self.model.config.gpt
        if (decoded.tokens_per_image, decoded.codebook_size) != (drawn.block_size, drawn.vocab_size):
            raise WeightsError(
                f"the GPT draws {drawn.block_size} ids of {drawn.vocab_size} an image, the decoder takes "
                f"{decoded.tokens_per_image} of {decoded.codebook_size}: name files that belong together"
            )

    @abstractmethod
    def _load(self) -> tuple[CaptionedGPT, TrainingCompute | None]:
        """The GPT on the CPU, and what its training cost."""

    @abstractmethod
    def _conditions(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States (B, L, D) of prompts and where they are, (B, L)."""

    def _why_not(self, prompt: str) -> str | None:
        """Why a prompt can't be taken; None where it can."""
        return None

    def networks(self) -> Mapping[str, nn.Module]:
        decoders = {f"decoder.{name}": network for name, network in self.decoder.networks().items()}
        return {"model": self.model, **decoders}

    @property
    def info(self) -> GeneratorInfo:
        sampling, decoded = self.sampling, self.decoder.info
        training = self._training
        if training is not None and decoded.training is not None:
            training = training.on_top_of(decoded.training)
        return GeneratorInfo(
            family=self.FAMILY,
            output_size=decoded.output_size,
            settings={
                "guidance_scale": sampling.guidance_scale,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "tokens": self.model.config.gpt.block_size,
                **self._decoder_settings(),
            },
            training=training,
        )

    def _decoder_settings(self) -> dict[str, Any]:
        """What the decoder samples with, where it has steps."""
        steps = getattr(self.options, "steps", None)
        return {} if steps is None else {"decoder_steps": steps}

    @torch.no_grad()
    def ids(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """The ids of each prompt's image, int64 (B, N)."""
        states, seen = self._conditions(prompts)
        given = [Prompt(state, mask, seed) for state, mask, seed in zip(states, seen, seeds)]
        if self._drawing is None:  # its cache and its recorded steps serve every call
            recorded = self.model.gpt.output.weight.is_cuda
            self._drawing = IdGenerator(
                self.model.gpt,
                self.options.together,
                self.sampling,
                compiled=self.options.compile,
                recorded=recorded,
            )
        found = dict(self._drawing.stream(given))
        return torch.stack([found[place] for place in range(len(given))])

    @torch.no_grad()
    def generate(self, items: Sequence[Item], seed_indices: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        """An image for each prompt, float32 (3, S, S) in [0, 1]; all randomness of image i follows from seeds[i] alone.

        Captions are cut after the text encoder's positions. Raises ItemsRefused for prompts that are no valid Unicode,
        and those that can't be cleaned.
        """
        prompts = prompts_of(items, seeds, self._why_not)
        if not prompts:
            return []
        ids = self.ids(prompts, seeds)
        images = self.decoder.decode(Tokens(ids), [own_seed(seed, DECODING) for seed in seeds])
        return list(images.float().clamp(0, 1))


class MiniTokenGenerator(TokenGenerator):
    """With the GPT that the bundled trainer makes, which has a small text encoder of its own."""

    scale = "mini"
    expected_side = 128
    code_licence = "Apache-2.0"
    weights_licence = "Apache-2.0; the GPT trained on rendered scenes"
    GPT_FILE: ClassVar[Miniature]

    @classmethod
    def vq_source(cls, options: Any) -> WeightsSource:
        """The file of the VQ tokenizer whose ids the decoder takes."""
        raise NotImplementedError

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """The GPT's file, then the decoder's."""
        return (cls.GPT_FILE.source(options.gpt), *cls.DECODER.weights(options))

    def _load(self) -> tuple[CaptionedGPT, TrainingCompute | None]:
        path = locate(self.GPT_FILE.source(self.options.gpt))
        model, metadata = load_captioned_gpt(path)
        if model.words is None:
            raise WeightsError(
                f"{path} has no text encoder of its own: expected a file that learned with options.words"
            )
        metadata.require_part(path, ENCODER, locate(self.vq_source(self.options)))
        return model, metadata.training

    def _conditions(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.model.conditions(prompts)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the text encoder does not know."""
        return [] if self.model.words is None else self.model.words.unknown(prompt)


def _is_ours(path: Path) -> bool:
    """Whether a file is one that the bundled trainer writes."""
    return path.suffix == ".safetensors" and "config" in read_metadata(path)


@dataclass
class PublishedSamplingOptions(SamplingOptions):
    """text_encoder: a local folder of flan-t5-xl; text_dtype: that it computes in, float32 or bfloat16."""

    text_encoder: str | None = None
    text_dtype: str = "bfloat16"


def _of_this_row(source: WeightsSource) -> WeightsSource:
    """A decoder's source with the option by which this generator takes a local copy, not that of the tokenizer."""
    if isinstance(source, UnpublishedWeights):
        return replace(source, instead=_OPTION.sub("options.NAME.", source.instead))
    if isinstance(source, HubWeights):
        return replace(source, otherwise=_OPTION.sub("options.NAME.", source.otherwise))
    return source


_OPTION = re.compile(r"options\.[\w-]+\.")


class PublishedTokenGenerator(TokenGenerator):
    """With a published GPT-XL, from flan-t5-xl's states of captions, cleaned as by the published scripts."""

    scale = "paper"
    path_options: ClassVar[tuple[str, ...]] = ("gpt", "text_encoder")
    GPT_FILE: ClassVar[WeightsSource]
    GPT_CONFIG: ClassVar[GPTConfig] = GPTConfig()

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """The GPT's file, flan-t5-xl's, then the decoder's."""
        text = text_encoder_sources(options.text_encoder)
        decoder = [_of_this_row(source) for source in cls.DECODER.weights(options)]
        return (override(cls.GPT_FILE, options.gpt), *text, *decoder)

    def __init__(self, options: Any, device: torch.device) -> None:
        if options.text_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"text_dtype {options.text_dtype!r}: expected float32 or bfloat16")
        super().__init__(options, device)
        self.text = TextEncoder.load(device, options.text_encoder, getattr(torch, options.text_dtype))

    def _load(self) -> tuple[CaptionedGPT, TrainingCompute | None]:
        path = locate(override(self.GPT_FILE, self.options.gpt))
        if _is_ours(path):
            trained, metadata = load_captioned_gpt(path)
            if trained.words is not None or not trained.config.gpt.same_network(self.GPT_CONFIG):
                raise WeightsError(
                    f"{path} is of another GPT: expected one from flan-t5-xl's states, {self.GPT_CONFIG}"
                )
            return trained, metadata.training
        with errors_name(path):
            state = find_state_dict(load_state_dict(path), NESTED)
            gpt = GPTStateDict().load(meta_skeleton(GPT, self.GPT_CONFIG), state)
        model = meta_skeleton(lambda: CaptionedGPT(CaptionedGPTConfig(self.GPT_CONFIG)))
        model.gpt = gpt
        return model, TrainingCompute()

    def _why_not(self, prompt: str) -> str | None:
        return why_not_clean(prompt)

    def _conditions(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        states, seen = self.text(prompts)
        return states.to(self.model.gpt.output.weight.dtype), seen
