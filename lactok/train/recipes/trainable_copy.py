"""What the two stages of LacTok's training share: frozen networks, and the trainable copy of the UNet's encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lactok.data.batches import rng
from lactok.models.lactok import LacTok, LacTokConfig
from lactok.models.lactok_state_dict import LacTokStateDict
from lactok.models.ladd import LatentDecoder, build_controlnet
from lactok.models.vq import VQEncoder
from lactok.tokenizers.mini_parts import TrainableCopyConfig
from lactok.train.noise import normal
from lactok.train.parts import PartsOptions, load_parts, part_sources, with_earlier_parts
from lactok.train.recipe import Provenance, Recipe, export_model, export_state
from lactok.weights import WeightsSource

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

ENCODER_SIZE = 21
"""RNG stream, lactok/data/batches.py, that picks the size of the encoder's images of a step."""


@dataclass
class TrainableCopyOptions(PartsOptions):
    """encoder_sizes: pixels of a side that the encoder sees, one of them drawn for each optimizer step.

    picture_sizes: pixels of a side of the target images, in the order of training, each for an equal share of the
        steps. Of the validation images it is the last one, and the middle one of encoder_sizes.
    """

    encoder_sizes: list[int] = field(default_factory=lambda: [224, 256, 288])
    picture_sizes: list[int] = field(default_factory=lambda: [512, 1024])

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("encoder_sizes", "picture_sizes"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: expected one size or more")


AnyTrainableCopyOptions = TypeVar("AnyTrainableCopyOptions", bound=TrainableCopyOptions)


class TrainableCopyRecipe(Recipe, Generic[AnyTrainableCopyOptions]):
    """Only `self.control`, diffusers' ControlNet with LacTok's condition, learns; all else is in `self.frozen`."""

    Options: ClassVar[type] = TrainableCopyOptions
    path_options: ClassVar[tuple[str, ...]] = ("vq", "base", "autoencoder")
    options: AnyTrainableCopyOptions

    @classmethod
    def with_inputs(cls, options: AnyTrainableCopyOptions, runs: Path) -> AnyTrainableCopyOptions:
        return with_earlier_parts(options, runs)

    @classmethod
    def sources(cls, options: AnyTrainableCopyOptions) -> tuple[WeightsSource, ...]:
        return part_sources(options)

    def __init__(self, options: AnyTrainableCopyOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        parts = load_parts(options)
        self._base = parts.base
        self.config = LacTokConfig(parts.vq.config, parts.decoder, parts.autoencoder)
        self.frozen["vq"], self.frozen["unet"], self.frozen["vae"] = parts.vq, parts.unet, parts.vae
        self._check_sizes(options)
        self.control = build_controlnet(parts.decoder)
        self.schedule = self.config.schedule

    def exported(self) -> tuple[nn.Module, Mapping[str, Tensor]]:
        return self.control, self.control.state_dict()

    def _check_sizes(self, options: TrainableCopyOptions) -> None:
        for size in options.picture_sizes:
            self.config.latent_shape(size)
        for size in options.encoder_sizes:
            if size % self.config.vq.downsample_factor:
                raise ValueError(f"encoder_sizes has {size}: expected multiples of {self.config.vq.downsample_factor}")

    @property
    def vq(self) -> VQEncoder:
        """The frozen encoder and codebook."""
        network = self.frozen["vq"]
        assert isinstance(network, VQEncoder), f"frozen['vq'] is a {type(network).__name__}, expected a VQEncoder"
        return network

    def lactok(self) -> LacTok:
        """The whole network, of the parts that stand here."""
        decoder = LatentDecoder(self.config.decoder, self.frozen["unet"], self.control)
        return LacTok(self.config, self.vq, decoder, self.frozen["vae"])

    @property
    def image_size(self) -> int:
        return self.options.picture_sizes[-1]

    def image_size_at(self, step: int) -> int:
        sizes = self.options.picture_sizes
        return sizes[min(step * len(sizes) // self.total_steps, len(sizes) - 1)]

    def encoder_size(self, step: int) -> int:
        """Side in pixels of what the encoder sees in a step."""
        sizes = self.options.encoder_sizes
        return sizes[int(rng(self.seed, ENCODER_SIZE, step).integers(len(sizes)))]

    @property
    def usual_encoder_size(self) -> int:
        """Of validation images."""
        sizes = sorted(self.options.encoder_sizes)
        return sizes[len(sizes) // 2]

    @torch.no_grad()
    def embeddings(self, images: Tensor, size: int) -> Tensor:
        """The code-embedding map (B, D, h, w) of images (B, 3, S, S) in [0, 1], seen at `size` pixels; float32 always.

        Resized as the protocol does it: bicubic, antialiased, clamped.
        """
        small = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        meta = images.device.type == "meta"  # which has no autocast to switch off
        with nullcontext() if meta else torch.autocast(images.device.type, enabled=False):  # ids of the float32 encoder
            return self.vq.lookup(self.vq.encode(small * 2 - 1).ids)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Scaled latents of images (B, 3, S, S) in [0, 1], the posterior's mean, float32."""
        vae: AutoencoderKL = self.frozen["vae"]
        mean = vae.encode(images * 2 - 1).latent_dist.mean.float()
        return mean * self.config.autoencoder.scaling_factor

    def noises(self, images: Tensor, seeds: Sequence[int], draws: int, first_stream: int) -> Tensor:
        """A sampler's noises (B, draws, C, h, w), float32."""
        like = images.new_empty(len(images), *self.config.latent_shape(images.shape[-1]))
        return torch.stack([normal(seeds, like, first_stream + i) for i in range(draws)], dim=1)

    def save_trainable_copy(
        self, path: Path, provenance: Provenance, adapter: str | None = None, timesteps: Sequence[int] = ()
    ) -> None:
        """The miniature's trainable copy alone, for `mini_parts.load_trainable_copy`; at paper scale all of LacTok.

        The latter with what was merged into its UNet, as `options.NAME.weights=PATH` takes it.
        """
        if self._base is None:
            export_state(path, LacTokStateDict().to_published(self.lactok().state_dict()), self.config, provenance)
            return
        parts = self._base.vq_file.tensors, self._base.diffusion.file.tensors
        config = TrainableCopyConfig(self.config.decoder, *parts, adapter, tuple(timesteps))
        export_model(path, self.control, config, provenance)
