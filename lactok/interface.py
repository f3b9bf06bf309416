"""What a plugin implements: `Tokenizer`, and the `Codes` that pass between its encoder and decoder.

Images are float32 tensors (B, 3, H, W), RGB in [0, 1]. A plugin states its native sizes and nothing more: who
resizes, and how, is the protocol's business (evals/protocol.py).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lactok.weights import WeightsSource


@dataclass(frozen=True)
class Codes:
    """What `encode` gives and `decode` takes.

    ids: int64 (B, N), or (B, N, K) with K sub-codes a position; None for a continuous autoencoder.
    lengths: int64 (B,), how many of the N positions count for each image; None when all do.
    latents: float32 (B, ...), for continuous autoencoders only; their bits are undefined.
    """

    ids: Tensor | None = None
    lengths: Tensor | None = None
    latents: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.ids is None) == (self.latents is None):
            raise ValueError("Codes holds either ids or latents, exactly one of the two")

    def __len__(self) -> int:
        held = self.ids if self.ids is not None else self.latents
        assert held is not None, "Codes without ids and latents: expected exactly one of the two"
        return len(held)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are set, by name (what the store writes)."""
        return {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None}

    def __getitem__(self, rows: slice) -> Codes:
        return Codes(**{k: v[rows] for k, v in self.tensors().items()})

    def to(self, device: torch.device | str) -> Codes:
        return Codes(**{k: v.to(device) for k, v in self.tensors().items()})

    @staticmethod
    def cat(parts: Sequence[Codes]) -> Codes:
        """Join batches; all parts must hold the same fields."""
        return Codes(**{k: torch.cat([getattr(p, k) for p in parts]) for k in parts[0].tensors()})


@dataclass(frozen=True)
class TrainingCompute:
    """What a checkpoint's training cost. None where the publisher does not say.

    steps: optimizer steps; images: pictures seen; core_hours: CPU core-hours; gpu_hours: with `gpu` naming the kind.
    """

    steps: int | None = None
    images: int | None = None
    core_hours: float | None = None
    gpu_hours: float | None = None
    gpu: str | None = None
    data: str | None = None

    def on_top_of(self, part: TrainingCompute) -> TrainingCompute:
        """This training, with the hours of a frozen part that was trained before it; steps and images stay its own."""

        def both(a: float | None, b: float | None) -> float | None:
            return None if a is None and b is None else (a or 0) + (b or 0)

        return dataclasses.replace(
            self,
            gpu=self.gpu or part.gpu,
            core_hours=both(self.core_hours, part.core_hours),
            gpu_hours=both(self.gpu_hours, part.gpu_hours),
        )

    def __str__(self) -> str:
        parts = []
        if self.steps is not None:
            parts.append(f"{self.steps:,} steps")
        if self.core_hours is not None:
            parts.append(f"{self.core_hours:.2g} core-h")
        if self.gpu_hours is not None:
            parts.append(f"{self.gpu_hours:.2g} GPU-h{f' {self.gpu}' if self.gpu else ''}")
        return ", ".join(parts) or "not published"


@dataclass(frozen=True)
class TokenizerInfo:
    """The facts of one built tokenizer, shown beside its numbers.

    family: the method ("LlamaGen", "TiTok", "calibration").
    ids_per_image: N x K ids, None for continuous autoencoders or a tokenizer without ids (identity).
    vocabulary: number of values an id can take; a tuple where the K slots differ.
    input_size, output_size: side in pixels of the square pictures that `encode` takes and `decode` gives; None: any
        size, and the evaluation size is used.
    deterministic: False where `decode` depends on its seeds.
    training: compute of the checkpoint; None where nothing was trained.
    """

    family: str
    ids_per_image: int | None
    vocabulary: int | tuple[int, ...] | None
    input_size: int | None
    output_size: int | None
    deterministic: bool = True
    training: TrainingCompute | None = None

    @property
    def bits_per_image(self) -> float | None:
        """Ids times log2(vocabulary), the rate of a fixed-length code; None where there are no ids."""
        if self.ids_per_image is None or self.vocabulary is None:
            return None
        if isinstance(self.vocabulary, int):
            return self.ids_per_image * math.log2(self.vocabulary)
        return self.ids_per_image / len(self.vocabulary) * sum(math.log2(v) for v in self.vocabulary)


@dataclass
class NoOptions:
    """For plugins that have nothing to set."""


class Tokenizer(ABC):
    """A picture to codes and back. Subclass it, name the class under the entry-point group `lactok.tokenizers`.

    Class attributes:
        Options: a dataclass of what a user may set by `options.NAME.key=value`; every field has a default and a type.
        version: raise it when the plugin's results change for the same weights; stored results are then made anew.
        path_options: the options that name local copies of checkpoints; the files' sha256 determine results, not these.
        scale: "mini", "paper" or "any": under which `weights=` preset `tokenizers=all` takes it.
        ablation: whether it is a step on the way to another row, which `tokenizers=all` leaves out.
        code_licence, weights_licence: SPDX names, or a short statement.
    """

    Options: ClassVar[type] = NoOptions
    version: ClassVar[int] = 1
    path_options: ClassVar[tuple[str, ...]] = ("weights",)
    scale: ClassVar[str] = "any"
    ablation: ClassVar[bool] = False
    code_licence: ClassVar[str] = "not stated"
    weights_licence: ClassVar[str] = "not stated"

    def __init__(self, options: Any, device: torch.device) -> None:
        """Build and load. Raises `lactok.weights.MissingWeights` when a checkpoint is not to be had."""
        self.options = options
        self.device = device

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """The checkpoints that it loads with these options, in order; () where nothing was trained."""
        return ()

    @property
    @abstractmethod
    def info(self) -> TokenizerInfo:
        """The facts of this tokenizer with its options."""

    @abstractmethod
    def encode(self, images: Tensor) -> Codes:
        """Pictures to codes. images: float32 (B, 3, input_size, input_size), RGB in [0, 1], on this device."""

    @abstractmethod
    def decode(self, codes: Codes, seeds: Sequence[int]) -> Tensor:
        """Codes to pictures, float (B, 3, output_size, output_size), RGB around [0, 1] (the protocol clamps).

        seeds: one non-negative 63-bit integer an image. A decoder that draws noise draws image i's noise from
        seeds[i] alone, so that the result does not depend on order, batch or sharding.
        """
