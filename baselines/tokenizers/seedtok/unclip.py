"""Images generated from image embeddings by Stable Diffusion 2.1 unCLIP: diffusers' stock pipeline, loaded strictly.

SEED's copy of the pipeline differs by an argument that SEED does not use, and by scaling latents that are handed in,
which the stock one does with those that it draws itself, as here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lactok.models.pipeline_folder import load_network, load_scheduler
from lactok.tokenizers.memory import MemoryOptions, place, save_in_decoding
from lactok.weights import WeightsError, saved_network

NETWORK_FILES = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "image_normalizer/config.json",
    "image_normalizer/diffusion_pytorch_model.safetensors",
    "image_noising_scheduler/scheduler_config.json",
    "scheduler/scheduler_config.json",
)
"""What a folder of the pipeline must hold. Its CLIP image encoder is not needed: the embedding is handed in."""

TOKENIZER_FILES = (
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
)
"""The published tokenizer; newer transformers write it as other files."""

_LIBRARIES = {"text_encoder": "transformers"} | dict.fromkeys(("unet", "vae", "image_normalizer"), "diffusers")
"""By network, whose class it is."""


@dataclass(frozen=True)
class Sampling:
    """How to sample; the defaults are those with which SEED calls the pipeline.

    steps: denoising steps; guidance_scale: 1 or less means no guidance; noise_level: index into the schedule by which
    noise is added to the embedding (level 0 still adds a little). together: images in one pass; one, as published,
    since strong guidance amplifies rounding, so that an image would not be the same to the last digits in any batch.
    """

    steps: int = 20
    guidance_scale: float = 10.0
    noise_level: int = 0
    together: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: expected at least 1")


class UnCLIP:
    """A `StableUnCLIPImg2ImgPipeline` that generates images from image embeddings with an empty prompt.

    One without text encoder gets zeros in place of the prompt's states.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)

    @property
    def embedding_dim(self) -> int:
        """Length of the embeddings that it takes."""
        return self.pipeline.image_normalizer.config.embedding_dim

    @property
    def output_size(self) -> int:
        """Side in pixels of the images that it gives."""
        return self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    @property
    def noise_levels(self) -> int:
        """How many noise levels there are."""
        return self.pipeline.image_noising_scheduler.config.num_train_timesteps

    def place(self, device: torch.device, memory: MemoryOptions) -> UnCLIP:
        """Move it to the device, as the options say; returns itself."""
        side, factor = self.pipeline.unet.config.sample_size, self.pipeline.vae_scale_factor
        save_in_decoding(self.pipeline.vae, memory, side, factor)
        if memory.cpu_offload:
            self.pipeline.image_normalizer.to(device)
            for network in self.networks().values():
                place(network, device, [network])
        else:
            self.pipeline.to(device)
        return self

    def networks(self) -> dict[str, nn.Module]:
        """Its large networks by the pipeline's names."""
        named = {name: getattr(self.pipeline, name) for name in ("unet", "vae", "text_encoder")}
        return {name: network for name, network in named.items() if network is not None}

    def generate(self, embeds: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        """Image embeddings (B, embedding_dim) to images (B, 3, S, S) in [0, 1].

        One generator an image, on the CPU and seeded by seeds[i] alone, draws the embedding's noise first, then the
        starting latents (the pipeline's own order).
        """
        if len(embeds) != len(seeds):
            raise ValueError(f"{len(seeds)} seeds for {len(embeds)} embeddings: expected one each")
        size = self.output_size
        images = [embeds.new_empty(0, 3, size, size)]
        for start in range(0, len(embeds), sampling.together):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + sampling.together]]
            made = self.pipeline(
                **self._prompt(len(generators)),
                image_embeds=embeds[start : start + sampling.together],
                generator=generators,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                noise_level=sampling.noise_level,
                output_type="latent",
            )
            images.append(self._decode(made.images))
        return torch.cat(images)

    def _decode(self, latents: Tensor) -> Tensor:
        """The pipeline's last step, in the autoencoder's dtype: latents (B, C, h, w) to images float32 in [0, 1]."""
        vae = self.pipeline.vae
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(decoded.float(), output_type="pt")

    def _prompt(self, count: int) -> dict[str, Any]:
        if self.pipeline.text_encoder is not None:
            return {"prompt": [""] * count}
        states = torch.zeros(count, 1, self.pipeline.unet.config.cross_attention_dim)
        return {"prompt_embeds": states, "negative_prompt_embeds": states}


def load(folder: Path) -> UnCLIP:
    """The pipeline of a folder in diffusers' layout (`NETWORK_FILES`, a tokenizer), float32, on the CPU.

    Raises CheckpointMismatch where names or shapes of a network's tensors are not those of its configuration,
    WeightsError for a part that can't be loaded.
    """
    from diffusers import AutoencoderKL, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        text_encoder = load_network(CLIPTextModel, folder / "text_encoder")
        pipeline = StableUnCLIPImg2ImgPipeline(
            feature_extractor=None,
            image_encoder=text_encoder,  # the pipeline reads its dtype, no more, where an embedding is handed in
            image_normalizer=load_network(StableUnCLIPImageNormalizer, folder / "image_normalizer"),
            image_noising_scheduler=load_scheduler(folder / "image_noising_scheduler"),
            tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True),
            text_encoder=text_encoder,
            unet=load_network(UNet2DConditionModel, folder / "unet"),
            scheduler=load_scheduler(folder / "scheduler"),
            vae=load_network(AutoencoderKL, folder / "vae"),
        )
    except (ValueError, OSError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{folder} can't be loaded as the unCLIP pipeline: {reason}") from error
    return UnCLIP(pipeline)


def local_files(folder: Path) -> list[Path]:
    """The files of a local folder of the pipeline that are read, those that lack included; the networks in any form
    that `save_pretrained` writes (safetensors or .bin, a variant, shards), the tokenizer in any."""
    configs = [folder / file for file in NETWORK_FILES if file.endswith(".json")]
    tensors = [path for network, library in _LIBRARIES.items() for path in saved_network(folder / network, library)[1]]
    tokenizer = sorted(path for path in (folder / "tokenizer").glob("*") if path.is_file())
    return [*configs, *tensors, *tokenizer]


def class_labels(mean: Tensor, std: Tensor, embeds: Tensor, noise: Tensor, noise_level: int) -> Tensor:
    """The UNet's class labels (B, 2 D) of image embeddings (B, D): noised, then joined with that of the noise level.

    mean, std: (1, D), by which embeddings are whitened for the noise. The schedule is the published one: cosine,
    1000 levels.
    """
    from diffusers import DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    normalizer = StableUnCLIPImageNormalizer(embeds.shape[1])
    normalizer.load_state_dict({"mean": mean, "std": std})
    schedule = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    others = ("feature_extractor", "image_encoder", "tokenizer", "text_encoder", "unet", "scheduler", "vae")
    pipeline = StableUnCLIPImg2ImgPipeline(
        image_normalizer=normalizer, image_noising_scheduler=schedule, **dict.fromkeys(others)
    )
    return pipeline.noise_image_embeddings(embeds, noise_level, noise=noise)
