"""The frozen networks with which a LacTok's trainable copy learns: the miniatures', or the published ones of the paper.

Inside `torch.device("meta")`, which a dry run sets, a checkpoint that is not here is done without: only sizes matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lactok import registry
from lactok.checkpoint_file import latents_sha256
from lactok.models import autoencoder
from lactok.models.autoencoder import AutoencoderConfig, build_autoencoder
from lactok.models.ladd import LatentDecoderConfig, UNetConfig, build_unet
from lactok.models.latent_diffusion import LatentDiffusionConfig
from lactok.models.vq import VQConfig, VQEncoder, VQModel
from lactok.models.vq_state_dict import NESTED, VQStateDict
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.tokenizers.mini_parts import (
    LDM,
    Base,
    Diffusion,
    Located,
    decoder_config,
    load_diffusion,
    load_vq,
    vq_source,
)
from lactok.train.config import preset_path
from lactok.weights import (
    HubWeights,
    MissingWeights,
    WeightsSource,
    load_state_dict,
    locate,
    override,
    require_entries,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

NETWORKS = ("mini", "sdxl")
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_REVISION = "462165984030d82259a11f4367a4eed129e94a7b"
_FILE = "diffusion_pytorch_model.safetensors"
SDXL_UNET = HubWeights(
    SDXL,
    f"unet/{_FILE}",
    SDXL_REVISION,
    "357650fbfb3c7b4d94c1f5fd7664da819ad1ff5a839430484b4ec422d03f710a",
    otherwise="name a local copy of that file by options.base=PATH",
)
SDXL_VAE = HubWeights(
    SDXL,
    f"vae/{_FILE}",
    SDXL_REVISION,
    "1598f3d24932bcfe6634e8b618ea1e30ab1d57f5aad13a6d2de446d2199f2341",
    otherwise="name a local copy of that file by options.autoencoder=PATH",
)


@dataclass
class PartsOptions:
    """Which networks are used with the trainable copy.

    networks: "mini", or "sdxl" for SDXL-base-1.0 and LlamaGen's published encoder.
    vq, base, autoencoder: local checkpoints of the encoder, the diffusion UNet and the autoencoder; null: for "mini"
        what earlier runs next to this one left, else the miniatures that ship; for "sdxl" the hub's.
    condition_widths: of the convolutions that read the code-embedding map.
    """

    networks: str = "sdxl"
    vq: str | None = None
    base: str | None = None
    autoencoder: str | None = None
    condition_widths: list[int] = field(default_factory=lambda: [8, 32, 96, 256])

    def __post_init__(self) -> None:
        if self.networks not in NETWORKS:
            raise ValueError(f"networks={self.networks}: expected {' or '.join(NETWORKS)}")


AnyPartsOptions = TypeVar("AnyPartsOptions", bound=PartsOptions)


@dataclass(frozen=True)
class Parts:
    """Frozen networks on the CPU, and their sizes. base: the miniatures' files, None for published networks."""

    vq: VQEncoder
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    decoder: LatentDecoderConfig
    autoencoder: AutoencoderConfig
    base: Base | None


def is_dry_run() -> bool:
    """Whether networks are made for their sizes alone."""
    return torch.get_default_device().type == "meta"


def left_by(runs: Path, name: str, given: str | None) -> str | None:
    """The file that the user names, else the export of the run `name` in the folder `runs`, else None."""
    path = runs / name / f"{name}.safetensors"
    return given or (str(path) if path.is_file() else None)


def with_earlier_parts(options: AnyPartsOptions, runs: Path) -> AnyPartsOptions:
    """`options` with the exports of runs next to this one, where nothing is named."""
    if options.networks != "mini":
        return options
    return replace(
        options,
        vq=left_by(runs, "vq-mini", options.vq),
        base=left_by(runs, "ldm-mini", options.base),
        autoencoder=left_by(runs, "vae-mini", options.autoencoder),
    )


def part_sources(options: PartsOptions) -> tuple[WeightsSource, ...]:
    """Of the encoder, the UNet and the autoencoder."""
    if options.networks == "mini":
        return vq_source(options.vq), LDM.source(options.base), autoencoder.MINI.source(options.autoencoder)
    return published_vq(options.vq), override(SDXL_UNET, options.base), override(SDXL_VAE, options.autoencoder)


def published_vq(path: str | None) -> WeightsSource:
    """LlamaGen's ImageNet VQ-16, or a local copy."""
    tokenizer = registry.load("tokenizers", "llamagen")
    (source,) = tokenizer.weights(tokenizer.Options(weights=path))
    if isinstance(source, HubWeights):
        return replace(source, otherwise="name a local copy of that file by options.vq=PATH")
    return source


def load_parts(options: PartsOptions) -> Parts:
    """The frozen networks that the options name. Raises WeightsError for those that are not here or don't fit."""
    if options.networks == "mini":
        return _mini(options)
    decoder = LatentDecoderConfig(UNetConfig(), condition_widths=tuple(options.condition_widths))
    vq = build_vq(options.vq)
    unet, vae = meta_skeleton(build_unet, UNetConfig()), meta_skeleton(build_autoencoder, AutoencoderConfig())
    if not is_dry_run():
        fill(unet, override(SDXL_UNET, options.base), "SDXL's UNet")
        fill(vae, override(SDXL_VAE, options.autoencoder), "SDXL's autoencoder")
    for network in (unet, vae):
        network.eval().requires_grad_(False)
    return Parts(vq, unet, vae, decoder, AutoencoderConfig(), None)


def _mini(options: PartsOptions) -> Parts:
    vq, vq_file = _load_vq_or_skeleton(options.vq)
    diffusion = load_diffusion_or_skeleton(options.base, options.autoencoder)
    decoder = decoder_config(diffusion.model, vq, tuple(options.condition_widths))
    base = Base(vq, vq_file, diffusion) if vq_file and isinstance(diffusion, Diffusion) else None
    return Parts(vq, diffusion.unet, diffusion.vae, decoder, diffusion.autoencoder, base)


@dataclass(frozen=True)
class DiffusionSkeleton:
    """A `Diffusion` without a file, of the sizes that the preset of recipe=ldm has."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    model: LatentDiffusionConfig
    autoencoder: AutoencoderConfig


def load_diffusion_or_skeleton(base: str | None, vae: str | None) -> Diffusion | DiffusionSkeleton:
    """The miniature latent diffusion model, or, in a dry run without its file, a meta skeleton."""
    try:
        return load_diffusion(base, vae)
    except MissingWeights:
        if not is_dry_run():
            raise
    model = LatentDiffusionConfig(**preset_options("ldm")["model"])
    network, sizes, _ = load_autoencoder_or_skeleton(vae)
    return DiffusionSkeleton(build_unet(model.unet).requires_grad_(False), network, model, sizes)


def load_autoencoder_or_skeleton(path: str | None) -> tuple[AutoencoderKL, AutoencoderConfig, str]:
    """The miniature autoencoder, frozen, its sizes, and what its latents go by ("" where a dry run has no file)."""
    try:
        network, sizes, _ = autoencoder.load_mini_autoencoder(path)
        return network, sizes, latents_sha256(locate(autoencoder.MINI.source(path)))
    except MissingWeights:
        if not is_dry_run():
            raise
    sizes = AutoencoderConfig(**preset_options("vae")["model"])
    return build_autoencoder(sizes).requires_grad_(False), sizes, ""


def _load_vq_or_skeleton(path: str | None) -> tuple[VQEncoder, Located | None]:
    try:
        return load_vq(path)
    except MissingWeights:
        if not is_dry_run():
            raise
    return VQEncoder(VQConfig(**preset_options("vq")["model"])).requires_grad_(False), None


def preset_options(recipe: str) -> dict[str, Any]:
    """`options` of a recipe's mini preset."""
    from omegaconf import OmegaConf

    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(preset_path(recipe, "mini"))))["options"]


def build_vq(path: str | None) -> VQEncoder:
    """The encoding half of LlamaGen's published tokenizer, frozen."""
    whole, encoder = meta_skeleton(VQModel, VQConfig()), meta_skeleton(VQEncoder, VQConfig())
    if not is_dry_run():
        file = locate(published_vq(path))
        with errors_name(file):
            state = VQStateDict().from_published(find_state_dict(load_state_dict(file), NESTED), whole)
        encoder.load_state_dict({name: state[name] for name in encoder.state_dict()}, strict=True, assign=True)
    return encoder.eval().requires_grad_(False)


def fill(network: nn.Module, source: WeightsSource, what: str) -> None:
    """Give a network on the meta device the tensors of a file, float32. Raises WeightsError when they are others."""
    path = locate(source)
    state = {_current(name): tensor.float() for name, tensor in load_state_dict(path).items()}
    require_entries(state, {name: tuple(t.shape) for name, t in network.state_dict().items()}, f"{what} ({path})")
    network.load_state_dict(state, strict=True, assign=True)


def _current(name: str) -> str:
    """Attention projections of autoencoders by diffusers before 0.17 had other names."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = re.sub(rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)
    return name


def only(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below a prefix, which is taken off."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
