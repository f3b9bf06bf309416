"""The files of which LacTok in miniature is put together, each shared by all rows that need it.

The VQ encoder is llamagen-mini's, the autoencoder autoencoder-mini's; the diffusion UNet is stored once, with the two
adapters that make it few-step, and one trainable copy for each training. A file says which others it was trained with,
by the sha256 of their tensors, and nothing else is put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lactok import registry
from lactok.checkpoint_file import CheckpointMetadata, Config, read_checkpoint, require_made_with, tensors_sha256
from lactok.interface import TrainingCompute
from lactok.models import autoencoder
from lactok.models.autoencoder import AutoencoderConfig
from lactok.models.lactok import LacTok, LacTokConfig
from lactok.models.ladd import LatentDecoder, LatentDecoderConfig, build_controlnet, build_unet
from lactok.models.latent_diffusion import LatentDiffusionConfig
from lactok.models.lora import A_WEIGHT, B_WEIGHT, LoRAConfig, add_to_weights
from lactok.models.vq import VQConfig, VQEncoder
from lactok.state_dict import errors_name, meta_skeleton
from lactok.tokenizers.miniature import Miniature
from lactok.weights import WeightsError, WeightsSource, locate, require_entries

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

_COMMAND = "python -m lactok.train recipe={} scale=mini data.root=DIR"

LDM = Miniature(
    "ldm-mini.safetensors",
    sha256="40c02b72f27dc65af07387f691d74b229a450f51fa3dd245d129f13dea76bc82",
    command=_COMMAND.format("ldm"),
)
"""The diffusion UNet."""

FEW_STEP_LORA_FILES = {
    "hypersd": Miniature(
        "hypersd-mini.safetensors",
        sha256="b2246e15abf5d3a8f629e52438efe41b3eccbaa3c000f3d57bceb68664a72995",
        command=_COMMAND.format("accelerator accelerator=hypersd"),
    ),
    "tlcm": Miniature(
        "tlcm-mini.safetensors",
        sha256="f5b2597d2a586f88dff73bc173577df84d6634684df94eb0e6b60f853a4bd438",
        command=_COMMAND.format("accelerator accelerator=tlcm"),
    ),
}
"""By few-step LoRA: what cuts the UNet to one step, or to few."""

FIRST_STAGE = Miniature(
    "vq-ladd-mini.safetensors",
    sha256="7195b262bf43150eb75783875433f2a7cf2dcf61cacaf602af591e0630293a0c",
    command=_COMMAND.format("diffusion"),
)
"""The trainable copy after the paper's stage 1."""

SECOND_STAGE = {
    "hypersd": Miniature(
        "lactok-h-mini.safetensors",
        sha256="fe0d8a10bad790502ccf3d49175e324e0d0c77f4b0617f90aff689016e8e4845",
        command=_COMMAND.format("pixel accelerator=hypersd"),
    ),
    "tlcm": Miniature(
        "lactok-t-mini.safetensors",
        sha256="3abf4cdbf8971393dca46b4179a179f9066970dc28c95bf28006ee5ff31ea046",
        command=_COMMAND.format("pixel accelerator=tlcm"),
    ),
}
"""By few-step LoRA: the trainable copy after stage 2."""


@dataclass(frozen=True)
class LDMFileConfig:
    """Header of the UNet's file. autoencoder: sha256 of the tensors of the one whose latents it knows."""

    model: LatentDiffusionConfig
    autoencoder: str

    def __post_init__(self) -> None:
        if isinstance(self.model, Mapping):
            object.__setattr__(self, "model", LatentDiffusionConfig(**self.model))


@dataclass(frozen=True)
class FewStepLoRAConfig:
    """Header of a few-step LoRA's file. timesteps: for which it was trained; base: the UNet's tensors."""

    lora: LoRAConfig
    accelerator: str
    timesteps: tuple[int, ...]
    base: str

    def __post_init__(self) -> None:
        if isinstance(self.lora, Mapping):
            object.__setattr__(self, "lora", LoRAConfig(**self.lora))
        object.__setattr__(self, "timesteps", tuple(self.timesteps))


@dataclass(frozen=True)
class TrainableCopyConfig:
    """Header of a trainable copy's file: its sizes, and the tensors of the parts with which it was trained.

    adapter: None where it was trained without one (stage 1). timesteps: of the chain that it was trained in, () there.
    """

    decoder: LatentDecoderConfig
    vq: str
    base: str
    adapter: str | None = None
    timesteps: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if isinstance(self.decoder, Mapping):
            object.__setattr__(self, "decoder", LatentDecoderConfig(**self.decoder))
        object.__setattr__(self, "timesteps", tuple(self.timesteps))


@dataclass(frozen=True)
class Located:
    """A part's file. tensors: their sha256."""

    path: Path
    tensors: str
    metadata: CheckpointMetadata


def _read(source: WeightsSource) -> tuple[dict[str, Tensor], Located]:
    path = locate(source)
    state, metadata = read_checkpoint(path)
    return state, Located(path, tensors_sha256(path), metadata)


def vq_source(path: str | None) -> WeightsSource:
    """llamagen-mini's checkpoint, or the local one."""
    tokenizer = registry.load("tokenizers", "llamagen-mini")
    return tokenizer.weights(tokenizer.Options(weights=path))[0]


def load_vq(path: str | None = None) -> tuple[VQEncoder, Located]:
    """The half of llamagen-mini that encodes, frozen. Raises WeightsError for a file of another kind."""
    state, file = _read(vq_source(path))
    model = meta_skeleton(VQEncoder, _config(file, VQConfig))
    kept = {name: state[name] for name in model.state_dict() if name in state}
    _assign(model, kept, file, "VQ encoder")
    return model.eval().requires_grad_(False), file


def load_ldm(path: str | None = None) -> tuple[UNet2DConditionModel, LDMFileConfig, Located]:
    """The diffusion UNet, frozen. Raises WeightsError for a file of another kind."""
    state, file = _read(LDM.source(path))
    config = _config(file, LDMFileConfig)
    model = meta_skeleton(build_unet, config.model.unet)
    _assign(model, state, file, "diffusion UNet")
    return model.eval().requires_grad_(False), config, file


@dataclass(frozen=True)
class FewStepLoRA:
    """A low-rank update. layers: A and B by the UNet's layer."""

    config: FewStepLoRAConfig
    layers: dict[str, tuple[Tensor, Tensor]]
    file: Located

    def merge(self, unet: UNet2DConditionModel) -> None:
        """Add it to the weights of a plain `unet`, in place. Raises WeightsError for layers that are missing there."""
        try:
            add_to_weights(unet, self.layers, self.config.lora)
        except ValueError as error:
            raise WeightsError(f"{self.file.path} is no LoRA of this UNet: {error}") from error


def load_few_step_lora(name: str, path: str | None = None) -> FewStepLoRA:
    """The few-step LoRA of that name. Raises WeightsError for a file of another kind, or for the other one."""
    state, file = _read(FEW_STEP_LORA_FILES[name].source(path))
    config = _config(file, FewStepLoRAConfig)
    if config.accelerator != name:
        raise WeightsError(f"{file.path} is the few-step LoRA {config.accelerator}, expected {name}")
    layers = [name.removesuffix(A_WEIGHT) for name in state if name.endswith(A_WEIGHT)]
    try:
        pairs = {layer: (state.pop(layer + A_WEIGHT), state.pop(layer + B_WEIGHT)) for layer in layers}
    except KeyError as error:
        raise WeightsError(f"{file.path} has no {error}") from error
    return FewStepLoRA(config, pairs, file)


def load_trainable_copy(source: WeightsSource) -> tuple[ControlNetModel, TrainableCopyConfig, Located]:
    """A trainable copy, frozen. Raises WeightsError for a file of another kind."""
    state, file = _read(source)
    config = _config(file, TrainableCopyConfig)
    model = meta_skeleton(build_controlnet, config.decoder)
    _assign(model, state, file, "trainable copy")
    return model.eval().requires_grad_(False), config, file


def _config(file: Located, config_class: type[Config]) -> Config:
    with errors_name(file.path):
        return file.metadata.build_config(config_class)


def _assign(model: torch.nn.Module, state: Mapping[str, Tensor], file: Located, what: str) -> None:
    with errors_name(file.path):
        require_entries(state, {name: tuple(t.shape) for name, t in model.state_dict().items()}, f"this {what}")
    model.load_state_dict(state, strict=True, assign=True)


@dataclass(frozen=True)
class Diffusion:
    """The latent diffusion model: its UNet without LoRA, the autoencoder of its latents, the files of both."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    model: LatentDiffusionConfig
    autoencoder: AutoencoderConfig
    file: Located
    vae_file: Located


def load_diffusion(base: str | None, vae: str | None) -> Diffusion:
    """From the miniatures that ship, or from local files; frozen. Raises WeightsError when they don't fit."""
    unet, config, file = load_ldm(base)
    network, sizes, metadata = autoencoder.load_mini_autoencoder(vae)
    path = locate(autoencoder.MINI.source(vae))
    vae_file = Located(path, tensors_sha256(path), metadata)
    require_made_with(file.path, "autoencoder", config.autoencoder, vae_file.path)
    return Diffusion(unet, network, config.model, sizes, file, vae_file)


@dataclass(frozen=True)
class Base:
    """What every LacTok in miniature shares: all but the trainable copy."""

    vq: VQEncoder
    vq_file: Located
    diffusion: Diffusion


def decoder_config(
    model: LatentDiffusionConfig, vq: VQEncoder, condition_widths: tuple[int, ...]
) -> LatentDecoderConfig:
    """Of a trainable copy for that UNet, which reads the code embeddings of `vq`."""
    shared = {name: getattr(model, name) for name in ("text_positions", "pixels_per_latent", "prediction", "schedule")}
    return LatentDecoderConfig(model.unet, vq.config.codebook_embed_dim, condition_widths, **shared)


def load_base(vq: str | None, base: str | None, vae: str | None) -> Base:
    """The shared parts from the miniatures that ship, or from local files. Raises WeightsError when they don't fit."""
    diffusion = load_diffusion(base, vae)
    return Base(*load_vq(vq), diffusion)


def put_together(base: Base, copy: ControlNetModel, made: TrainableCopyConfig, file: Located) -> LacTok:
    """A LacTok of the shared parts and a trainable copy. Raises WeightsError if it was trained with others."""
    require_made_with(file.path, "VQ encoder", made.vq, base.vq_file.path)
    require_made_with(file.path, "diffusion UNet", made.base, base.diffusion.file.path)
    config = LacTokConfig(base.vq.config, made.decoder, base.diffusion.autoencoder)
    decoder = LatentDecoder(made.decoder, base.diffusion.unet, copy)
    return LacTok(config, base.vq, decoder, base.diffusion.vae)


def training_of(copy: Located, *parts: Located) -> TrainingCompute:
    """What a trainable copy's training cost, with the hours of the parts that were trained before it."""
    total = copy.metadata.training
    for part in parts:
        total = total.on_top_of(part.metadata.training)
    return total
