"""LacTok behind the benchmark's interface, at paper scale: LacTok-H and LacTok-T, and the rows of the paper's Table 4.

All share LlamaGen's frozen encoder and codebook; they differ in the decoder's weights and in the sampler. Only one
checkpoint is published: LaCTok-T.pth, trained on constructed data, which is `lactok-t-star`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lactok.interface import Tokenizer, TokenizerInfo, Tokens, TrainingCompute
from lactok.models.few_step_lora import HYPERSD, merge_hypersd, merge_tlcm, tlcm_sources
from lactok.models.lactok import LacTok, LacTokConfig, build_lactok
from lactok.models.lactok_state_dict import LacTokStateDict
from lactok.models.lora import LoRAConfig
from lactok.models.samplers import (
    DDIM_STEPS,
    FIRST_TIMESTEP,
    Sampler,
    consistency_sampler,
    ddim_sampler,
    image_noise,
    tlcm_timesteps,
)
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.tokenizers.checks import require_ids, require_images, require_seeds
from lactok.tokenizers.memory import MemoryOptions, memory_options, place, save_in_decoding
from lactok.weights import (
    HubWeights,
    UnpublishedWeights,
    WeightsSource,
    load_state_dict,
    locate,
    override,
)


@dataclass
class LacTokOptions(MemoryOptions):
    """What every one takes; and `MemoryOptions`.

    weights: a local checkpoint, `LaCTok-T.pth` or one under its names (lactok/models/lactok_state_dict.py).
    conditioning_scale: strength of the trainable copy's residuals; 1, as trained (the paper names none).
    input_size: pixels of a side that the encoder sees, a multiple of 16; the paper names 224, 256 and 288 (196, 256
        and 324 ids). output_size: pixels of a side of the decoded image, a multiple of 32.
    """

    weights: str | None = None
    conditioning_scale: float = 1.0
    input_size: int = 256
    output_size: int = 1024


@dataclass
class LacTokTOptions(LacTokOptions):
    """steps: NFE on TLCM's grid, 1 to 7; 2 as in the paper (timesteps 999, 499)."""

    steps: int = 2


@dataclass
class LacTokTStarOptions(LacTokTOptions):
    """The released demo's settings: 3 steps (999, 499, 124), strength 0.8."""

    conditioning_scale: float = 0.8
    steps: int = 3


@dataclass
class DiffusionOptions(LacTokOptions):
    """steps: of DDIM."""

    steps: int = DDIM_STEPS


@dataclass
class HyperSDOptions(LacTokOptions):
    """accelerator: a local Hyper-SDXL-1step-lora.safetensors instead of the hub's."""

    accelerator: str | None = None


@dataclass
class TLCMOptions(LacTokOptions):
    """steps: NFE on TLCM's grid, 1 to 7; 3 as in Table 4.

    accelerator: a local adapter_model.safetensors instead of the hub's; next to it lora_model_adapter_config.json (as
        published) or adapter_config.json.
    """

    steps: int = 3
    accelerator: str | None = None


LPIPS_TRAINED = TrainingCompute(losses=("lpips",))
"""Stage 2 (equation 6 of the paper) trains on LPIPS and does not name its network."""


class LacTokTokenizer(Tokenizer):
    """A `LacTok` on square images of one size; subclasses load it, name its sampler and its noise.

    options needs conditioning_scale, and `_load` says the sizes.
    """

    code_licence = "Apache-2.0; no code of LaCToK, which states no licence"
    TRAINING: ClassVar[TrainingCompute | None] = TrainingCompute()
    dtypes: ClassVar[Mapping[str, torch.dtype]] = {"model.vae": torch.float32}  # as LaCToK's demo.py runs it

    def __init__(self, options: Any, device: torch.device) -> None:
        super().__init__(options, device)
        self.sampler = self._sampler()
        model, self._input_size, self._output_size, self._training = self._load()
        factor = model.vq.downsample_factor
        if self._input_size < factor or self._input_size % factor:
            raise ValueError(f"input_size {self._input_size}: expected a positive multiple of {factor}")
        self._side = self._input_size // factor
        self._latent_shape = model.config.latent_shape(self._output_size)
        self.model, memory = model.eval().requires_grad_(False), memory_options(options)
        save_in_decoding(model.vae, memory, self._latent_shape[-1], model.config.autoencoder.downsample_factor)
        offloaded = [model.decoder.unet, model.decoder.controlnet, model.vae] if memory.cpu_offload else []
        place(self.model, device, offloaded)

    def _sampler(self) -> Sampler:
        """The sampler with the options' settings. Raises ValueError for settings that it does not have."""
        raise NotImplementedError

    def _load(self) -> tuple[LacTok, int, int, TrainingCompute | None]:
        """The network on the CPU, the sides of the images that go in and come out, and what its training cost."""
        raise NotImplementedError

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo(
            family="LacTok",
            tokens_per_image=self._side**2,
            codebook_size=self.model.config.vq.codebook_size,
            input_size=self._input_size,
            output_size=self._output_size,
            deterministic=False,
            training=self._training,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        """Images (B, 3, S, S) in [0, 1] to ids (B, (S / factor)^2), row by row. ValueError for another size."""
        require_images(images, self._input_size)
        return Tokens(self.model.encode(2 * images - 1).ids.flatten(1))

    @torch.no_grad()
    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        """Ids (B, N) to images (B, 3, S, S) in [0, 1]; all noise of image i follows from seeds[i] alone.

        Raises ValueError for ids that are none.
        """
        ids = require_ids(tokens, self._side**2, self.model.config.vq.codebook_size)
        require_seeds(seeds, len(ids))
        if not len(ids):
            return torch.empty(0, 3, self._output_size, self._output_size, device=ids.device)
        noises = torch.stack([image_noise(seed, self._latent_shape, self.sampler.draws) for seed in seeds])
        code_map = self.model.lookup(ids.view(-1, self._side, self._side))
        scale = self.options.conditioning_scale
        latents = self.model.decode_latents(code_map, noises.to(ids.device), self.sampler, scale)
        with torch.autocast(ids.device.type, enabled=False):
            images = self.model.images_of(latents)
        return ((images + 1) / 2).clamp(0, 1)  # as diffusers' image processor does


class _Published(LacTokTokenizer):
    """A LacTok of full size, from a checkpoint under the published names."""

    scale = "paper"
    weights_licence = "not stated (LaCToK); OpenRAIL++-M (SDXL, as far as known)"
    CONFIG: ClassVar[LacTokConfig] = LacTokConfig()
    LORA: ClassVar[LoRAConfig] = LoRAConfig()
    SOURCE: ClassVar[WeightsSource]

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        return (override(cls.SOURCE, options.weights),)

    def _load(self) -> tuple[LacTok, int, int, TrainingCompute | None]:
        path, *more = [locate(source) for source in self.weights(self.options)]
        with errors_name(path):
            state = find_state_dict(load_state_dict(path), ("model", "state_dict"))  # in the published loader's order
            model = LacTokStateDict(self.LORA).load(meta_skeleton(build_lactok, self.CONFIG), state)
        self._merge_few_step_lora(model, more)
        return model, self.options.input_size, self.options.output_size, self.TRAINING

    def _merge_few_step_lora(self, model: LacTok, paths: Sequence[Path]) -> None:
        """Merge what stands in the files behind the checkpoint (none, for a decoder that holds its few-step LoRA)."""


def _unpublished(what: str, name: str, command: str, where: str) -> WeightsSource:
    return UnpublishedWeights(
        what, f"train one by `python -m lactok.train {command}`{where} and name it by options.{name}.weights=PATH"
    )


class LacTokH(_Published):
    """LacTok-H: NFE 1, from Hyper-SD's one-step SDXL; fine-tuned in pixels on public images."""

    Options = LacTokOptions
    TRAINING = LPIPS_TRAINED
    SOURCE = _unpublished("LacTok-H", "lactok-h", "recipe=pixel accelerator=hypersd scale=paper data.root=DIR", "")

    def _sampler(self) -> Sampler:
        return consistency_sampler((FIRST_TIMESTEP,))


class LacTokHStar(LacTokH):
    """LacTok-H*: the same, trained on constructed data."""

    SOURCE = _unpublished(
        "LacTok-H*",
        "lactok-h-star",
        "recipe=pixel accelerator=hypersd scale=paper data.root=DIR",
        " on constructed images",
    )


class LacTokT(_Published):
    """LacTok-T: low NFE, from TLCM's SDXL; fine-tuned in pixels on public images."""

    Options = LacTokTOptions
    TRAINING = LPIPS_TRAINED
    SOURCE = _unpublished("LacTok-T", "lactok-t", "recipe=pixel accelerator=tlcm scale=paper data.root=DIR", "")

    def _sampler(self) -> Sampler:
        return consistency_sampler(tlcm_timesteps(self.options.steps))


class LacTokTStar(LacTokT):
    """LacTok-T*: the released checkpoint, trained on constructed data."""

    Options = LacTokTStarOptions
    SOURCE = HubWeights("OPPOer/LaCTok", "LaCTok-T.pth", otherwise="name a copy by options.lactok-t-star.weights=PATH")
    TRAINING = TrainingCompute(data="the authors' constructed images", losses=LPIPS_TRAINED.losses)


class VQLADD(_Published):
    """Table 4's latent decoder after its first stage alone (equation 4), sampled by DDIM."""

    ablation = True
    Options = DiffusionOptions
    SOURCE = _unpublished("the first-stage decoder", "vq-ladd", "recipe=diffusion scale=paper data.root=DIR", "")

    def _sampler(self) -> Sampler:
        return ddim_sampler(self.options.steps)


class VQLADDHyperSD(_Published):
    """Table 4's first-stage decoder with Hyper-SD's one-step LoRA merged, no fine-tuning in pixels."""

    ablation = True
    Options = HyperSDOptions
    path_options = ("weights", "accelerator")
    SOURCE = _unpublished(
        "the first-stage decoder", "vq-ladd-hypersd", "recipe=diffusion scale=paper data.root=DIR", ""
    )

    @classmethod
    def weights(cls, options: HyperSDOptions) -> tuple[WeightsSource, ...]:
        """The first stage's checkpoint, and the few-step LoRA."""
        return *super().weights(options), override(HYPERSD, options.accelerator)

    def _sampler(self) -> Sampler:
        return consistency_sampler((FIRST_TIMESTEP,))

    def _merge_few_step_lora(self, model: LacTok, paths: Sequence[Path]) -> None:
        merge_hypersd(model.decoder.unet, *paths)


class VQLADDTLCM(_Published):
    """Table 4's first-stage decoder with TLCM's LoRA merged, no fine-tuning in pixels."""

    ablation = True
    Options = TLCMOptions
    path_options = ("weights", "accelerator")
    SOURCE = _unpublished("the first-stage decoder", "vq-ladd-tlcm", "recipe=diffusion scale=paper data.root=DIR", "")

    @classmethod
    def weights(cls, options: TLCMOptions) -> tuple[WeightsSource, ...]:
        """The first stage's checkpoint, the few-step LoRA, and its settings."""
        return *super().weights(options), *tlcm_sources(options.accelerator)

    def _sampler(self) -> Sampler:
        return consistency_sampler(tlcm_timesteps(self.options.steps))

    def _merge_few_step_lora(self, model: LacTok, paths: Sequence[Path]) -> None:
        merge_tlcm(model.decoder.unet, *paths)
