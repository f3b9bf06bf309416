"""Stable Diffusion 1.5, SDXL, Stable Diffusion 3 and FLUX.1-dev through diffusers' stock pipelines.

Defaults are the pipelines' own (diffusers 0.42.1) but where a class says otherwise. No prompt is rewritten, there is no
negative prompt, no safety checker and no watermark. Encoders cut long prompts as the pipelines have it: CLIP after 77
tokens, T5 after `TEXT_TOKENS`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lactok.generators.calls import prompts_of
from lactok.interface import Generator, GeneratorInfo, Item
from lactok.models.pipeline_folder import load_network, load_scheduler
from lactok.tokenizers.memory import MemoryOptions, place, save_in_decoding
from lactok.weights import (
    STEMS,
    CheckpointMismatch,
    HubWeights,
    LocalWeights,
    WeightsError,
    WeightsSource,
    locate_all,
    saved_network,
)

Dtype = Literal["float16", "bfloat16", "float32"]

CLIP_FILES = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
T5_FILES = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "transformers.CLIPTokenizer": CLIP_FILES,
    "transformers.T5TokenizerFast": T5_FILES,
}
"""By class of a text tokenizer, the published files that it reads."""

CLIP, CLIP_PROJECTED = "transformers.CLIPTextModel", "transformers.CLIPTextModelWithProjection"
T5, VAE, UNET = "transformers.T5EncoderModel", "diffusers.AutoencoderKL", "diffusers.UNet2DConditionModel"
CLIP_WORDS, T5_WORDS = TOKENIZERS


@dataclass
class DiffusionOptions(MemoryOptions):
    """What may be set; and `MemoryOptions`: cpu_offload is of all networks.

    weights: a local folder of the pipeline in diffusers' layout. steps: denoising steps; guidance_scale: at most 1
    means no guidance; size: side of the images in pixels. dtype: of all networks and their calls, whatever `precision`
    is. together: images that pass through the networks at once; from 2 on an image may differ by rounding, which
    guidance amplifies, with what is in its batch.
    """

    weights: str | None = None
    steps: int = 50
    guidance_scale: float = 7.5
    size: int = 512
    dtype: Dtype = "float16"
    together: int = 1


@dataclass
class SDXLOptions(DiffusionOptions):
    """See `DiffusionOptions`."""

    guidance_scale: float = 5.0
    size: int = 1024


@dataclass
class SD3Options(DiffusionOptions):
    """See `DiffusionOptions`."""

    steps: int = 28
    guidance_scale: float = 7.0
    size: int = 1024


@dataclass
class FluxOptions(DiffusionOptions):
    """See `DiffusionOptions`. guidance_scale: an input of the distilled network, in one pass without a negative one."""

    guidance_scale: float = 3.5
    size: int = 1024
    dtype: Dtype = "bfloat16"


class DiffusionPipeline(Generator):
    """A pipeline of diffusers. An image depends on its prompt and its seed alone.

    Class attributes:
        REPOSITORY, REVISION: of the hub. TERMS: the licence that must be accepted before the hub gives the files, ""
            where none must.
        PIPELINE: diffusers' class. PARTS: its parts but the scheduler, each a folder, to "library.Class".
        SHARDS: networks whose tensors are in several files, to their number.
        VARIANT: of the published tensors that float16 takes, "" where there is one kind.
        ARGUMENTS: what the pipeline is built with besides its parts. TEXT_TOKENS: of a prompt that T5 sees, None where
            there is no T5.
        PATCH: latents along a side of what the network takes for one position; the autoencoder's factor times it
            divides the size.
    """

    Options: ClassVar[type] = DiffusionOptions
    scale = "paper"
    code_licence = "Apache-2.0 (diffusers)"
    REPOSITORY: ClassVar[str]
    REVISION: ClassVar[str]
    TERMS: ClassVar[str] = ""
    PIPELINE: ClassVar[str]
    PARTS: ClassVar[Mapping[str, str]]
    SHARDS: ClassVar[Mapping[str, int]] = {}
    VARIANT: ClassVar[str] = ""
    ARGUMENTS: ClassVar[Mapping[str, Any]] = {}
    TEXT_TOKENS: ClassVar[int | None] = None
    PATCH: ClassVar[int] = 1

    def __init__(self, options: Any, device: torch.device) -> None:
        """Raises WeightsError for files that do not fit, ValueError for an option out of range."""
        super().__init__(options, device)
        for name in ("steps", "together", "size"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name} {getattr(options, name)}: expected at least 1")
        if not math.isfinite(options.guidance_scale):
            raise ValueError(f"guidance_scale {options.guidance_scale}: expected a finite number")
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        self.pipeline = self._load()
        self.pipeline.set_progress_bar_config(disable=True)
        factor = self.pipeline.vae_scale_factor
        if options.size % (factor * self.PATCH):
            raise ValueError(f"size {options.size}: expected a multiple of {factor * self.PATCH} pixels")
        save_in_decoding(self.pipeline.vae, options, options.size // factor, factor)
        if options.cpu_offload:
            for network in self._parts().values():
                place(network, device, [network])
        else:
            self.pipeline.to(device, silence_dtype_warnings=True)  # float16 runs on CPUs, slowly

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """Every file that is read, those of the hub or of the local folder; the first lies in a part's folder."""
        if options.weights is not None:
            return tuple(LocalWeights(str(path)) for path in cls._local(Path(options.weights).expanduser()))
        variant = f"{cls.VARIANT}." if cls.VARIANT and options.dtype == "float16" else ""
        files = [f"{part}/{file}" for part, name in cls.PARTS.items() for file in cls._published(part, name, variant)]
        files.append("scheduler/scheduler_config.json")
        otherwise = "name a folder that holds them in the same layout by options.NAME.weights=DIR"
        return tuple(HubWeights(cls.REPOSITORY, file, cls.REVISION, None, otherwise, cls.TERMS) for file in files)

    @classmethod
    def _published(cls, part: str, name: str, variant: str) -> list[str]:
        """The files of a part in the hub's repository."""
        if name in TOKENIZERS:
            return list(TOKENIZERS[name])
        stem, count = STEMS[name.partition(".")[0]][0], cls.SHARDS.get(part)
        if count is None:
            return ["config.json", f"{stem}.{variant}safetensors"]
        shards = [f"{stem}-{place:05d}-of-{count:05d}.safetensors" for place in range(1, count + 1)]
        return ["config.json", f"{stem}.safetensors.index.json", *shards]

    @classmethod
    def _local(cls, folder: Path) -> list[Path]:
        """The files of a local folder that are read, those that lack included; networks and tokenizers in any form that
        `save_pretrained` writes."""
        files: list[Path] = []
        for part, name in cls.PARTS.items():
            here = folder / part
            if name in TOKENIZERS:
                files += sorted(path for path in here.glob("*") if path.is_file()) or [here / "tokenizer_config.json"]
            else:
                files += [here / "config.json", *saved_network(here, name.partition(".")[0])[1]]
        return [*files, folder / "scheduler" / "scheduler_config.json"]

    def _load(self) -> Any:
        """The pipeline on the CPU, with its weights."""
        folder = locate_all(self.weights(self.options))[0].parent.parent
        try:
            parts: dict[str, Any] = {"scheduler": load_scheduler(folder / "scheduler")}
            for part, name in self.PARTS.items():
                library, _, attribute = name.partition(".")
                cls = getattr(importlib.import_module(library), attribute)
                if name in TOKENIZERS:
                    parts[part] = cls.from_pretrained(str(folder / part), local_files_only=True)
                else:
                    parts[part] = load_network(cls, folder / part, self.dtype)
            return getattr(importlib.import_module("diffusers"), self.PIPELINE)(**parts, **self.ARGUMENTS)
        except CheckpointMismatch:
            raise
        except (ValueError, OSError, RuntimeError, KeyError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"{folder} can't be loaded as a {self.PIPELINE}: {reason}") from error

    def _parts(self) -> dict[str, nn.Module]:
        """The pipeline's networks by name."""
        return {part: getattr(self.pipeline, part) for part, name in self.PARTS.items() if name not in TOKENIZERS}

    def networks(self) -> Mapping[str, nn.Module]:
        """None that precision=bf16 would change: options.dtype says what they are held and called in."""
        return {}

    @property
    def info(self) -> GeneratorInfo:
        options = self.options
        settings = {
            "steps": options.steps,
            "guidance_scale": options.guidance_scale,
            "size": options.size,
            "dtype": options.dtype,
            "scheduler": type(self.pipeline.scheduler).__name__,
            **({} if self.TEXT_TOKENS is None else {"text_tokens": self.TEXT_TOKENS}),
            "revision": self.REVISION[:12] if options.weights is None else "a local folder",
        }
        return GeneratorInfo("diffusion", options.size, settings=settings)

    @torch.no_grad()
    def generate(self, items: Sequence[Item], seed_indices: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        """B images, float32 (3, size, size) in [0, 1].

        One generator an image, on the CPU and seeded by seeds[i] alone, draws its noise (the pipelines draw it in the
        networks' dtype). Raises ItemsRefused for prompts that are no text (half of a surrogate pair).
        """
        prompts = prompts_of(items, seeds)
        together = self.options.together
        starts = range(0, len(prompts), together)
        with torch.autocast(self.device.type, enabled=False):
            made = [self._sample(prompts[i : i + together], seeds[i : i + together]) for i in starts]
        return [image for images in made for image in images]

    def _sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Images (B, 3, size, size) in one pass."""
        options = self.options
        if (vae := self.pipeline.vae).dtype != self.dtype:  # SDXL's, left in float32 when memory ran out
            vae.to(self.dtype)
        more = {} if self.TEXT_TOKENS is None else {"max_sequence_length": self.TEXT_TOKENS}
        made = self.pipeline(
            list(prompts),
            height=options.size,
            width=options.size,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            **more,
        )
        return made.images.float()


class StableDiffusion15(DiffusionPipeline):
    """Stable Diffusion 1.5, at 512 pixels.

    GenEval's own script takes guidance 9 (options.sd1.5.guidance_scale=9) and float16. The repository is the copy of
    runwayml/stable-diffusion-v1-5, which was removed, at the same revision.
    """

    weights_licence = "CreativeML OpenRAIL-M"
    REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    PIPELINE = "StableDiffusionPipeline"
    PARTS: ClassVar[Mapping[str, str]] = {"unet": UNET, "vae": VAE, "text_encoder": CLIP, "tokenizer": CLIP_WORDS}
    ARGUMENTS: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


class SDXL(DiffusionPipeline):
    """Stable Diffusion XL base 1.0 without the refiner, at 1024 pixels.

    GenEval's own script takes guidance 9 (options.sdxl.guidance_scale=9) and, as here, the float16 variant. In float16
    the pipeline decodes in float32, since the autoencoder overflows.
    """

    Options = SDXLOptions
    weights_licence = "OpenRAIL++-M"
    REPOSITORY = "stabilityai/stable-diffusion-xl-base-1.0"
    REVISION = "462165984030d82259a11f4367a4eed129e94a7b"
    VARIANT = "fp16"
    PIPELINE = "StableDiffusionXLPipeline"
    PARTS: ClassVar[Mapping[str, str]] = {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": CLIP,
        "text_encoder_2": CLIP_PROJECTED,
        "tokenizer": CLIP_WORDS,
        "tokenizer_2": CLIP_WORDS,
    }
    ARGUMENTS: ClassVar[Mapping[str, Any]] = {"add_watermarker": False}


class StableDiffusion3(DiffusionPipeline):
    """Stable Diffusion 3 medium, at 1024 pixels; the figures that its paper has for this size of network are at 512."""

    Options = SD3Options
    weights_licence = "Stability AI Community License"
    REPOSITORY = "stabilityai/stable-diffusion-3-medium-diffusers"
    REVISION = "ea42f8cef0f178587cf766dc8129abd379c90671"
    TERMS = "the Stability AI Community License"
    PIPELINE = "StableDiffusion3Pipeline"
    PARTS: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.SD3Transformer2DModel",
        "vae": VAE,
        "text_encoder": CLIP_PROJECTED,
        "text_encoder_2": CLIP_PROJECTED,
        "text_encoder_3": T5,
        "tokenizer": CLIP_WORDS,
        "tokenizer_2": CLIP_WORDS,
        "tokenizer_3": T5_WORDS,
    }
    SHARDS: ClassVar[Mapping[str, int]] = {"text_encoder_3": 2}
    TEXT_TOKENS = 256
    PATCH = 2


class Flux1Dev(DiffusionPipeline):
    """FLUX.1-dev, at 1024 pixels; 50 steps as the example of its model card has (the pipeline's default is 28)."""

    Options = FluxOptions
    weights_licence = "FLUX.1 [dev] Non-Commercial License"
    REPOSITORY = "black-forest-labs/FLUX.1-dev"
    REVISION = "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"
    TERMS = "the FLUX.1 [dev] Non-Commercial License"
    PIPELINE = "FluxPipeline"
    PARTS: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.FluxTransformer2DModel",
        "vae": VAE,
        "text_encoder": CLIP,
        "text_encoder_2": T5,
        "tokenizer": CLIP_WORDS,
        "tokenizer_2": T5_WORDS,
    }
    SHARDS: ClassVar[Mapping[str, int]] = {"transformer": 3, "text_encoder_2": 2}
    TEXT_TOKENS = 512
    PATCH = 2
