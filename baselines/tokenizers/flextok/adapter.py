"""FlexTok behind the benchmark's interface: three published checkpoints and the miniature, any prefix of their ids."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.tokenizers.flextok.checkpoint_config import parse_config, read_config, read_scaling_factor, vae_repo
from baselines.tokenizers.flextok.config import FlexTokConfig, VAEConfig, published, shape_differences
from baselines.tokenizers.flextok.model import FlexTok
from baselines.tokenizers.flextok.sampler import Sampling, image_noise
from baselines.tokenizers.flextok.state_dict import FlexTokStateDict
from lactok.interface import Tokenizer, TokenizerInfo, Tokens, TrainingCompute
from lactok.models import autoencoder
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.tokenizers.checks import require_ids, require_images, require_seeds
from lactok.tokenizers.memory import MemoryOptions, memory_options, place, save_in_decoding
from lactok.tokenizers.miniature import LICENCE, Miniature
from lactok.weights import (
    CheckpointMismatch,
    HubWeights,
    LocalWeights,
    MissingWeights,
    WeightsSource,
    load_state_dict,
    locate,
    override,
)

MINI = Miniature(
    "flextok-mini.safetensors",
    sha256="cae53ccc21c7f6523a93c4fc523d7d2409724882ea4209fa16c38a843c504865",
    command="python -m lactok.train recipe=flextok scale=mini data.root=DIR",
)


@dataclass
class FlexTokOptions(MemoryOptions):
    """What may be set, with `MemoryOptions`; the defaults are the readme's (20 steps, guidance 7.5, projected).

    weights: a local model.safetensors instead of the hub's; the config.json next to it is read, else its header.
    keep_ids: how many of an image's ids are kept, from the first (1 to 256); its rate follows.
    steps: of the decoder's flow. guidance_scale: 1 means no guidance.
    posterior_seed: None takes ids from the mean of the VAE's posterior. A number takes them from a sample of it, as
        the published wrapper does by default; the sample's noise follows from this number and the image alone.
    vae_scaling_factor: of the VAE's latents, for a checkpoint whose configuration does not state it.
    """

    weights: str | None = None
    keep_ids: int = 256
    steps: int = 20
    guidance_scale: float = 7.5
    posterior_seed: int | None = None
    vae_scaling_factor: float | None = None


@dataclass
class FlexTokMiniOptions:
    """What may be set; see `FlexTokOptions`. A small model has less to guide: fewer steps, less guidance.

    weights: a local checkpoint instead of the one that ships; autoencoder: of its latents, likewise.
    """

    weights: str | None = None
    autoencoder: str | None = None
    keep_ids: int = 64
    steps: int = 5
    guidance_scale: float = 1.5
    posterior_seed: int | None = None


class FlexTokTokenizer(Tokenizer):
    """A `FlexTok` with a VAE, on square images of its one size; subclasses load it.

    options needs keep_ids, steps, guidance_scale and posterior_seed of `FlexTokOptions`.
    """

    dtypes: ClassVar[Mapping[str, torch.dtype]] = {"model.vae": torch.float32}  # as published, under bf16 too
    code_licence = "Apple/EPFL sample code licence, non-commercial (the published code; the port is Apache-2.0)"

    def __init__(self, options: Any, device: torch.device) -> None:
        super().__init__(options, device)
        self.sampling = Sampling(options.steps, options.guidance_scale)
        self.model, memory = self._load().eval().requires_grad_(False), memory_options(options)
        vae, factor = self.model.vae, self.model.config.image_size // self.model.config.latent_size
        assert vae is not None, "image_size, above, refuses a model without VAE"
        save_in_decoding(vae, memory, self.model.config.latent_size, factor)
        blocks = [*self.model.encoder.blocks, *self.model.decoder.blocks, vae] if memory.cpu_offload else []
        place(self.model, device, blocks)
        if not 1 <= options.keep_ids <= self.model.config.registers:
            raise ValueError(f"keep_ids {options.keep_ids}: expected 1 to {self.model.config.registers}")

    def _load(self) -> FlexTok:
        """The model on the CPU, with its weights and those of its VAE."""
        raise NotImplementedError

    @property
    def training(self) -> TrainingCompute | None:
        """What the checkpoint's training cost."""
        raise NotImplementedError

    @property
    def info(self) -> TokenizerInfo:
        config = self.model.config
        return TokenizerInfo(
            family="FlexTok",
            tokens_per_image=self.options.keep_ids,
            codebook_size=config.codebook_size,
            input_size=config.image_size,
            output_size=config.image_size,
            deterministic=False,
            training=self.training,
        )

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        config = self.model.config
        return config.latent_channels, config.latent_size, config.latent_size

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        """Images (B, 3, S, S) in [0, 1] to their first keep_ids ids; `lengths` is set where that is a prefix.

        Raises ValueError for another size.
        """
        require_images(images, self.model.config.image_size)
        noise = None
        if self.options.posterior_seed is not None:
            seeds = [image_seed(image, self.options.posterior_seed) for image in images]
            noise = torch.stack([image_noise(seed, self._latent_shape) for seed in seeds]).to(images.device)
        keep = self.options.keep_ids
        ids = self.model.encode_latents(self.model.latents_of(2 * images - 1, noise)).ids[:, :keep]
        if keep == self.model.config.registers:
            return Tokens(ids)
        return Tokens(ids.contiguous(), lengths=torch.full((len(ids),), keep, device=ids.device))

    @torch.no_grad()
    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        """Ids (B, n), 1 <= n <= 256, to images (B, 3, S, S) around [0, 1]; `tokens.lengths` shortens each further.

        Image i starts from noise of seeds[i] alone. Raises ValueError for ids or lengths that are none.
        """
        ids, keep = self._checked(tokens)
        require_seeds(seeds, len(ids))
        noise = torch.stack([image_noise(seed, self._latent_shape) for seed in seeds]).to(ids.device)
        latents = self.model.decode_latents(ids, keep, noise, self.sampling)
        return (self.model.images_of(latents) + 1) / 2

    def _checked(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Ids (B, n), and how many of each count (B,)."""
        config = self.model.config
        ids = require_ids(tokens, config.registers, config.codebook_size, prefixes=True)
        if tokens.lengths is None:
            return ids, torch.full((len(ids),), ids.shape[1], device=ids.device)
        keep = tokens.lengths
        if keep.shape != (len(ids),) or (len(ids) and not 1 <= int(keep.min()) <= int(keep.max()) <= ids.shape[1]):
            raise ValueError(f"lengths {keep.tolist()}, expected {len(ids)} numbers from 1 to {ids.shape[1]}")
        return ids, keep


def image_seed(image: Tensor, seed: int) -> int:
    """A 63-bit number from `seed` and the image (3, H, W) in [0, 1], rounded to 8 bits: the same on every device."""
    pixels = (image.clamp(0, 1) * 255 + 0.5).byte().cpu().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(f"{seed}:".encode() + pixels).digest()[:8], "little") >> 1


class FlexTokD18D28(FlexTokTokenizer):
    """Encoder of 18 layers, decoder of 28, trained on ImageNet (the one assumed for the LacTok paper's FlexTok row)."""

    Options = FlexTokOptions
    scale = "paper"
    weights_licence = "Apple Machine Learning Research Model licence: research only, non-commercial"
    REPO: ClassVar[str] = "EPFL-VILAB/flextok_d18_d28_in1k"
    EXPECTED: ClassVar[FlexTokConfig] = published(18, 28)

    @classmethod
    def weights(cls, options: FlexTokOptions) -> tuple[WeightsSource, ...]:
        """The checkpoint, and its configuration where that is a file of its own."""
        if options.weights is None:
            return HubWeights(cls.REPO, "model.safetensors"), HubWeights(cls.REPO, "config.json")
        model = override(HubWeights(cls.REPO, "model.safetensors"), options.weights)
        sibling = Path(str(model)).expanduser().with_name("config.json")
        return (model, LocalWeights(str(sibling))) if sibling.is_file() else (model,)

    @property
    def training(self) -> TrainingCompute:
        return TrainingCompute(data="ImageNet train")

    def _read_config(self) -> FlexTokConfig:
        """The sizes that the checkpoint states, which must be those of the published one."""
        path, *config_paths = [locate(source) for source in self.weights(self.options)]
        tree = read_config(config_paths[0] if config_paths else None, path)
        with errors_name(config_paths[0] if config_paths else path):
            config = parse_config(tree, self.EXPECTED.vae, self._scaling_factor(tree))
            if differences := shape_differences(config, self.EXPECTED):
                raise CheckpointMismatch(
                    f"the configuration is not {self.REPO}'s layout: {'; '.join(differences)}; "
                    "other published depths have tokenizers of their own"
                )
        return config

    def _scaling_factor(self, tree: Mapping[str, Any]) -> float | None:
        """The user's, else that of the VAE's repository where the configuration names one that is available."""
        repo = vae_repo(tree)
        if self.options.vae_scaling_factor or not isinstance(repo, str):
            return self.options.vae_scaling_factor
        try:
            return read_scaling_factor(locate(HubWeights(repo, "config.json")))
        except MissingWeights:
            return None  # the parser says what to give

    def _load(self) -> FlexTok:
        config, path = self._read_config(), locate(self.weights(self.options)[0])
        with errors_name(path):
            return FlexTokStateDict().load(meta_skeleton(FlexTok, config), find_state_dict(load_state_dict(path)))


class FlexTokD12D12(FlexTokD18D28):
    """Encoder and decoder of 12 layers, trained on ImageNet."""

    REPO = "EPFL-VILAB/flextok_d12_d12_in1k"
    EXPECTED = published(12, 12)


class FlexTokD18D18(FlexTokD18D28):
    """Encoder and decoder of 18 layers, trained on ImageNet."""

    REPO = "EPFL-VILAB/flextok_d18_d18_in1k"
    EXPECTED = published(18, 18)


class FlexTokMini(FlexTokTokenizer):
    """The same network in miniature, by the bundled trainer, on the latents of the miniatures' autoencoder."""

    Options = FlexTokMiniOptions
    path_options = ("weights", "autoencoder")
    scale = "mini"
    weights_licence = LICENCE

    @classmethod
    def weights(cls, options: FlexTokMiniOptions) -> tuple[WeightsSource, ...]:
        return MINI.source(options.weights), autoencoder.MINI.source(options.autoencoder)

    @property
    def training(self) -> TrainingCompute:
        return self._training

    def _load(self) -> FlexTok:
        flextok, made = MINI.load(lambda made: FlexTok(made.build_config(FlexTokConfig)), self.options.weights)
        file, of_latents = (locate(source) for source in self.weights(self.options))
        made.require_part(file, "autoencoder", of_latents)
        vae, config, of_vae = autoencoder.load_mini_autoencoder(self.options.autoencoder)
        flextok.vae, flextok.config = vae, dataclasses.replace(flextok.config, vae=VAEConfig(**vars(config)))
        self._training = made.training.on_top_of(of_vae.training)
        return flextok
