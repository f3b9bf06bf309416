"""TiTok-S-128 behind the benchmark's interface: the published checkpoint, and the miniature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.tokenizers.titok.model import TiTok, TiTokConfig
from baselines.tokenizers.titok.state_dict import TiTokStateDict
from lactok.interface import Tokenizer, TokenizerInfo, Tokens, TrainingCompute
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.tokenizers.checks import require_ids, require_images
from lactok.tokenizers.miniature import LICENCE, Miniature
from lactok.weights import HubWeights, WeightsSource, load_state_dict, locate, override

MINI = Miniature(
    "titok-mini.safetensors",
    sha256="b459980d0b870c341091c901a9cfee2eb8dc3049498d670bb446e1961a78e8bb",
    command="python -m lactok.train recipe=titok scale=mini data.root=DIR",
)


@dataclass
class TiTokOptions:
    """weights: a local checkpoint instead of the hub's.

    Both published forms are taken: `model.safetensors`, and the pickled `tokenizer_titok_s128.bin`.
    """

    weights: str | None = None


@dataclass
class TiTokMiniOptions:
    """weights: a local checkpoint instead of the one that ships with the package."""

    weights: str | None = None


class TiTokS128(Tokenizer):
    """TiTok-S-128 trained on ImageNet at 256 pixels: 128 ids of 4096, decoded by MaskGIT-VQGAN's pixel decoder."""

    Options: ClassVar[type] = TiTokOptions
    scale = "paper"
    code_licence = "Apache-2.0"
    weights_licence = "Apache-2.0 by the model class; the repository's readme says research use only (ImageNet)"
    SOURCE: ClassVar[HubWeights] = HubWeights(
        "yucornetto/tokenizer_titok_s128_imagenet", "model.safetensors", "aa8740991cc9e5965e6dea04caad8905193fc24b"
    )
    TRAINING: ClassVar[TrainingCompute] = TrainingCompute(data="ImageNet train")
    CONFIG: ClassVar[TiTokConfig] = TiTokConfig()

    def __init__(self, options: Any, device: torch.device) -> None:
        super().__init__(options, device)
        model, self._training = self._load()
        self.model = model.eval().requires_grad_(False).to(device)

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        return (override(cls.SOURCE, options.weights),)

    def _load(self) -> tuple[TiTok, TrainingCompute | None]:
        """The model on the CPU, and what its training cost."""
        (source,) = self.weights(self.options)
        path = locate(source)
        with errors_name(path):
            state = find_state_dict(load_state_dict(path))
            model = TiTokStateDict().load(meta_skeleton(TiTok, self.CONFIG), state)
        return model, self.TRAINING

    @property
    def info(self) -> TokenizerInfo:
        config = self.model.config
        return TokenizerInfo(
            family="TiTok",
            tokens_per_image=config.num_latent_tokens,
            codebook_size=config.codebook_size,
            input_size=config.image_size,
            output_size=config.output_size,
            training=self._training,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        """Images (B, 3, S, S) in [0, 1], no normalisation, to ids (B, N). ValueError for another size."""
        require_images(images, self.model.config.image_size)
        return Tokens(self.model.encode(images).ids.flatten(1))

    @torch.no_grad()
    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        """Ids (B, N) to images (B, 3, S, S) around [0, 1]; seeds are not used. Raises ValueError for other ids."""
        ids = require_ids(tokens, self.model.config.num_latent_tokens, self.model.config.codebook_size)
        return self.model.decode_ids(ids.unsqueeze(1)).float()


class TiTokMini(TiTokS128):
    """The same network in miniature, by the bundled trainer: narrower, a pixel decoder on patches."""

    Options = TiTokMiniOptions
    scale = "mini"
    weights_licence = LICENCE

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        return (MINI.source(options.weights),)

    def _load(self) -> tuple[TiTok, TrainingCompute | None]:
        model, metadata = MINI.load(lambda made: TiTok(made.build_config(TiTokConfig)), self.options.weights)
        return model, metadata.training
