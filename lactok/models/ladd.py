"""The latent decoder of LacTok: a frozen latent diffusion UNet, steered by a trainable copy that reads code embeddings.

The trainable copy is the paper's (section 4.1) and diffusers' ControlNet. Stock diffusers networks; what is LacTok's
own is the condition (the l2-normalised code-embedding map, resized to the latents) and that no text is given. The
numbers are those of the released LaCTok-T, whose UNet is SDXL-base-1.0's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lactok.models.prediction import noise_of, require_prediction
from lactok.models.samplers import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

TIME_IDS = 6
"""SDXL's size conditions: original height and width, top and left of the crop, target height and width."""


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the diffusion UNet by diffusers' names; the defaults are SDXL-base-1.0's (its unet/config.json).

    block_out_channels, transformer_layers_per_block, attention_head_dim (which counts heads): one value a level,
        highest resolution first; every level but the last halves.
    cross_attention_dim: width of the text states; None for a network that has no text, hence no CrossAttn blocks.
    addition_time_embed_dim: width of each of the six size conditions' embeddings; None for a network that takes
        neither sizes nor a pooled text; projection_class_embeddings_input_dim: all of them and the pooled text.
    """

    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (320, 640, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    cross_attention_dim: int | None = 2048
    transformer_layers_per_block: tuple[int, ...] = (1, 2, 10)
    attention_head_dim: tuple[int, ...] = (5, 10, 20)
    addition_time_embed_dim: int | None = 256
    projection_class_embeddings_input_dim: int | None = 2816

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
        if (self.addition_time_embed_dim is None) != (self.projection_class_embeddings_input_dim is None):
            raise ValueError(
                f"addition_time_embed_dim {self.addition_time_embed_dim} with projection_class_embeddings_input_dim "
                f"{self.projection_class_embeddings_input_dim}: expected both or neither"
            )

    @property
    def downsample_factor(self) -> int:
        """Latents must be a multiple of this on each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def pooled_dim(self) -> int | None:
        """Width of the pooled text (1280); None where none is taken."""
        if self.addition_time_embed_dim is None or self.projection_class_embeddings_input_dim is None:
            return None
        return self.projection_class_embeddings_input_dim - TIME_IDS * self.addition_time_embed_dim

    def encoder_arguments(self) -> dict[str, Any]:
        """What diffusers' UNet and ControlNet are both built with."""
        return {
            "in_channels": self.in_channels,
            "down_block_types": self.down_block_types,
            "mid_block_type": self.mid_block_type,
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
            "transformer_layers_per_block": self.transformer_layers_per_block,
            "attention_head_dim": self.attention_head_dim,
            "use_linear_projection": True,
            "addition_embed_type": None if self.addition_time_embed_dim is None else "text_time",
            "addition_time_embed_dim": self.addition_time_embed_dim,
            "projection_class_embeddings_input_dim": self.projection_class_embeddings_input_dim,
        }


@dataclass(frozen=True)
class LatentDecoderConfig:
    """Sizes of a `LatentDecoder`; the defaults are the released LaCTok-T's.

    condition_channels: length of a code embedding; condition_widths: of the convolutions that read the code-embedding
    map.
    text_positions: how many zero text states there are. pixels_per_latent: side in pixels, for the size conditions.
    prediction: what the UNet predicts, "epsilon" (the noise) or "v_prediction"; see lactok/models/prediction.py.
    schedule: of the noise that the UNet was trained on.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    condition_channels: int = 8
    condition_widths: tuple[int, ...] = (8, 32, 96, 256)
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
        object.__setattr__(self, "condition_widths", tuple(self.condition_widths))


@dataclass(frozen=True)
class EmptyText:
    """What stands where a text-to-image model has its prompt.

    states: zeros (B, text_positions, cross_attention_dim), which are not the embedding of an empty prompt.
    added: zeros for the pooled text and the size conditions, as diffusers takes them. None: the network takes none.
    """

    states: Tensor | None
    added: dict[str, Tensor] | None


def build_unet(config: UNetConfig) -> UNet2DConditionModel:
    """diffusers' network of these sizes; on the current default device."""
    from diffusers import UNet2DConditionModel  # seconds to import

    return UNet2DConditionModel(
        out_channels=config.out_channels,
        up_block_types=config.up_block_types,
        cross_attention_dim=(config.cross_attention_dim,) * len(config.block_out_channels),
        **config.encoder_arguments(),
    )


def build_controlnet(config: LatentDecoderConfig) -> ControlNetModel:
    """The trainable copy with its zero convolutions, not yet started from a UNet; on the current default device."""
    from diffusers import ControlNetModel

    network = ControlNetModel(
        conditioning_channels=config.condition_channels,
        conditioning_embedding_out_channels=config.condition_widths,
        cross_attention_dim=config.unet.cross_attention_dim,
        **config.unet.encoder_arguments(),
    )
    for convolution in network.controlnet_cond_embedding.blocks:
        convolution.stride = (1, 1)  # published: every stride is 1; the stock embedding goes from pixels to latents
    return network


def empty_text(unet: UNetConfig, text_positions: int, pixels_per_latent: int, sample: Tensor) -> EmptyText:
    """The zeros and sizes that go with latents (B, C, H, W) where no text is given; their dtype and device.

    Size conditions are the image's own size, not cropped: (1024, 1024, 0, 0, 1024, 1024). The released code always
    says 1024, the one size that it decodes.
    """
    batch, states, added = len(sample), None, None
    if unet.cross_attention_dim is not None:
        states = sample.new_zeros(batch, text_positions, unet.cross_attention_dim)
    if unet.pooled_dim is not None:
        height, width = (side * pixels_per_latent for side in sample.shape[-2:])
        time_ids = sample.new_tensor([[height, width, 0, 0, height, width]]).expand(batch, -1)
        added = {"text_embeds": sample.new_zeros(batch, unet.pooled_dim), "time_ids": time_ids}
    return EmptyText(states, added)


class LatentDecoder(nn.Module):
    """Predicts the noise in latents (B, C, H, W) from a code-embedding map (B, D, h, w).

    unet: diffusers' UNet2DConditionModel; controlnet: its ControlNetModel, whose condition has the latents' size.
    Either is built anew where none is given.
    """

    def __init__(
        self,
        config: LatentDecoderConfig | None = None,
        unet: UNet2DConditionModel | None = None,
        controlnet: ControlNetModel | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or LatentDecoderConfig()
        self.unet = unet or build_unet(config.unet)
        self.controlnet = controlnet or build_controlnet(config)

    def copy_unet_encoder(self) -> None:
        """Start the trainable copy from the UNet's encoder half; its zero convolutions stay as they are.

        To be called before adapters are added to the UNet.
        """
        ours = self.unet.state_dict()
        shared = {name: ours[name] for name in self.controlnet.state_dict() if name in ours}
        self.controlnet.load_state_dict(shared, strict=False)

    def condition(self, embeddings: Tensor, size: Sequence[int]) -> Tensor:
        """The code-embedding map (B, D, h, w) at the latents' `size`: nearest, float32, source index floor(i h / H)."""
        return F.interpolate(embeddings.float(), size=tuple(size), mode="nearest")

    def empty_text(self, sample: Tensor) -> EmptyText:
        """`empty_text` of this network's sizes."""
        return empty_text(self.config.unet, self.config.text_positions, self.config.pixels_per_latent, sample)

    def predict(self, sample: Tensor, t: int | Tensor, embeddings: Tensor, scale: float = 1.0) -> Tensor:
        """The noise in latents (B, C, H, W) at timestep t (an int, or int64 (B,)), in the UNet's dtype.

        Of a UNet that predicts the velocity it is float32.
        embeddings: (B, D, h, w) as the quantizer looks them up, unit length; scale: of the trainable copy's residuals
        (0: unsteered). H and W: multiples of config.unet.downsample_factor.
        """
        seen = sample.to(self.unet.dtype)
        t = torch.as_tensor(t, device=sample.device).expand(len(sample))
        text = self.empty_text(seen)
        down, mid = self.controlnet(
            seen,
            t,
            encoder_hidden_states=text.states,
            controlnet_cond=self.condition(embeddings, seen.shape[-2:]).to(seen.dtype),
            conditioning_scale=scale,
            added_cond_kwargs=text.added,
            return_dict=False,
        )
        (output,) = self.unet(
            seen,
            t,
            encoder_hidden_states=text.states,
            added_cond_kwargs=text.added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )
        return noise_of(output, sample, t, self.config.prediction, self.config.schedule)

    def forward(self, sample: Tensor, t: int | Tensor, embeddings: Tensor, scale: float = 1.0) -> Tensor:
        """`predict`."""
        return self.predict(sample, t, embeddings, scale)
