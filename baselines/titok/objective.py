"""The training objective of TiTok, recipe `titok`.

L1 + perceptual distance + codebook and commitment terms on the painted picture, all networks together: the objective
of TiTok's single-stage training (arXiv 2406.07550, section 3.3, equation 6) without the adversarial term. The published
TiTok-S-128 was trained in two stages, first against the proxy codes of a trained MaskGIT-VQGAN, of which no miniature
exists; here pixel codebook and pixel decoder are learned with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines.titok.model import TiTok, TiTokConfig
from lactok.train.codebook import DeadCodes, RevivalOptions, codebook_statistics
from lactok.train.export import export_model
from lactok.train.perceptual import PerceptualDistance
from lactok.train.recipe import Batch, Losses, Provenance, Recipe
from lactok.train.reconstruction import mean_psnr


@dataclass
class TiTokTrainingOptions(RevivalOptions):
    """model: the network, whose image_size is that of the training pictures.

    pixel, perceptual: weights of the L1 term (on [-1, 1]) and of the feature distance; 0 leaves the network unloaded.
    perceptual_stages: feature maps compared, 1 to 5, from 1/2 of the picture's size on.
    """

    model: TiTokConfig = field(default_factory=TiTokConfig)
    pixel: float = 1.0
    perceptual: float = 1.0
    perceptual_stages: int = 4

    def __post_init__(self) -> None:
        if self.model.output_size != self.model.image_size:
            raise ValueError(
                f"the decoder paints {self.model.output_size} pixels a side, the encoder reads "
                f"{self.model.image_size}: training needs the same"
            )


class TiTokRecipe(Recipe):
    """Trains a `TiTok`."""

    Options = TiTokTrainingOptions

    def __init__(self, options: TiTokTrainingOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        self.model = TiTok(options.model)
        nn.init.normal_(self.model.pixel_quantize.embedding.weight)  # learned here: the published one came trained
        self.dead_codes = DeadCodes(options.model.codebook_size, options)
        if options.perceptual:
            self.frozen["perceptual"] = PerceptualDistance(options.perceptual_stages)

    @property
    def image_size(self) -> int:
        return self.options.model.image_size

    def forward(self, batch: Batch) -> Losses:
        options = self.options
        encoded = self.model.encode(batch.images)
        output = self.model.decode(encoded.quantized)
        pixel = (output - batch.images).abs().mean() * 2
        perceptual = self._perceptual(batch.images, output).mean()
        quantizer = self.model.quantizer_losses(encoded.pre_quant, encoded.ids).total
        if self.training:
            self.dead_codes.note(encoded.ids, encoded.pre_quant)
        total = options.pixel * pixel + options.perceptual * perceptual + quantizer
        parts = {"pixel": pixel, "perceptual": perceptual, "quantizer": quantizer}
        return Losses(total, {k: v.detach() for k, v in parts.items()})

    def _perceptual(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        if "perceptual" not in self.frozen:
            return images.new_zeros(len(images))
        return self.frozen["perceptual"](images, reconstructions)

    def after_step(self, step: int) -> None:
        self.dead_codes.revive(self.model.quantize, self.seed, step, self.total_steps)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return self.model.decode_ids(self.model.encode(images).ids)

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """PSNR (mean over pictures, dB), both distances, and the use and perplexity of the codebook."""
        ids = torch.cat([self.model.encode(part).ids for part in images.split(32)])
        outputs = torch.cat([self.model.decode_ids(part).float() for part in ids.split(32)])
        perceptual = [self._perceptual(a, b) for a, b in zip(images.split(32), outputs.split(32), strict=True)]
        return {
            "psnr": mean_psnr(outputs, images),
            "pixel": (outputs - images).abs().mean().item() * 2,
            "perceptual": torch.cat(perceptual).mean().item(),
            **codebook_statistics(ids, self.options.model.codebook_size),
        }

    def export(self, path: Path, provenance: Provenance) -> None:
        """The model's weights, for `baselines.titok.model.TiTok`."""
        export_model(path, self.model, self.options.model, provenance)
