"""The training objective of LlamaGen's VQ tokenizer, recipe `vq`.

L1 + perceptual distance + codebook and commitment terms, as in VQGAN (arXiv 2012.09841, equations 4 to 6) and LlamaGen
(arXiv 2406.06525, section 2.1), without the adversarial term. Codes that the encoder stopped using are moved onto its
vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lactok.models.vq import VQConfig, VQModel
from lactok.train.codebook import DeadCodes, RevivalOptions, codebook_statistics
from lactok.train.distances import PerceptualDistance, PerceptualOptions, mean_psnr
from lactok.train.parts import is_dry_run
from lactok.train.recipe import Batch, Losses, Provenance, Recipe, export_model
from lactok.weights import WeightsSource


@dataclass
class VQOptions(PerceptualOptions, RevivalOptions):
    """model: the network; image_size: pixels, side of the training images.

    pixel: weight of the L1 term (on [-1, 1]).
    """

    model: VQConfig = field(default_factory=VQConfig)
    image_size: int = 256
    pixel: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revival()
        self.refuse_scoring_network("a tokenizer")
        if self.image_size % self.model.downsample_factor:
            raise ValueError(
                f"image_size={self.image_size} is no multiple of {self.model.downsample_factor}, "
                "the pixels of an id's side"
            )


class VQRecipe(Recipe):
    """Trains a `VQModel`."""

    Options = VQOptions
    path_options = ("perceptual_weights",)
    options: VQOptions

    @classmethod
    def sources(cls, options: VQOptions) -> tuple[WeightsSource, ...]:
        return options.perceptual_sources()

    def __init__(self, options: VQOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        self.model = VQModel(options.model)
        self.dead_codes = DeadCodes(options.model.codebook_size, options)
        self.frozen["perceptual"] = PerceptualDistance(options, load=not is_dry_run())

    @property
    def image_size(self) -> int:
        return self.options.image_size

    def forward(self, batch: Batch) -> Losses:
        target = batch.images * 2 - 1
        out = self.model(target)
        pixel = (out.reconstruction - target).abs().mean()
        perceptual = self.frozen["perceptual"](batch.images, (out.reconstruction + 1) / 2).mean()
        quantizer = out.losses.total
        if self.training:
            self.dead_codes.note(out.encoded.ids, out.encoded.pre_quant)
        total = self.options.pixel * pixel + self.options.perceptual * perceptual + quantizer
        parts = {"pixel": pixel, "perceptual": perceptual, "quantizer": quantizer}
        return Losses(total, {k: v.detach() for k, v in parts.items()})

    def after_step(self, step: int) -> None:
        self.dead_codes.revive(self.model.quantizer, self.seed, step, self.total_steps)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return (self.model.decode(self.model.encode(images * 2 - 1).quantized) + 1) / 2

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """PSNR (mean over images, dB), both distances, and the use and perplexity of the codebook."""
        outputs, ids, pixel, perceptual = [], [], [], []
        for part in images.split(32):
            encoded = self.model.encode(part * 2 - 1)
            output = (self.model.decode(encoded.quantized).float() + 1) / 2
            pixel.append((output - part).abs().mean((1, 2, 3)) * 2)
            perceptual.append(self.frozen["perceptual"](part, output))
            outputs.append(output)
            ids.append(encoded.ids)
        return {
            "psnr": mean_psnr(torch.cat(outputs), images),
            "pixel": torch.cat(pixel).mean().item(),
            "perceptual": torch.cat(perceptual).mean().item(),
            **codebook_statistics(torch.cat(ids), self.options.model.codebook_size),
        }

    def export(self, path: Path, provenance: Provenance) -> None:
        """The model's weights, for `lactok.models.vq.VQModel`."""
        export_model(path, self.model, self.options.model, provenance.with_losses(self.options.losses))
