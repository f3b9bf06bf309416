"""An unconditional latent diffusion model with SDXL's interfaces: what a LacTok in miniature has instead of SDXL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lactok.models.ladd import UNetConfig, empty_text
from lactok.models.prediction import noise_of, require_prediction
from lactok.models.samplers import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class LatentDiffusionConfig:
    """Sizes of the network, of what it is told, and its noise; see `LatentDecoderConfig`. The defaults are SDXL's."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    text_positions: int = 77
    pixels_per_latent: int = 8
    prediction: str = "epsilon"
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)

    def __post_init__(self) -> None:
        require_prediction(self.prediction)
        if isinstance(self.unet, Mapping):  # as a checkpoint's header holds it
            object.__setattr__(self, "unet", UNetConfig(**self.unet))
        if isinstance(self.schedule, Mapping):
            object.__setattr__(self, "schedule", NoiseSchedule(**self.schedule))


def predict_noise(unet: UNet2DConditionModel, config: LatentDiffusionConfig, sample: Tensor, t: int | Tensor) -> Tensor:
    """The noise in latents (B, C, H, W) at timestep t (an int, or int64 (B,)), with zero text and nothing else."""
    sample = sample.to(unet.dtype)
    t = torch.as_tensor(t, device=sample.device).expand(len(sample))
    text = empty_text(config.unet, config.text_positions, config.pixels_per_latent, sample)
    (output,) = unet(
        sample, t, encoder_hidden_states=text.states, added_cond_kwargs=text.added, return_dict=False
    )  # fmt: skip
    return noise_of(output, sample, t, config.prediction, config.schedule)
