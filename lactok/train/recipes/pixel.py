"""Recipe `pixel`: the paper's stage 2. The accelerated decoder is fine-tuned end to end on the images themselves.

Equation 6: a few-step LoRA is merged into the frozen UNet; from pure noise NFE 1 (`hypersd`), or the
few-step chain with gradients through the last evaluation alone (`tlcm`), the autoencoder's decoder, and the perceptual
distance from the original. Only the trainable copy learns. A colour term, which the paper does not have, is off by
default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lactok.checkpoint_file import require_made_with
from lactok.interface import TrainingCompute
from lactok.models.few_step_lora import (
    HYPERSD,
    TLCM,
    TLCM_CONFIG,
    evaluated_timesteps,
    merge_hypersd,
    merge_tlcm,
    require_few_step_lora,
    tlcm_sources,
)
from lactok.models.lactok_state_dict import is_wrapped
from lactok.models.samplers import consistency_sampler
from lactok.tokenizers.mini_parts import (
    FEW_STEP_LORA_FILES,
    FIRST_STAGE,
    Base,
    load_few_step_lora,
    load_trainable_copy,
)
from lactok.train.distances import PerceptualDistance, PerceptualOptions, mean_psnr
from lactok.train.parts import is_dry_run, left_by, only
from lactok.train.recipe import Batch, Losses, Provenance
from lactok.train.recipes.trainable_copy import TrainableCopyOptions, TrainableCopyRecipe
from lactok.weights import (
    LocalWeights,
    UnpublishedWeights,
    WeightsError,
    WeightsSource,
    load_state_dict,
    locate,
    require_entries,
)

SAMPLER = 0
"""First of a sample's RNG streams, one a noise of the chain; see lactok/train/noise.py."""

TRAINABLE_COPY = "decoder.controlnet."


@dataclass
class PixelOptions(PerceptualOptions, TrainableCopyOptions):
    """accelerator: "hypersd" or "tlcm". evaluations: NFE of tlcm's chain, 1 to 7; 2 as in the paper (999, 499).

    start: the trainable copy after stage 1, a checkpoint of recipe=diffusion; null: that of the run next to this one,
    else, for
        networks=mini, the miniature that ships.
    adapter: the few-step LoRA's checkpoint; null: for networks=mini that of the run of recipe=accelerator next to this
        one, else the miniature that ships; for sdxl the hub's (tlcm: with its adapter_config.json next to it).
    perceptual_network: the paper says LPIPS and not with which network; networks=mini refuses lpips-alex, which scores.
    perceptual, pixel, colour: weights of that distance, of L1 on [-1, 1], and of the squared error of the mean colours
        of colour_cells x colour_cells cells; the paper's are 1, 0, 0.
    """

    accelerator: str | None = None
    evaluations: int = 2
    start: str | None = None
    adapter: str | None = None
    perceptual_network: str = "lpips-vgg"
    pixel: float = 0.0
    colour: float = 0.0
    colour_cells: int = 8

    def __post_init__(self) -> None:
        PerceptualOptions.__post_init__(self)
        TrainableCopyOptions.__post_init__(self)
        evaluated_timesteps(require_few_step_lora(self.accelerator), self.evaluations)
        if self.networks == "mini":
            self.refuse_scoring_network("a miniature")


class PixelRecipe(TrainableCopyRecipe[PixelOptions]):
    """Stage 2."""

    Options = PixelOptions
    path_options = (*TrainableCopyRecipe.path_options, "start", "adapter", "perceptual_weights")

    @classmethod
    def with_inputs(cls, options: PixelOptions, runs: Path) -> PixelOptions:
        options = super().with_inputs(options, runs)
        if options.networks != "mini":
            return replace(options, start=left_by(runs, "diffusion-paper", options.start))
        adapter = left_by(runs, f"accelerator-{options.accelerator}-mini", options.adapter)
        return replace(options, start=left_by(runs, "diffusion-mini", options.start), adapter=adapter)

    @classmethod
    def sources(cls, options: PixelOptions) -> tuple[WeightsSource, ...]:
        """The frozen parts, the start of the trainable copy, the few-step LoRA, and LPIPS where it trains."""
        own = _start_source(options), *_few_step_lora_sources(options), *options.perceptual_sources()
        return *super().sources(options), *own

    def __init__(self, options: PixelOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        self.accelerator = require_few_step_lora(options.accelerator)
        self.timesteps = evaluated_timesteps(self.accelerator, options.evaluations)
        self.sampler = consistency_sampler(self.timesteps)
        self._before: TrainingCompute | None = None
        self._adapter: str | None = None
        if not is_dry_run():
            self._start_mini(self._base) if self._base else self._start_published()
        if options.perceptual:
            self.frozen["perceptual"] = PerceptualDistance(options, load=not is_dry_run())

    def start_from(self, path: Path) -> None:
        super().start_from(path)
        self._before = None  # the file that it begins with counts stage 1 already

    def _start_mini(self, base: Base) -> None:
        options = self.options
        copy, made, file = load_trainable_copy(_start_source(options))
        require_made_with(file.path, "VQ encoder", made.vq, base.vq_file.path)
        require_made_with(file.path, "diffusion UNet", made.base, base.diffusion.file.path)
        if made.decoder != self.config.decoder:
            raise WeightsError(f"{file.path} has other sizes than options.condition_widths says: {made.decoder}")
        self.control.load_state_dict(copy.state_dict())
        self._before = file.metadata.training
        adapter = load_few_step_lora(self.accelerator, options.adapter)
        require_made_with(adapter.file.path, "diffusion UNet", adapter.config.base, base.diffusion.file.path)
        adapter.merge(self.frozen["unet"])
        self._adapter = adapter.file.tensors

    def _start_published(self) -> None:
        options = self.options
        path = locate(_start_source(options))
        state = load_state_dict(path)
        state = state.get("model", state)
        if is_wrapped(state):
            raise WeightsError(f"{path} holds a few-step LoRA already: it is no trainable copy after stage 1")
        state = {name: tensor.float() for name, tensor in only(state, TRAINABLE_COPY).items()}
        require_entries(
            state, {n: tuple(t.shape) for n, t in self.control.state_dict().items()}, f"the trainable copy ({path})"
        )
        self.control.load_state_dict(state)
        paths = [locate(source) for source in _few_step_lora_sources(options)]
        merge: Callable[..., None] = merge_hypersd if self.accelerator == "hypersd" else merge_tlcm
        merge(self.frozen["unet"], *paths)

    def _decoded(self, images: Tensor, seeds: Sequence[int], size: int) -> Tensor:
        """Images (B, 3, S, S) around [-1, 1] from their code embeddings at `size` pixels and pure noise."""
        network, embeddings = self.lactok(), self.embeddings(images, size)

        def predict(x: Tensor, t: int) -> Tensor:
            if t == self.timesteps[-1]:
                return network.decoder.predict(x, t, embeddings)
            with torch.no_grad():
                noise = network.decoder.predict(x, t, embeddings)
            torch.clear_autocast_cache()  # what autocast cast without gradients would stay without them
            return noise

        noises = self.noises(images, seeds, self.sampler.draws, SAMPLER)
        return network.images_of(self.sampler(predict, noises, self.schedule))

    def _distances(self, images: Tensor, output: Tensor) -> dict[str, Tensor]:
        """Each term of the loss, by image (B,). images: in [0, 1]; output: around [-1, 1]."""
        target, cells = images * 2 - 1, self.options.colour_cells
        colour = F.adaptive_avg_pool2d(output - target, cells).square().mean((1, 2, 3))
        terms = {"pixel": (output - target).abs().mean((1, 2, 3)), "colour": colour}
        if "perceptual" in self.frozen:
            terms["perceptual"] = self.frozen["perceptual"](images, (output + 1) / 2)
        return terms

    def forward(self, batch: Batch) -> Losses:
        output = self._decoded(batch.images, batch.seeds, self.encoder_size(batch.step))
        terms = {name: term.mean() for name, term in self._distances(batch.images, output).items()}
        total = sum(getattr(self.options, name) * term for name, term in terms.items())
        return Losses(total, {name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return (self._decoded(images, seeds, self.usual_encoder_size) + 1) / 2

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """PSNR (mean over images, dB) and the terms of the loss, on every other validation image."""
        images, seeds = images[::2], seeds[::2]
        outputs, terms = [], []
        for i in range(0, len(images), 16):
            part = images[i : i + 16]
            outputs.append(self.reconstruct(part, seeds[i : i + 16]).float())
            terms.append(self._distances(part, outputs[-1] * 2 - 1))
        means = {name: torch.cat([t[name] for t in terms]).mean().item() for name in terms[0]}
        return {"psnr": mean_psnr(torch.cat(outputs), images), **means}

    def export(self, path: Path, provenance: Provenance) -> None:
        """As stage 1; the hours of the training include that stage's, and a row that saw LPIPS says so."""
        training = provenance.training.on_top_of(self._before) if self._before else provenance.training
        provenance = replace(provenance, training=training).with_losses(self.options.losses)
        self.save_trainable_copy(path, provenance, self._adapter, self.timesteps)


def _start_source(options: PixelOptions) -> WeightsSource:
    if options.networks == "mini":
        return FIRST_STAGE.source(options.start)
    if options.start:
        return LocalWeights(options.start)
    return UnpublishedWeights(
        "the trainable copy after stage 1 (equation 4)",
        "make it by `python -m lactok.train recipe=diffusion scale=paper data.root=DIR`, which leaves it where this "
        "command looks for it (runs/diffusion-paper), or name it by options.start=PATH",
    )


def _few_step_lora_sources(options: PixelOptions) -> tuple[WeightsSource, ...]:
    path, hypersd = options.adapter, options.accelerator == "hypersd"
    if options.networks == "mini":
        return (FEW_STEP_LORA_FILES[require_few_step_lora(options.accelerator)].source(path),)
    if path is not None:
        return (LocalWeights(path),) if hypersd else tlcm_sources(path)
    published = (HYPERSD,) if hypersd else (TLCM, TLCM_CONFIG)
    return tuple(replace(source, otherwise="name a local copy by options.adapter=PATH") for source in published)
