"""FlexTok (arXiv 2502.13967): VAE latents -> registers -> ids, and a rectified-flow model back from any prefix of ids.

Ported from a description of the published code (apple/ml-flextok); state_dict.py names its checkpoints' tensors.
Latents are (B, C, S, S), scaled; an image's N ids are ordered, and the first k of them stand for it alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.tokenizers.flextok import fsq
from baselines.tokenizers.flextok.config import FlexTokConfig
from baselines.tokenizers.flextok.sampler import Sampling, sample
from baselines.tokenizers.flextok.transformer import (
    Block,
    ModulatedBlock,
    modulate,
    norm,
    patchify,
    sincos_positions,
    unpatchify,
)
from lactok.models.autoencoder import build_autoencoder
from lactok.models.quantizer import require_finite

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

TIME_PERIOD = 256
"""Ratio of the fastest to the slowest frequency of the time embedding (published; not the usual 10000)."""

INIT_STD = 0.02
"""Of the truncated normal that starts registers, positions, mask and null vectors (published)."""


@dataclass(frozen=True)
class Encoded:
    """What `FlexTok.encode_latents` gives. codes: float32 (B, N, D) in [-1, 1], with the straight-through gradient;
    ids: int64 (B, N); pre_quant: (B, N, D), the registers' numbers before rounding."""

    codes: Tensor
    ids: Tensor
    pre_quant: Tensor


def register_mask(patches: int, registers: int, device: torch.device) -> Tensor:
    """Bool (N, N), N = patches + registers: all look at all patches, register i also at registers 0 to i."""
    size = patches + registers
    return (
        torch.ones(size, size, dtype=torch.bool, device=device)
        .tril()
        .index_fill_(1, torch.arange(patches, device=device), True)
    )


class RegisterEncoder(nn.Module):
    """Latents to the registers' numbers, (B, N, D) with N = registers and D = len(levels)."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        trunk = config.encoder
        self.patch_embed = nn.Linear(config.patch_size**2 * config.latent_channels, trunk.dim)
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(trunk.dim, config.grid))
        self.registers = nn.Parameter(torch.empty(config.registers, trunk.dim))
        self.blocks = nn.ModuleList(Block(trunk) for _ in range(trunk.depth))
        self.head = nn.Linear(trunk.dim, len(config.levels))
        nn.init.trunc_normal_(self.registers, std=INIT_STD)
        _xavier(self.patch_embed, *self.blocks.modules())

    def forward(self, latents: Tensor) -> Tensor:
        """latents: (B, C, H, W), sides at most the configured one."""
        patches = embed_patches(self.patch_embed, self.positions, latents, self.patch_size)
        x = torch.cat([patches, self.registers.to(patches.dtype).expand(len(latents), -1, -1)], 1)
        mask = register_mask(patches.shape[1], len(self.registers), x.device)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(norm(x[:, patches.shape[1] :]))


class FlowDecoder(nn.Module):
    """Velocity of noised latents, given a time and a condition made from codes.

    The time embedding has the frequencies (1000 / max_timestep) x TIME_PERIOD^(-i / half); time itself is 0 to 1.
    """

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.patch_size, self.frequencies = config.patch_size, config.frequencies
        self.max_timestep = config.max_timestep
        trunk, patch = config.decoder, config.patch_size**2 * config.latent_channels
        self.embed_codes = nn.Linear(len(config.levels), trunk.dim)
        self.register_positions = nn.Parameter(torch.empty(1, 1, trunk.dim, config.registers))
        self.mask_token = nn.Parameter(torch.empty(trunk.dim))
        self.null_token = nn.Parameter(torch.empty(trunk.dim))
        self.patch_embed = nn.Linear(patch, trunk.dim)
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(trunk.dim, config.grid))
        self.time_embed = nn.Sequential(
            nn.Linear(config.frequencies, trunk.dim), nn.SiLU(), nn.Linear(trunk.dim, trunk.dim)
        )
        blocks = [ModulatedBlock(trunk) for _ in range(trunk.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.modulation = nn.Linear(trunk.dim, 2 * trunk.dim)
        self.head = nn.Linear(trunk.dim, patch)
        for vector in (self.register_positions, self.mask_token, self.null_token):
            nn.init.trunc_normal_(vector, std=INIT_STD)
        _xavier(self.embed_codes, self.patch_embed, *self.time_embed, *self.blocks.modules())
        for linear in (self.modulation, self.head, *(block.modulation for block in blocks)):
            nn.init.zeros_(linear.weight)  # adaLN-Zero
            nn.init.zeros_(linear.bias)

    def condition(self, codes: Tensor, keep: Tensor) -> Tensor:
        """Codes (B, N, D) to register tokens (B, N, dim); image i's from keep[i] on (int64 (B,)) are the mask vector.

        A masked register carries no position.
        """
        tokens = self.embed_codes(codes) + self.register_positions[0].mT
        masked = torch.arange(codes.shape[1], device=codes.device) >= keep[:, None]
        return torch.where(masked[..., None], self.mask_token.to(tokens.dtype), tokens)

    def null_condition(self, batch: int) -> Tensor:
        """Register tokens (batch, N, dim) that say nothing: all the null vector."""
        return self.null_token.expand(batch, self.register_positions.shape[-1], -1)

    def time_frequencies(self, times: Tensor) -> Tensor:
        """Times (B,) in [0, 1] to cosines then sines, float32 (B, frequencies)."""
        half = self.frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=times.device)
        angles = times.float()[:, None] * (1000 / self.max_timestep * torch.exp(-math.log(TIME_PERIOD) * steps / half))
        return torch.cat([angles.cos(), angles.sin()], -1)

    def forward(self, noised: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """noised: (B, C, H, W); times: (B,), or (1,) for all; condition: (B, N, dim). Gives float32 (B, C, H, W)."""
        patches = embed_patches(self.patch_embed, self.positions, noised, self.patch_size)
        count = patches.shape[1]
        x = torch.cat([patches, condition.to(patches.dtype)], 1)
        kinds = (torch.arange(x.shape[1], device=x.device) >= count).long()
        embedded = F.silu(self.time_embed(self.time_frequencies(times)))
        for block in self.blocks:
            x = block(x, embedded, kinds)
        shift, scale = self.modulation(embedded)[:, None].chunk(2, -1)
        velocity = self.head(modulate(norm(x[:, :count]), shift, scale))
        return unpatchify(velocity, self.patch_size, *noised.shape[-2:]).float()


class FlexTok(nn.Module):
    """The whole tokenizer. `vae` is None where the configuration has none."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = None if config.vae is None else build_autoencoder(config.vae)
        self.encoder = RegisterEncoder(config)
        self.decoder = FlowDecoder(config)

    def latents_of(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to scaled latents, float32 whatever the dtype around it (as published).

        noise: None for the posterior's mean, else standard normal values of the latents' shape, for a sample.
        """
        vae, scale = self._autoencoder()
        with torch.autocast(images.device.type, enabled=False):
            posterior = vae.encode(images.float()).latent_dist
            latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
            return latents * scale

    def images_of(self, latents: Tensor) -> Tensor:
        """Scaled latents to images (B, 3, H, W) around [-1, 1], not clamped; float32 as `latents_of`."""
        vae, scale = self._autoencoder()
        with torch.autocast(latents.device.type, enabled=False):
            return vae.decode(latents.float() / scale).sample

    def _autoencoder(self) -> tuple[AutoencoderKL, float]:
        """The network between images and latents, and the latents' scaling factor. ValueError where there is none."""
        if self.vae is None or self.config.vae is None:
            raise ValueError("a FlexTok without VAE takes latents, not images")
        return self.vae, self.config.vae.scaling_factor

    def encode_latents(self, latents: Tensor) -> Encoded:
        """Scaled latents to ids. Raises FloatingPointError as the shared `VectorQuantizer` does."""
        pre_quant = self.encoder(latents)
        if not self.training:
            require_finite(pre_quant, "the encoder's vectors")
        codes, ids = fsq.quantize(pre_quant, self.config.levels)
        return Encoded(codes, ids, pre_quant)

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes (B, N, D) of int64 ids (B, N)."""
        return fsq.codes_of(ids, self.config.levels)

    def decode_latents(self, ids: Tensor, keep: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
        """Ids (B, n), n at most N, of which image i's first keep[i] count, to scaled latents of the shape of `noise`.

        noise: standard normal (B, C, S, S), where the flow starts.
        """
        decoder = self.decoder
        condition = decoder.condition(self.lookup(F.pad(ids, (0, self.config.registers - ids.shape[1]))), keep)
        both = torch.cat([condition, decoder.null_condition(len(ids)).to(condition.dtype)])

        def predict(x: Tensor, time: Tensor) -> tuple[Tensor, Tensor | None]:
            if not sampling.guided:
                return decoder(x, time, condition), None
            cond, uncond = decoder(torch.cat([x, x]), time, both).chunk(2)
            return cond, uncond

        return sample(predict, noise, sampling)


def embed_patches(embed: nn.Linear, positions: Tensor, latents: Tensor, size: int) -> Tensor:
    """Latents (B, C, H, W) to patch tokens (B, P, dim) with their positions; smaller ones take the table's corner.

    Raises ValueError for sides that do not divide into patches or have more of them than the table.
    """
    height, width = latents.shape[-2:]
    rows, columns = height // size, width // size
    if height % size or width % size or max(rows, columns) > positions.shape[-1] or min(rows, columns) < 1:
        raise ValueError(
            f"latents of {width}x{height}: both sides must be multiples of {size}, at most {size * positions.shape[-1]}"
        )
    corner = positions[..., :rows, :columns].flatten(2).mT
    return embed(patchify(latents, size)) + corner


def _xavier(*modules: nn.Module) -> None:
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
