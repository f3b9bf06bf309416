"""The training objective of LlamaGen's VQ tokenizer, recipe `vq`.

L1 + perceptual distance + codebook and commitment terms, as in VQGAN (arXiv 2012.09841, equations 4 to 6) and LlamaGen
(arXiv 2406.06525, section 2.1), without the adversarial term. The perceptual network is EfficientNet-Lite2, which
scores nothing. Codes that the encoder stopped using are moved onto its vectors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from torch import Tensor

from lactok import registry
from lactok.checkpoint_file import CheckpointMetadata, save_checkpoint
from lactok.data.batches import rng
from lactok.models.vq import VQConfig, VQModel
from lactok.train.recipe import Batch, Losses, Provenance, Recipe

REVIVAL = 11
"""Stream of random numbers, lactok/data/batches.py, that picks the vectors onto which dead codes are moved."""


@dataclass
class VQOptions:
    """model: the network; image_size: pixels, side of the training pictures.

    pixel, perceptual: weights of the L1 term (on [-1, 1]) and of the feature distance; 0 leaves the network unloaded.
    perceptual_stages: feature maps compared, 1 to 5, from 1/2 of the picture's size on.
    revive_every: steps between looks at the codebook; revive_until: share of the steps after which it is left alone;
    dead_below: a code is dead when it was used less than this share of the uniform use since the last look.
    """

    model: VQConfig = field(default_factory=VQConfig)
    image_size: int = 256
    pixel: float = 1.0
    perceptual: float = 1.0
    perceptual_stages: int = 4
    revive_every: int = 50
    revive_until: float = 0.8
    dead_below: float = 0.03

    def __post_init__(self) -> None:
        if self.image_size % self.model.downsample_factor:
            raise ValueError(
                f"image_size={self.image_size} is no multiple of {self.model.downsample_factor}, "
                "the pixels of an id's side"
            )


class VQRecipe(Recipe):
    """Trains a `VQModel`."""

    Options = VQOptions

    def __init__(self, options: VQOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        self.model = VQModel(options.model)
        self.register_buffer("used", torch.zeros(options.model.codebook_size, dtype=torch.int64))
        self._vectors: Tensor | None = None  # the encoder's last ones, (M, D), for the revival of dead codes
        if options.perceptual:
            self.frozen["perceptual"] = registry.load("features", "effnet-lite2")()

    @property
    def image_size(self) -> int:
        return self.options.image_size

    def forward(self, batch: Batch) -> Losses:
        target = batch.images * 2 - 1
        out = self.model(target)
        pixel = (out.reconstruction - target).abs().mean()
        perceptual = self._perceptual(batch.images, (out.reconstruction + 1) / 2)
        quantizer = out.losses.total
        if self.training:
            self._note_use(out.encoded.ids, out.encoded.pre_quant)
        total = self.options.pixel * pixel + self.options.perceptual * perceptual + quantizer
        parts = {"pixel": pixel, "perceptual": perceptual, "quantizer": quantizer}
        return Losses(total, {k: v.detach() for k, v in parts.items()})

    def _perceptual(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Mean squared distance of channel-normalised features, averaged over stages (LPIPS' form, uncalibrated)."""
        if "perceptual" not in self.frozen:
            return images.new_zeros(())
        network, count = self.frozen["perceptual"], self.options.perceptual_stages
        with torch.no_grad():
            wanted = network.stages(images, count)
        got = network.stages(reconstructions, count)
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
            for a, b in zip(wanted, got, strict=True)
        ]
        return torch.stack(distances).mean()

    @torch.no_grad()
    def _note_use(self, ids: Tensor, pre_quant: Tensor) -> None:
        self.used += torch.bincount(ids.flatten(), minlength=len(self.used))
        self._vectors = pre_quant.detach().float().permute(0, 2, 3, 1).flatten(0, 2)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Every `revive_every` steps, move dead codes onto random vectors of the step's last micro-batch."""
        options, done = self.options, step + 1
        if done % options.revive_every or done > options.revive_until * self.total_steps:
            return
        dead = torch.nonzero(self.used < options.dead_below * self.used.float().mean()).flatten()
        weight = self.model.quantizer.embedding.weight
        order = rng(self.seed, REVIVAL, step).permutation(len(self._vectors))[: len(dead)]
        chosen = self._vectors[torch.from_numpy(order).to(weight.device)]
        if options.model.codebook_l2_norm:
            chosen = F.normalize(chosen, dim=1)
        weight[dead[: len(chosen)]] = chosen.to(weight.dtype)
        broadcast(weight.data)  # ranks saw other pictures: all take what the first one made of its own
        self.used.zero_()

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return (self.model.decode(self.model.encode(images * 2 - 1).quantized) + 1) / 2

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """PSNR (mean over pictures, dB), both distances, and the use and perplexity of the codebook."""
        errors, ids, pixel, perceptual = [], [], [], []
        for part in images.split(32):
            encoded = self.model.encode(part * 2 - 1)
            output = (self.model.decode(encoded.quantized).float() + 1) / 2
            errors.append((output.clamp(0, 1) - part).square().mean((1, 2, 3)))
            pixel.append((output - part).abs().mean((1, 2, 3)) * 2)
            perceptual.append(self._perceptual(part, output).expand(len(part)))
            ids.append(encoded.ids.flatten())
        share = torch.bincount(torch.cat(ids), minlength=self.options.model.codebook_size).double()
        share = share / share.sum()
        entropy = -(share[share > 0] * share[share > 0].log()).sum().item()
        return {
            "psnr": (-10 * torch.cat(errors).clamp_min(1e-10).log10()).mean().item(),
            "pixel": torch.cat(pixel).mean().item(),
            "perceptual": torch.cat(perceptual).mean().item(),
            "codebook_use": (share > 0).double().mean().item(),
            "codebook_perplexity": math.exp(entropy),
        }

    def export(self, path: Path, provenance: Provenance) -> None:
        """The model's weights, for `lactok.models.vq.VQModel`."""
        metadata = CheckpointMetadata(
            config=dataclasses.asdict(self.options.model),
            image_size=self.options.image_size,
            training=provenance.training,
            recipe=provenance.recipe,
            code_revision=provenance.code_revision,
            data=provenance.training.data or "",
        )
        save_checkpoint(path, self.model.state_dict(), metadata)
