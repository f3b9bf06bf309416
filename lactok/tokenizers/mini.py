"""LacTok in miniature behind the benchmark's interface: the chain that the bundled trainers make, in five rows.

All share llamagen-mini's encoder and codebook, one small latent diffusion model, and its autoencoder; the rows are
those of the paper's Table 4. A file that was trained beside other parts than it finds is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
    ADAPTERS,
    FIRST_STAGE,
    LDM,
    SECOND_STAGE,
    load_adapter,
    load_base,
    load_copy,
    put_together,
    require_made_with,
    training_of,
    vq_source,
)
from lactok.tokenizers.miniature import LICENCE, Miniature
from lactok.tokenizers.published import LacTokTokenizer
from lactok.weights import WeightsSource


@dataclass
class LacTokMiniOptions:
    """What every one takes. Files: null for those that ship with the package.

    weights: the copy, a checkpoint of recipe=diffusion or recipe=pixel; base: of recipe=ldm; autoencoder: of
        recipe=vae; vq: of recipe=vq.
    conditioning_scale: strength of the copy's residuals; 1, as trained.
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

    steps: evaluations on TLCM's grid, 1 to 7; 2 as in the paper (timesteps 999, 499), which was trained.
    """

    adapter: str | None = None
    steps: int = 2


@dataclass
class AcceleratedMiniOptions(FewStepMiniOptions):
    """steps: 3 as in Table 4."""

    steps: int = 3


class LacTokMini(LacTokTokenizer):
    """The parts put together; subclasses name the copy and the accelerator."""

    scale = "mini"
    code_licence = "Apache-2.0"
    weights_licence = LICENCE
    COPY: ClassVar[Miniature]
    ACCELERATOR: ClassVar[str | None] = None
    path_options: ClassVar[tuple[str, ...]] = ("weights", "base", "autoencoder", "vq", "adapter")

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """The copy, the encoder, the diffusion model, its autoencoder, and the adapter where there is one."""
        shared = vq_source(options.vq), LDM.source(options.base), AUTOENCODER.source(options.autoencoder)
        sources = cls.COPY.source(options.weights), *shared
        return sources if cls.ACCELERATOR is None else (*sources, ADAPTERS[cls.ACCELERATOR].source(options.adapter))

    def _load(self) -> tuple[LacTok, int, int, TrainingCompute | None]:
        options = self.options
        copy, made, file = load_copy(self.COPY.source(options.weights))
        base = load_base(options.vq, options.base, options.autoencoder)
        model = put_together(base, copy, made, file)
        parts = [base.vq_file, base.diffusion.file, base.diffusion.vae_file]
        if self.ACCELERATOR is not None:
            adapter = load_adapter(self.ACCELERATOR, options.adapter)
            require_made_with(adapter.file, "diffusion UNet", adapter.config.base, base.diffusion.file)
            if made.adapter is not None:
                require_made_with(file, "adapter", made.adapter, adapter.file)
            adapter.merge(model.decoder.unet)
            parts.append(adapter.file)
        return model, options.input_size, options.output_size, training_of(file, *parts)


class LacTokHMini(LacTokMini):
    """LacTok-H in miniature: one evaluation, fine-tuned in pixels."""

    Options = OneStepMiniOptions
    COPY = SECOND_STAGE["hypersd"]
    ACCELERATOR = "hypersd"

    def _sampler(self) -> Sampler:
        return consistency_sampler((FIRST_TIMESTEP,))


class LacTokTMini(LacTokMini):
    """LacTok-T in miniature: two evaluations, fine-tuned in pixels."""

    Options = FewStepMiniOptions
    COPY = SECOND_STAGE["tlcm"]
    ACCELERATOR = "tlcm"

    def _sampler(self) -> Sampler:
        return consistency_sampler(tlcm_timesteps(self.options.steps))


class VQLADDMini(LacTokMini):
    """The first stage alone, sampled by DDIM."""

    ablation = True
    Options = DiffusionMiniOptions
    COPY = FIRST_STAGE
    path_options = ("weights", "base", "autoencoder", "vq")

    def _sampler(self) -> Sampler:
        return ddim_sampler(self.options.steps)


class VQLADDHyperSDMini(LacTokHMini):
    """The first stage with the one-step adapter, no fine-tuning in pixels."""

    ablation = True
    COPY = FIRST_STAGE


class VQLADDTLCMMini(LacTokTMini):
    """The first stage with the few-step adapter, no fine-tuning in pixels."""

    ablation = True
    Options = AcceleratedMiniOptions
    COPY = FIRST_STAGE
