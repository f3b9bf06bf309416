"""LlamaGen's VQ tokenizer behind the benchmark's interface: the two published checkpoints, and the miniature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lactok.interface import Tokenizer, TokenizerInfo, Tokens, TrainingCompute
from lactok.models.vq import VQConfig, VQModel
from lactok.models.vq_state_dict import NESTED, VQStateDict
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.tokenizers.checks import require_ids, require_images
from lactok.tokenizers.miniature import LICENCE, Miniature
from lactok.weights import HubWeights, WeightsSource, load_state_dict, locate, override

MINI = Miniature(
    "llamagen-mini.safetensors",
    sha256="bed44b254b0a59e0f4b17d7cff4b6368fb8849b291aa69a6e37cf1177aa20725",
    command="python -m lactok.train recipe=vq scale=mini data.root=DIR",
)


@dataclass
class LlamaGenOptions:
    """weights: a local checkpoint instead of the hub's; input_size: pixels of a side, a multiple of 16.

    The model is convolutional; the LacTok paper names 224, 256 and 288 (196, 256 and 324 ids).
    """

    weights: str | None = None
    input_size: int = 256


@dataclass
class LlamaGenMiniOptions:
    """weights: a local checkpoint instead of the one that ships with the package."""

    weights: str | None = None


class _VQTokenizer(Tokenizer):
    """A `VQModel` on square images of one size; subclasses load it."""

    code_licence = "MIT"

    def __init__(self, options: Any, device: torch.device) -> None:
        super().__init__(options, device)
        model, self._size, self._training = self._load()
        factor = model.downsample_factor
        if self._size < factor or self._size % factor:
            raise ValueError(f"input_size {self._size}: expected a positive multiple of {factor}")
        self._side = self._size // factor
        self.model = model.eval().requires_grad_(False).to(device)

    def _load(self) -> tuple[VQModel, int, TrainingCompute | None]:
        """The model on the CPU, the side of its images, and what its training cost."""
        raise NotImplementedError

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo(
            family="LlamaGen",
            tokens_per_image=self._side**2,
            codebook_size=self.model.config.codebook_size,
            input_size=self._size,
            output_size=self._size,
            training=self._training,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        """Images (B, 3, S, S) in [0, 1] to ids (B, (S / factor)^2), row by row. ValueError for another size."""
        require_images(images, self._size)
        return Tokens(self.model.encode(2 * images - 1).ids.flatten(1))

    @torch.no_grad()
    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        """Ids (B, N) to images (B, 3, S, S) around [0, 1]; seeds are not used. Raises ValueError for other ids."""
        ids = require_ids(tokens, self._side**2, self.model.config.codebook_size)
        return (self.model.decode_ids(ids.view(-1, self._side, self._side)).float() + 1) / 2


class LlamaGen(_VQTokenizer):
    """VQ-16 trained on ImageNet (class-conditional LlamaGen; the LacTok paper's LlamaGen row)."""

    Options = LlamaGenOptions
    scale = "paper"
    weights_licence = "MIT (the hub's licence tag)"
    SOURCE: ClassVar[HubWeights] = HubWeights(
        "FoundationVision/LlamaGen",
        "vq_ds16_c2i.pt",
        "81e41139272c038412e4fe8f1c52a51ebbf95b8b",
        "109aa8afb2cf3761eec23cdc8644154cb498f5ab7eef2a35264d25e5e0499f7d",
    )
    TRAINING: ClassVar[TrainingCompute] = TrainingCompute(data="ImageNet train", losses=("lpips-vgg",))
    CONFIG: ClassVar[VQConfig] = VQConfig()

    @classmethod
    def weights(cls, options: LlamaGenOptions) -> tuple[WeightsSource, ...]:
        return (override(cls.SOURCE, options.weights),)

    def _load(self) -> tuple[VQModel, int, TrainingCompute | None]:
        (source,) = self.weights(self.options)
        path = locate(source)
        with errors_name(path):
            state = find_state_dict(load_state_dict(path), NESTED)
            model = VQStateDict().load(meta_skeleton(VQModel, self.CONFIG), state)
        return model, self.options.input_size, self.TRAINING


class LlamaGenT2I(LlamaGen):
    """VQ-16 fine-tuned from the ImageNet one on LAION-COCO and internal images (text-to-image LlamaGen)."""

    SOURCE = HubWeights(
        "peizesun/llamagen_t2i",
        "vq_ds16_t2i.pt",
        "276f5c5a3d915b922899a03f1912605531574747",
        "0e21fc1318e2e9ee641a07bdad0e20675e9ec35e6e3eb911d58b5d7a2cd8d4cb",
    )
    TRAINING = TrainingCompute(data="ImageNet train, then LAION-COCO and internal images", losses=("lpips-vgg",))


class LlamaGenMini(_VQTokenizer):
    """The same network in miniature, by the bundled trainer; patches instead of full-resolution convolutions."""

    Options = LlamaGenMiniOptions
    scale = "mini"
    weights_licence = LICENCE

    @classmethod
    def weights(cls, options: LlamaGenMiniOptions) -> tuple[WeightsSource, ...]:
        return (MINI.source(options.weights),)

    def _load(self) -> tuple[VQModel, int, TrainingCompute | None]:
        model, self.metadata = MINI.load(lambda made: VQModel(made.build_config(VQConfig)), self.options.weights)
        return model, self.metadata.image_size, self.metadata.training
