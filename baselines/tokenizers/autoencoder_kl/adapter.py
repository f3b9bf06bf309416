"""Continuous autoencoders as rows: any diffusers `AutoencoderKL`, its latents the posterior's mean, its rate undefined.

A row of this kind is the ceiling of every decoder that ends in the same autoencoder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lactok.interface import Latents, Tokenizer, TokenizerInfo, TrainingCompute
from lactok.models import autoencoder
from lactok.state_dict import find_state_dict, meta_skeleton
from lactok.tokenizers.checks import require_latents
from lactok.tokenizers.miniature import LICENCE
from lactok.weights import (
    CheckpointMismatch,
    HubWeights,
    LocalWeights,
    WeightsError,
    WeightsSource,
    load_state_dict,
    locate,
    override,
    require_entries,
    saved_files,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"

_OLD_NAMES = (  # of attention projections before diffusers 0.17, now
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
)


@dataclass
class AutoencoderKLOptions:
    """Which autoencoder.

    repo: a hub id "owner/name", or "owner/name/subfolder" ("stabilityai/stable-diffusion-xl-base-1.0/vae"), or a local
        folder that `save_pretrained` wrote. weights: a local file of tensors instead of the repo's.
    """

    repo: str = "stabilityai/sd-vae-ft-mse"
    weights: str | None = None


@dataclass
class SDXLVAEOptions(AutoencoderKLOptions):
    """As above, from another place: a copy, or a fine-tuned one."""

    repo: str = "stabilityai/sdxl-vae"


def sources(repo: str) -> tuple[WeightsSource, ...]:
    """The tensors of `repo` (or the index of their shards), its configuration, and the shards where there are any.

    Raises WeightsError for a name of neither kind.
    """
    folder = Path(repo).expanduser()
    if folder.is_dir():
        tensors, *shards = (LocalWeights(str(file)) for file in saved_files(folder, WEIGHTS_FILE.partition(".")[0]))
        return tensors, LocalWeights(str(folder / CONFIG_FILE)), *shards
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)*", repo):
        raise WeightsError(
            f"repo {repo!r} is neither a folder here ({folder.absolute()}) nor a hub id; "
            "expected OWNER/NAME, OWNER/NAME/SUBFOLDER or an existing folder"
        )
    owner, name, *subfolder = repo.split("/")
    weights, config = ("/".join([*subfolder, file]) for file in (WEIGHTS_FILE, CONFIG_FILE))
    return HubWeights(f"{owner}/{name}", weights), HubWeights(f"{owner}/{name}", config)


def build(config: Mapping[str, Any]) -> AutoencoderKL:
    """The stock network of a `config.json`, without memory. Raises WeightsError when it is another class's."""
    from diffusers import AutoencoderKL

    if config.get("_class_name") != "AutoencoderKL":
        raise WeightsError(f"_class_name is {config.get('_class_name')!r}, expected 'AutoencoderKL'")
    return meta_skeleton(AutoencoderKL.from_config, dict(config))


def current_names(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state dict under today's names, float32.

    Raises CheckpointMismatch listing what is missing, unexpected, or of another shape.
    """
    renamed = {}
    for name, tensor in state.items():
        for old, new in _OLD_NAMES:
            name = re.sub(old, new, name) if ".attentions." in name else name
        renamed[name] = tensor.float()
    require_entries(renamed, shapes, "the configured AutoencoderKL")
    return renamed


class AutoencoderKLTokenizer(Tokenizer):
    """A diffusers `AutoencoderKL`; images of any size that its factor divides."""

    Options: ClassVar[type] = AutoencoderKLOptions
    scale = "paper"
    code_licence = "Apache-2.0 (diffusers)"
    weights_licence = "that of the repository named by options.autoencoder-kl.repo (sd-vae-ft-mse: MIT)"

    def __init__(self, options: Any, device: torch.device) -> None:
        super().__init__(options, device)
        model, self.factor = self._load()
        self.model = model.eval().requires_grad_(False).to(device)

    def _load(self) -> tuple[AutoencoderKL, int]:
        """The network on the CPU, and the pixels of a latent's side."""
        weights, config, *_ = (locate(source) for source in self.weights(self.options))
        path = config
        try:
            model = build(json.loads(config.read_text(encoding="utf-8")))
            path = weights
            shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            state = current_names(find_state_dict(load_state_dict(weights)), shapes)
            model.load_state_dict(state, strict=True, assign=True)
        except CheckpointMismatch as error:
            raise CheckpointMismatch(f"{path}: {error}") from error
        except (WeightsError, ValueError, TypeError, AttributeError) as error:
            raise WeightsError(f"{path}: {' '.join(str(error).split())}") from error
        return model, 2 ** (len(model.config.block_out_channels) - 1)

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        tensors, config, *shards = sources(options.repo)
        return (tensors, config, *shards) if options.weights is None else (override(tensors, options.weights), config)

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo("AutoencoderKL", None, None, input_size=None, output_size=None)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Latents:
        """Images (B, 3, H, W) in [0, 1] to latents (B, C, H / factor, W / factor), the posterior's mean, not scaled.

        Raises ValueError for sides that the factor does not divide.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"images of {width}x{height} pixels, expected sides that {self.factor} divides; this autoencoder "
                "works at the evaluation size: choose a protocol with another one"
            )
        return Latents(self.model.encode(2 * images - 1).latent_dist.mean.float())

    @torch.no_grad()
    def decode(self, encoded: Latents, seeds: Sequence[int]) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, h x factor, w x factor) around [0, 1]; seeds are not used.

        Raises ValueError for anything else than latents of its own number of channels.
        """
        latents = require_latents(encoded, self.model.config.latent_channels)
        return (self.model.decode(latents).sample.float() + 1) / 2


class SDXLVAE(AutoencoderKLTokenizer):
    """The autoencoder of SDXL, in which LacTok's decoder ends."""

    Options = SDXLVAEOptions
    weights_licence = "MIT"


@dataclass
class AutoencoderMiniOptions:
    """weights: a local checkpoint instead of the one that ships with the package.

    input_size: pixels of a side; 64, as decoders at 64 pixels use it; any multiple of its factor.
    """

    weights: str | None = None
    input_size: int = 64


class AutoencoderMini(AutoencoderKLTokenizer):
    """The miniatures' autoencoder, by the bundled trainer: the ceiling of every miniature that decodes its latents."""

    Options = AutoencoderMiniOptions
    scale = "mini"
    code_licence = "Apache-2.0"
    weights_licence = LICENCE

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        return (autoencoder.MINI.source(options.weights),)

    def _load(self) -> tuple[AutoencoderKL, int]:
        model, config, made = autoencoder.load_mini_autoencoder(self.options.weights)
        size, factor = self.options.input_size, config.downsample_factor
        if size < factor or size % factor:
            raise ValueError(f"input_size {size}: expected a positive multiple of {factor}")
        self._training: TrainingCompute = made.training
        return model, factor

    @property
    def info(self) -> TokenizerInfo:
        size = self.options.input_size
        return TokenizerInfo("AutoencoderKL", None, None, input_size=size, output_size=size, training=self._training)
