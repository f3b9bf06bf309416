"""The SEED-2 tokenizer behind the benchmark's interface: the published checkpoints of its three parts, a miniature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines.tokenizers.seedtok import unclip
from baselines.tokenizers.seedtok.diffusion_decoder import SeedMini, SeedMiniConfig, build_unclip
from baselines.tokenizers.seedtok.model import SeedConfig, SeedModel, normalise
from baselines.tokenizers.seedtok.state_dict import VIT_PREFIX, SeedStateDict
from lactok.interface import Tokenizer, TokenizerInfo, Tokens, TrainingCompute
from lactok.models import autoencoder
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.tokenizers.checks import require_ids, require_images, require_seeds
from lactok.tokenizers.memory import MemoryOptions, memory_options
from lactok.tokenizers.miniature import LICENCE, Miniature
from lactok.weights import (
    HubWeights,
    LocalWeights,
    UrlWeights,
    WeightsError,
    WeightsSource,
    load_state_dict,
    locate,
)

MINI = Miniature(
    "seedtok-mini.safetensors",
    sha256="7894da95f92d7dcf5dcdfba47971717fe81d40a29081be06a3e606a9f6772e8d",
    command="python -m lactok.train recipe=seed scale=mini data.root=DIR",
)


@dataclass
class SeedTokOptions(MemoryOptions):
    """What may be set; the defaults of the last three are those with which SEED calls the pipeline. And
    `MemoryOptions`; cpu_offload: of the diffusion decoder's networks.

    weights: a local seed_quantizer.pt instead of the hub's; vit: a local eva_vit_g.pth (BLIP-2's);
    unclip: a local folder of stable-diffusion-2-1-unclip in diffusers' layout.
    steps: denoising steps; guidance_scale: 1 or less means no guidance; noise_level: of the image embedding, 0 to 999.
    """

    weights: str | None = None
    vit: str | None = None
    unclip: str | None = None
    steps: int = 20
    guidance_scale: float = 10.0
    noise_level: int = 0


@dataclass
class SeedTokMiniOptions:
    """What may be set; see `SeedTokOptions`. A small diffusion decoder has less to guide: fewer steps, less guidance.

    weights: a local checkpoint instead of the one that ships; autoencoder: of the diffusion decoder's latents,
    likewise.
    """

    weights: str | None = None
    autoencoder: str | None = None
    steps: int = 5
    guidance_scale: float = 3.0
    noise_level: int = 0


class SeedTok(Tokenizer):
    """SEED-2: 32 causal ids of an image's meaning, from which unCLIP generates a new image; no pixel fidelity is meant.

    The published code draws the starting latents once, unseeded, and the embedding's noise from the global generator;
    here both follow from the image's seed.
    """

    Options: ClassVar[type] = SeedTokOptions
    path_options: ClassVar[tuple[str, ...]] = ("weights", "vit", "unclip")
    scale = "paper"
    code_licence = "Apache-2.0, parts BSD-3-Clause (LAVIS)"
    weights_licence = "Apache-2.0 (seed-tokenizer-2), OpenRAIL++-M (SD 2.1 unCLIP), not stated (eva_vit_g)"
    QUANTIZER: ClassVar[HubWeights] = HubWeights(
        "AILab-CVC/seed-tokenizer-2", "seed_quantizer.pt", "c6d957a9b280d9ed3879b1eb5d99036cf8390012"
    )
    VIT: ClassVar[UrlWeights] = UrlWeights(
        "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
    )
    UNCLIP: ClassVar[str] = "sd2-community/stable-diffusion-2-1-unclip"
    """A mirror in wide use of stabilityai/stable-diffusion-2-1-unclip, which Stability AI took off the hub in November
    2025. (The mirror's `...-unclip-small` takes other embeddings.)"""
    dtypes: ClassVar[Mapping[str, torch.dtype]] = {"vae": torch.float16}  # as SEED runs the pipeline
    CONFIG: ClassVar[SeedConfig] = SeedConfig()
    TOGETHER: ClassVar[int] = 1

    def __init__(self, options: Any, device: torch.device) -> None:
        super().__init__(options, device)
        self.sampling = unclip.Sampling(
            options.steps, options.guidance_scale, options.noise_level, together=self.TOGETHER
        )
        model, decoder = self._load()
        self.model = model.eval().requires_grad_(False).to(device)
        self.unclip = decoder.place(device, memory_options(options))
        if not 0 <= options.noise_level < self.unclip.noise_levels:
            raise ValueError(f"noise_level {options.noise_level}: expected 0 to {self.unclip.noise_levels - 1}")

    def _load(self) -> tuple[SeedModel, unclip.UnCLIP]:
        """Both networks on the CPU, with their weights."""
        quantizer, vit, *pipeline = [locate(source) for source in self.weights(self.options)]
        model, folder = _load_model(self.CONFIG, quantizer, vit), common_folder(pipeline)
        decoder = unclip.load(folder)
        if decoder.embedding_dim != self.CONFIG.image_features_dim:
            raise WeightsError(
                f"{folder} takes image embeddings of {decoder.embedding_dim} values, "
                f"expected {self.CONFIG.image_features_dim}: it is another unCLIP model than {self.UNCLIP}"
            )
        return model, decoder

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """The quantizer, the ViT, then each file of the diffusion decoder's folder."""
        quantizer = cls.QUANTIZER if options.weights is None else LocalWeights(options.weights)
        vit = cls.VIT if options.vit is None else LocalWeights(options.vit)
        return quantizer, vit, *_pipeline_sources(cls.UNCLIP, options.unclip)

    def networks(self) -> Mapping[str, nn.Module]:
        """The tokenizer, and the diffusion decoder's networks."""
        return {"model": self.model} | self.unclip.networks()

    @property
    def training(self) -> TrainingCompute:
        """What the checkpoints' training cost."""
        return TrainingCompute()

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo(
            family="SeedTok",
            tokens_per_image=self.model.config.qformer.num_query_token,
            codebook_size=self.model.config.n_embed,
            input_size=self.model.config.vit.img_size,
            output_size=self.unclip.output_size,
            deterministic=False,
            training=self.training,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        """Images (B, 3, S, S) in [0, 1] to ids (B, 32). ValueError for another size.

        The published processor squeezes any image to S x S by a bicubic filter, its demo by a bilinear one.
        """
        require_images(images, self.model.config.vit.img_size)
        return Tokens(self.model.encode(normalise(images)).ids)

    @torch.no_grad()
    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        """Ids (B, 32) to images (B, 3, S, S) in [0, 1]; both noises of image i follow from seeds[i] alone.

        Raises ValueError for ids that are none.
        """
        ids = require_ids(tokens, self.model.config.qformer.num_query_token, self.model.config.n_embed)
        require_seeds(seeds, len(ids))
        # image by image, so that none depends on what else is in the batch
        rows = [self.model.image_embeds(self.model.lift(one[None])).float() for one in ids]
        embeds = torch.cat([*rows, torch.empty(0, self.model.config.image_features_dim, device=ids.device)])
        return self.unclip.generate(embeds, seeds, self.sampling).float()


class SeedTokMini(SeedTok):
    """The same networks in miniature, by the bundled trainer; EfficientNet-Lite2's features in place of CLIP's."""

    Options = SeedTokMiniOptions
    # the pipeline, which has no text encoder here, keeps its latents in the dtype of the UNet's first weight
    dtypes: ClassVar[Mapping[str, torch.dtype]] = {**SeedTok.dtypes, "unet.conv_in": torch.float32}
    TOGETHER = 8  # guidance is weak
    path_options = ("weights", "autoencoder")
    scale = "mini"
    weights_licence = LICENCE

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        return MINI.source(options.weights), autoencoder.MINI.source(options.autoencoder)

    @property
    def training(self) -> TrainingCompute:
        return self._training

    def _load(self) -> tuple[SeedModel, unclip.UnCLIP]:
        mini, made = MINI.load(lambda made: SeedMini(made.build_config(SeedMiniConfig)), self.options.weights)
        mini.eval().requires_grad_(False)
        file, of_latents = (locate(source) for source in self.weights(self.options))
        made.require_part(file, "autoencoder", of_latents)
        vae, config, of_vae = autoencoder.load_mini_autoencoder(self.options.autoencoder)
        self._training = made.training.on_top_of(of_vae.training)
        return mini.tokenizer, build_unclip(mini.unet, vae, config, mini.tokenizer.config.image_features_dim)


def _pipeline_sources(repo: str, folder: str | None) -> list[WeightsSource]:
    """The diffusion decoder's files: the hub's, or those of a local folder, whatever form its tokenizer has."""
    if folder is not None:
        return [LocalWeights(str(path)) for path in unclip.local_files(Path(folder).expanduser())]
    files = (*unclip.NETWORK_FILES, *unclip.TOKENIZER_FILES)
    otherwise = (
        f"get all of it by `hf download {repo} {' '.join(files)} --local-dir DIR` "
        "and name the folder by options.seedtok.unclip=DIR (a mirror: the repository that it mirrors, "
        "stabilityai/stable-diffusion-2-1-unclip, was removed from the hub in November 2025; your copy of it will do)"
    )
    return [HubWeights(repo, file, otherwise=otherwise) for file in files]


def common_folder(paths: Sequence[Path]) -> Path:
    """The diffusion decoder's one folder. Raises WeightsError for files of several (other revisions)."""
    folder = paths[0].parent.parent
    if strays := [path for path in paths if path.parent.parent != folder]:
        raise WeightsError(
            f"{', '.join(map(str, strays[:3]))}: not in {folder}, hence of another revision of the pipeline; "
            "download all files of one revision, or name one folder by options.seedtok.unclip=DIR"
        )
    return folder


def _load_model(config: SeedConfig, quantizer: Path, vit: Path) -> SeedModel:
    """The model of both files, on the CPU. Raises CheckpointMismatch naming the files and what does not fit.

    Unexpected keys of the files are named in a warning.
    """
    state = {f"{VIT_PREFIX}{name}": tensor for name, tensor in _tensors(vit).items()} | _tensors(quantizer)
    model, adapter = meta_skeleton(SeedModel, config), SeedStateDict()
    with errors_name(f"{quantizer} with {vit}"):
        return adapter.load(model, adapter.without_unexpected(state, model, str(quantizer)))


def _tensors(path: Path) -> dict[str, Tensor]:
    with errors_name(path):
        return find_state_dict(load_state_dict(path))
