"""The training objective of TiTok, recipe `titok`.

L1 + perceptual distance + codebook and commitment terms on the decoded image, all networks together: the objective
of TiTok's single-stage training (arXiv 2406.07550, section 3.3) without the adversarial term. The published TiTok-S-128
was trained in two stages, first against the proxy codes of a trained MaskGIT-VQGAN, whose pixel decoder it kept. No
miniature of that exists; so that the pixel decoder learns to heed its codes before the transformers give good ones, a
small pixel encoder replaces the transformers in every other sample at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.tokenizers.titok.model import TiTok, TiTokConfig
from baselines.tokenizers.titok.vit import TiTokDecoder, TiTokEncoder
from lactok.train.attention_start import grid_places, mimetic_
from lactok.train.codebook import DeadCodes, RevivalOptions, codebook_statistics
from lactok.train.distances import PerceptualDistance, PerceptualOptions, mean_psnr
from lactok.train.parts import is_dry_run
from lactok.train.recipe import Batch, Losses, Provenance, Recipe, export_model
from lactok.weights import WeightsSource

MEAN_PIXEL = 0.45
"""Of photographs, about (ImageNet's means are 0.485, 0.456, 0.406)."""

AID_WIDTH = 64
"""Channels of the pixel encoder."""

AID_LOGITS = 2.0
"""Deviation of the weights behind its logits at the start."""


@dataclass
class TiTokTrainingOptions(PerceptualOptions, RevivalOptions):
    """model: the network, whose image_size is that of the training images.

    pixel: weight of the L1 term (on [-1, 1]).
    quantize_from: the first step at which the decoder sees code embeddings; before it, the encoder's unit vectors.
    aid_until: share of the steps in which the pixel encoder replaces the transformers in every other sample.
    """

    model: TiTokConfig = field(default_factory=TiTokConfig)
    pixel: float = 1.0
    quantize_from: int = 0
    aid_until: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revival()
        self.refuse_scoring_network("a tokenizer")
        if self.model.output_size != self.model.image_size:
            raise ValueError(
                f"the decoder gives {self.model.output_size} pixels a side, the encoder reads "
                f"{self.model.image_size}: training needs the same"
            )


class TiTokRecipe(Recipe):
    """Trains a `TiTok`."""

    Options = TiTokTrainingOptions
    path_options = ("perceptual_weights",)
    rests = True  # the pixel encoder, from aid_until on
    options: TiTokTrainingOptions

    @classmethod
    def sources(cls, options: TiTokTrainingOptions) -> tuple[WeightsSource, ...]:
        return options.perceptual_sources()

    def __init__(self, options: TiTokTrainingOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        self.model = TiTok(options.model)
        _short_training_start(self.model)
        self.pixel_encoder = _pixel_encoder(options.model.pixel_codebook_size, options.model.vit_dec_patch_size)
        self.dead_codes = DeadCodes(options.model.codebook_size, options)
        self.frozen["perceptual"] = PerceptualDistance(options, load=not is_dry_run())

    @property
    def image_size(self) -> int:
        return self.options.model.image_size

    def forward(self, batch: Batch) -> Losses:
        options = self.options
        encoded = self.model.encode(batch.images)
        quantized, waiting = encoded.quantized, batch.step < options.quantize_from
        if self.training:
            self.dead_codes.note(encoded.ids, encoded.pre_quant)
            if waiting:
                quantized = F.normalize(encoded.pre_quant.float(), dim=1)
        logits = self.model.decode_logits(quantized)
        if self.training and batch.step < options.aid_until * self.total_steps:
            aided = torch.arange(len(logits), device=logits.device) % 2 == 1  # every other sample
            logits = torch.where(aided[:, None, None, None], self.pixel_encoder(2 * batch.images - 1), logits)
        output = self.model.decode_pixels(self.model.soft_embeddings(logits))
        pixel = (output - batch.images).abs().mean() * 2
        perceptual = self.frozen["perceptual"](batch.images, output).mean()
        quantizer = self.model.quantizer_losses(encoded.pre_quant, encoded.ids).total
        if waiting:
            # commitment to code embeddings that nobody sees would only draw the vectors together
            quantizer = 0 * quantizer
        total = options.pixel * pixel + options.perceptual * perceptual + quantizer
        parts = {"pixel": pixel, "perceptual": perceptual, "quantizer": quantizer}
        return Losses(total, {k: v.detach() for k, v in parts.items()})

    def after_step(self, step: int) -> None:
        self.dead_codes.revive(self.model.quantize, self.seed, step, self.total_steps)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return self.model.decode_ids(self.model.encode(images).ids)

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """PSNR (mean over images, dB), both distances, and the use and perplexity of the codebook."""
        ids = torch.cat([self.model.encode(part).ids for part in images.split(32)])
        outputs = torch.cat([self.model.decode_ids(part).float() for part in ids.split(32)])
        perceptual = [self.frozen["perceptual"](a, b) for a, b in zip(images.split(32), outputs.split(32), strict=True)]
        return {
            "psnr": mean_psnr(outputs, images),
            "pixel": (outputs - images).abs().mean().item() * 2,
            "perceptual": torch.cat(perceptual).mean().item(),
            **codebook_statistics(ids, self.options.model.codebook_size),
        }

    def export(self, path: Path, provenance: Provenance) -> None:
        """The model's weights, for `baselines.tokenizers.titok.model.TiTok`."""
        export_model(path, self.model, self.options.model, provenance.with_losses(self.options.losses))


def _short_training_start(model: TiTok) -> None:
    """Let the ids depend on the image, and the image on the ids, from the first step.

    The published start (layers of deviation 0.02, random places) suits a long training; a short one collapses from it,
    as attention hardly mixes patches into the latent tokens. Here latent token i begins at its share of the grid, row
    by row, and attention at one's own place.
    """
    embed, conv_out = model.encoder.patch_embed, model.pixel_decoder.conv_out
    nn.init.normal_(embed.weight, std=2 * embed.weight[0].numel() ** -0.5)
    nn.init.normal_(model.encoder.conv_out.weight, std=model.encoder.conv_out.in_channels**-0.5)
    nn.init.normal_(model.decoder.decoder_embed.weight)  # of unit vectors
    for vit in (model.encoder, model.decoder):
        start_transformer(vit)
    nn.init.normal_(model.pixel_quantize.embedding.weight)
    first, _, last = model.decoder.ffn
    assert isinstance(first, nn.Conv2d), f"the head begins with a {type(first).__name__}, expected a convolution"
    assert isinstance(last, nn.Conv2d), f"the head ends with a {type(last).__name__}, expected a convolution"
    nn.init.normal_(first.weight, std=first.in_channels**-0.5)
    nn.init.normal_(last.weight, std=last.in_channels**-0.5)
    assert embed.bias is not None, "the patch embedding has no bias"
    assert conv_out.bias is not None, "the pixel decoder's last convolution has no bias"
    with torch.no_grad():
        embed.bias.copy_(-MEAN_PIXEL * embed.weight.sum((1, 2, 3)))
        conv_out.weight.mul_(0.1)  # nearly an image of the mean colour
        conv_out.bias.fill_(MEAN_PIXEL)


@torch.no_grad()
def start_transformer(vit: TiTokEncoder | TiTokDecoder) -> None:
    """Places and attention of one of the two transformers."""
    width = vit.class_embedding.shape[1]
    cells = grid_places(width, vit.grid)
    vit.positional_embedding[1:] = cells
    shares = torch.tensor_split(cells, len(vit.latent_token_positional_embedding))
    vit.latent_token_positional_embedding.copy_(torch.stack([share.mean(0) for share in shares]))
    for block in cast(Sequence[Any], vit.transformer):  # timm's blocks, whose layers have no types
        query, key, value = block.attn.qkv.weight.chunk(3)
        mimetic_(query, key, value, block.attn.proj.weight)
        nn.init.xavier_uniform_(block.mlp.fc1.weight)
        nn.init.xavier_uniform_(block.mlp.fc2.weight)


def _pixel_encoder(pixel_codes: int, factor: int) -> nn.Module:
    """Images around 0 to logits over the pixel codes, `factor` pixels a place; a training aid, not part of TiTok."""
    halvings = factor.bit_length() - 1
    layers: list[nn.Module] = [nn.Conv2d(3, AID_WIDTH, 4, stride=2, padding=1)]
    for _ in range(halvings - 1):
        layers += [nn.SiLU(), nn.Conv2d(AID_WIDTH, AID_WIDTH, 4, stride=2, padding=1)]
    last = nn.Conv2d(AID_WIDTH, pixel_codes, 1)
    nn.init.normal_(last.weight, std=AID_LOGITS)  # a few codes of hundreds stand out
    return nn.Sequential(*layers, nn.SiLU(), last)
