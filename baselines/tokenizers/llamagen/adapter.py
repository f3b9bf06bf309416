"""LlamaGen's VQ tokenizer behind the benchmark's interface: the two published checkpoints, and the miniature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.tokenizers.llamagen.keymap import load_official, meta_model
from lactok.interface import Tokenizer, TokenizerInfo, Tokens, TrainingCompute
from lactok.models.vq import VQConfig, VQModel
from lactok.tokenizers.miniature import LICENCE, Miniature
from lactok.weights import HubWeights, WeightsError, WeightsSource, load_state_dict, locate, override

MINI = Miniature(
    "llamagen-mini.safetensors",
    sha256="41537c9090876e0e21a8614d9ca88e5af7907451cde93bd8ef8c66ed93671c68",
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


def official_tensors(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict inside a published checkpoint: under `ema`, else `model`, else `state_dict`, else the file itself.

    That order is the published reconstruction script's. Raises WeightsError when what is found is no state dict.
    """
    key = next((k for k in ("ema", "model", "state_dict") if k in checkpoint), None)
    state = checkpoint if key is None else checkpoint[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        where = "at its top level" if key is None else f"under {key!r}"
        raise WeightsError(f"{path}: {where} stands something else than names with tensors; not a VQ checkpoint")
    return state


class _VQTokenizer(Tokenizer):
    """A `VQModel` on square pictures of one size; subclasses load it."""

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
        """The model on the CPU, the side of its pictures, and what its training cost."""
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
        """Pictures (B, 3, S, S) in [0, 1] to ids (B, (S / factor)^2), row by row. ValueError for another size."""
        if images.shape[1:] != (3, self._size, self._size):
            raise ValueError(
                f"pictures of shape {tuple(images.shape)}, expected (B, 3, {self._size}, {self._size}); "
                "the protocol resizes to info.input_size"
            )
        return Tokens(self.model.encode(2 * images - 1).ids.flatten(1))

    @torch.no_grad()
    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        """Ids (B, N) to pictures (B, 3, S, S) around [0, 1]; seeds are not used. Raises ValueError for other ids."""
        ids = tokens.ids
        if ids is None or ids.shape[1:] != (self._side**2,):
            seen = "latents" if ids is None else f"ids of shape {tuple(ids.shape)}"
            raise ValueError(f"{seen}, expected ids of shape (B, {self._side**2})")
        size = self.model.config.codebook_size
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise ValueError(f"ids from {int(ids.min())} to {int(ids.max())}, expected 0 to {size - 1}")
        return (self.model.decode_ids(ids.view(-1, self._side, self._side)).float() + 1) / 2


class LlamaGen(_VQTokenizer):
    """VQ-16 trained on ImageNet (class-conditional LlamaGen; the LacTok paper's LlamaGen row)."""

    Options = LlamaGenOptions
    scale = "paper"
    weights_licence = "MIT by the hub wrapper; the repository states none for weights"
    SOURCE: ClassVar[HubWeights] = HubWeights("FoundationVision/LlamaGen", "vq_ds16_c2i.pt")
    TRAINING: ClassVar[TrainingCompute] = TrainingCompute(data="ImageNet train")
    CONFIG: ClassVar[VQConfig] = VQConfig()

    @classmethod
    def weights(cls, options: LlamaGenOptions) -> tuple[WeightsSource, ...]:
        return (override(cls.SOURCE, options.weights),)

    def _load(self) -> tuple[VQModel, int, TrainingCompute | None]:
        (source,) = self.weights(self.options)
        path = locate(source)
        state = official_tensors(load_state_dict(path), path)
        try:
            model = load_official(meta_model(self.CONFIG), state)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        return model, self.options.input_size, self.TRAINING


class LlamaGenT2I(LlamaGen):
    """VQ-16 fine-tuned from the ImageNet one on LAION-COCO and internal pictures (text-to-image LlamaGen)."""

    SOURCE = HubWeights("peizesun/llamagen_t2i", "vq_ds16_t2i.pt")
    TRAINING = TrainingCompute(data="ImageNet train, then LAION-COCO and internal pictures")


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
