"""LacTok in miniature behind the benchmark's interface: the chain that the bundled trainers make, in five rows.

All share llamagen-mini's encoder and codebook, one small latent diffusion model, and its autoencoder; the rows are
those of the paper's Table 4. A file that was trained with other parts than it finds is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lactok.checkpoint_file import require_made_with
from lactok.interface import TrainingCompute
from lactok.models.autoencoder import MINI as AUTOENCODER
from lactok.models.lactok import LacTok
from lactok.models.samplers import (
    DDIM_STEPS,
    FIRST_TIMESTEP,
    Sampler,
    consistency_sampler,
    ddim_sampler,
    tlcm_timesteps,
)
from lactok.tokenizers.mini_parts import (
    FEW_STEP_LORA_FILES,
    FIRST_STAGE,
    LDM,
    SECOND_STAGE,
    load_base,
    load_few_step_lora,
    load_trainable_copy,
    put_together,
    training_of,
    vq_source,
)
from lactok.tokenizers.miniature import LICENCE, Miniature
from lactok.tokenizers.published import LacTokTokenizer
from lactok.weights import WeightsSource


@dataclass
class LacTokMiniOptions:
    """What every one takes. Files: null for those that ship with the package.

    weights: the trainable copy, a checkpoint of recipe=diffusion or recipe=pixel; base: of recipe=ldm; autoencoder: of
        recipe=vae; vq: of recipe=vq.
    conditioning_scale: strength of the trainable copy's residuals; 1, as trained.
    input_size: pixels of a side that the encoder sees, a multiple of 8; 56, 64 and 72 (49, 64 and 81 ids) were trained.
    output_size: pixels of a side of the decoded image, a multiple of 16; 128 was trained.
    """

    weights: str | None = None
    base: str | None = None
    autoencoder: str | None = None
    vq: str | None = None
    conditioning_scale: float = 1.0
    input_size: int = 64
    output_size: int = 128


@dataclass
class DiffusionMiniOptions(LacTokMiniOptions):
    """steps: of DDIM."""

    steps: int = DDIM_STEPS


@dataclass
class OneStepMiniOptions(LacTokMiniOptions):
    """adapter: a local checkpoint of recipe=accelerator accelerator=hypersd."""

    adapter: str | None = None


@dataclass
class FewStepMiniOptions(LacTokMiniOptions):
    """adapter: a local checkpoint of recipe=accelerator accelerator=tlcm.

    steps: NFE on TLCM's grid, 1 to 7; 2 as in the paper (timesteps 999, 499), which was trained.
    """

    adapter: str | None = None
    steps: int = 2


@dataclass
class AcceleratedMiniOptions(FewStepMiniOptions):
    """steps: 3 as in Table 4."""

    steps: int = 3


class LacTokMini(LacTokTokenizer):
    """The parts put together; subclasses name the trainable copy and the few-step LoRA."""

    scale = "mini"
    code_licence = "Apache-2.0"
    weights_licence = LICENCE
    TRAINABLE_COPY: ClassVar[Miniature]
    FEW_STEP_LORA: ClassVar[str | None] = None
    path_options: ClassVar[tuple[str, ...]] = ("weights", "base", "autoencoder", "vq", "adapter")

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """The trainable copy, the encoder, the diffusion model, its autoencoder, and the few-step LoRA if any."""
        shared = vq_source(options.vq), LDM.source(options.base), AUTOENCODER.source(options.autoencoder)
        sources = cls.TRAINABLE_COPY.source(options.weights), *shared
        return (
            sources
            if cls.FEW_STEP_LORA is None
            else (*sources, FEW_STEP_LORA_FILES[cls.FEW_STEP_LORA].source(options.adapter))
        )

    def _load(self) -> tuple[LacTok, int, int, TrainingCompute | None]:
        options = self.options
        copy, made, file = load_trainable_copy(self.TRAINABLE_COPY.source(options.weights))
        base = load_base(options.vq, options.base, options.autoencoder)
        model = put_together(base, copy, made, file)
        parts = [base.vq_file, base.diffusion.file, base.diffusion.vae_file]
        if self.FEW_STEP_LORA is not None:
            adapter = load_few_step_lora(self.FEW_STEP_LORA, options.adapter)
            require_made_with(adapter.file.path, "diffusion UNet", adapter.config.base, base.diffusion.file.path)
            if made.adapter is not None:
                require_made_with(file.path, "adapter", made.adapter, adapter.file.path)
            adapter.merge(model.decoder.unet)
            parts.append(adapter.file)
        return model, options.input_size, options.output_size, training_of(file, *parts)


class LacTokHMini(LacTokMini):
    """LacTok-H in miniature: NFE 1, fine-tuned in pixels."""

    Options = OneStepMiniOptions
    TRAINABLE_COPY = SECOND_STAGE["hypersd"]
    FEW_STEP_LORA = "hypersd"

    def _sampler(self) -> Sampler:
        return consistency_sampler((FIRST_TIMESTEP,))


class LacTokTMini(LacTokMini):
    """LacTok-T in miniature: NFE 2, fine-tuned in pixels."""

    Options = FewStepMiniOptions
    TRAINABLE_COPY = SECOND_STAGE["tlcm"]
    FEW_STEP_LORA = "tlcm"

    def _sampler(self) -> Sampler:
        return consistency_sampler(tlcm_timesteps(self.options.steps))


class VQLADDMini(LacTokMini):
    """The first stage alone, sampled by DDIM."""

    ablation = True
    Options = DiffusionMiniOptions
    TRAINABLE_COPY = FIRST_STAGE
    path_options = ("weights", "base", "autoencoder", "vq")

    def _sampler(self) -> Sampler:
        return ddim_sampler(self.options.steps)


class VQLADDHyperSDMini(LacTokHMini):
    """The first stage with the one-step LoRA, no fine-tuning in pixels."""

    ablation = True
    TRAINABLE_COPY = FIRST_STAGE


class VQLADDTLCMMini(LacTokTMini):
    """The first stage with the few-step LoRA, no fine-tuning in pixels."""

    ablation = True
    Options = AcceleratedMiniOptions
    TRAINABLE_COPY = FIRST_STAGE
