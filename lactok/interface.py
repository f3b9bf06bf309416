"""What a plugin implements: `Tokenizer`, `Generator` or `Recorded`, and the records that pass through it.

Images are float32 tensors (B, 3, H, W), RGB in [0, 1]. A model states its native sizes and nothing more: who resizes,
and how, is the protocol's business (evals/tasks).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lactok.items import Item as Item  # data sets import it without torch
from lactok.weights import WeightsSource


@dataclass(frozen=True)
class Tokens:
    """What a discrete tokenizer encodes to; the harness stores them.

    ids: int64 (B, N), or (B, N, K) with K sub-codes a position.
    lengths: int64 (B,), how many of the N positions count for each image; None when all do.
    """

    ids: Tensor
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | list[int]) -> Tokens:
        return Tokens(self.ids[rows], None if self.lengths is None else self.lengths[rows])

    def owned(self) -> Tokens:
        """A copy in memory of its own: runtimes return one buffer every call, and some write into their inputs."""
        return Tokens(self.ids.clone(), None if self.lengths is None else self.lengths.clone())

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.ids.to(device), None if self.lengths is None else self.lengths.to(device))

    @staticmethod
    def cat(parts: Sequence[Tokens]) -> Tokens:
        """Join batches. Raises ValueError where only some parts have lengths."""
        lengths = [p.lengths for p in parts if p.lengths is not None]
        if lengths and len(lengths) < len(parts):
            raise ValueError(f"{len(lengths)} of {len(parts)} batches of tokens have lengths: expected all or none")
        return Tokens(torch.cat([p.ids for p in parts]), torch.cat(lengths) if lengths else None)


@dataclass(frozen=True)
class Latents:
    """What a continuous autoencoder encodes to; not stored, and its bits are undefined. values: float32 (B, ...)."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | list[int]) -> Latents:
        return Latents(self.values[rows])

    def owned(self) -> Latents:
        """A copy in memory of its own."""
        return Latents(self.values.clone())

    def to(self, device: torch.device | str) -> Latents:
        return Latents(self.values.to(device))

    @staticmethod
    def cat(parts: Sequence[Latents]) -> Latents:
        """Join batches."""
        return Latents(torch.cat([p.values for p in parts]))


class ItemsRefused(Exception):
    """Raised by a model for the items of a batch that it can't take; the harness runs the others without them.

    reasons: position in the batch to a one-line reason.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        self.reasons = dict(reasons)
        super().__init__("; ".join(f"item {place} of the batch: {why}" for place, why in self.reasons.items()))


class Unavailable(Exception):
    """Raised by `Model.weights` of a reference row where this machine lacks an optional part that it needs; the row
    says so, and the run counts as whole without it. Of a model under test it is a failure."""


class Unreachable(Exception):
    """Raised by a reference row that can't spend as little as it is asked to; the row says so, and the run counts as
    whole without it."""


def _sum(a: float | None, b: float | None) -> float | None:
    """Of what is known; None where nothing is."""
    return None if a is None and b is None else (a or 0) + (b or 0)


@dataclass(frozen=True)
class TrainingCompute:
    """What a checkpoint's training cost. None where the publisher does not say.

    steps: optimizer steps; images: images seen; core_hours: CPU core-hours; gpu_hours: with `gpu` naming the kind, or
        kinds, joined by " + ".
    losses: perceptual losses that it or a part of it was trained on, by the metric of the same network ("lpips-vgg",
    "lpips-alex"), or "lpips" where the network is not told; metrics that share the network say so beside its figures.
    """

    steps: int | None = None
    images: int | None = None
    core_hours: float | None = None
    gpu_hours: float | None = None
    gpu: str | None = None
    data: str | None = None
    losses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.losses, str):
            object.__setattr__(self, "losses", tuple(self.losses))  # JSON gives lists

    def on_top_of(self, part: TrainingCompute) -> TrainingCompute:
        """This training, with hours and losses of a frozen part that was trained before it; the rest stays its own."""
        cards = [card for gpu in (part.gpu, self.gpu) if gpu for card in gpu.split(" + ")]
        return dataclasses.replace(
            self,
            gpu=" + ".join(dict.fromkeys(cards)) or None,
            core_hours=_sum(self.core_hours, part.core_hours),
            gpu_hours=_sum(self.gpu_hours, part.gpu_hours),
            losses=tuple(sorted({*self.losses, *part.losses})),
        )

    def after(self, start: TrainingCompute) -> TrainingCompute:
        """This training and the one that made the weights that it began with: steps, images, hours and data of both."""
        whole = self.on_top_of(start)
        steps, images = _sum(self.steps, start.steps), _sum(self.images, start.images)
        seen = [part for data in (start.data, self.data) if data for part in data.split("; then ")]
        return dataclasses.replace(
            whole,
            steps=None if steps is None else int(steps),
            images=None if images is None else int(images),
            data="; then ".join(dict.fromkeys(seen)) or None,
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
    """The facts of one built tokenizer, shown with its numbers.

    family: the method ("LlamaGen", "TiTok", "calibration").
    tokens_per_image: N x K tokens, None for continuous autoencoders or a tokenizer without tokens (identity).
    codebook_size: number of values an id can take; a tuple where the K slots differ.
    input_size, output_size: side in pixels of the square images that `encode` takes and `decode` gives; None: any
        size, and the evaluation size is used.
    deterministic: False where `decode` depends on its seeds.
    training: compute of the checkpoint; None where nothing was trained.
    """

    family: str
    tokens_per_image: int | None
    codebook_size: int | tuple[int, ...] | None
    input_size: int | None
    output_size: int | None
    deterministic: bool = True
    training: TrainingCompute | None = None

    @property
    def bits_per_image(self) -> float | None:
        """Tokens times log2(codebook size), the rate of a fixed-length code and the most that one of variable length
        spends; None where there are no tokens."""
        if self.tokens_per_image is None or self.codebook_size is None:
            return None
        if isinstance(self.codebook_size, int):
            return self.tokens_per_image * math.log2(self.codebook_size)
        return self.tokens_per_image / len(self.codebook_size) * sum(math.log2(v) for v in self.codebook_size)


@dataclass(frozen=True)
class GeneratorInfo:
    """The facts of one built generator, shown with its numbers.

    family: the method; output_size: side in pixels of its images, None where they differ; deterministic: False where
    images depend on their seeds; settings: what it samples with (steps, guidance_scale, dtype), as shown; training as
    in TokenizerInfo.
    """

    family: str
    output_size: int | None = None
    deterministic: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingCompute | None = None


@dataclass(frozen=True)
class RecordedInfo:
    """The facts of images that were made elsewhere.

    deterministic: False where there are several of an item. any_size: whether, in reconstruction, an image that has
    neither its reference's size nor the evaluation image's is resized by the protocol's back_filter, as what a
    tokenizer decodes is; otherwise it is refused.
    """

    family: str
    deterministic: bool = True
    training: TrainingCompute | None = None
    any_size: bool = False


ModelInfo = TokenizerInfo | GeneratorInfo | RecordedInfo


@dataclass
class NoOptions:
    """For plugins that have nothing to set."""


class Model(ABC):  # noqa: B024  # its kinds declare what is abstract
    """What every model under test has. Register a subclass under the entry-point group `lactok.tokenizers` or
    `lactok.generators`.

    Class attributes:
        Options: a dataclass of what a user may set by `options.NAME.key=value`; every field has a default and a type.
        preset_options: by preset ("mini", "paper"), option values that take the place of the declared defaults.
        version: raise it when the plugin's results change for the same weights; stored results are then recomputed.
        path_options: the options that name local copies of checkpoints; the files' sha256 determine results, not these.
        scale: "mini", "paper" or "any": under which `weights=` preset "all" takes it; "none": under neither.
        ablation: whether it is a step on the way to another row, which "all" leaves out.
        calibration: None for a model under test; a calibration row has its place in a table: negative before the
            models, positive after them.
        code_licence, weights_licence: SPDX names, or a short statement.
        dtypes: under precision=bf16, the dtype of networks, or of parts of them, that the publisher's code runs in
            another one, by dotted name as `networks` gives it ("model.vae"); where the calls are to be in it, too, the
            plugin makes them outside of autocast.
    """

    Options: ClassVar[type] = NoOptions
    preset_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    version: ClassVar[int] = 1
    path_options: ClassVar[tuple[str, ...]] = ("weights",)
    scale: ClassVar[str] = "any"
    ablation: ClassVar[bool] = False
    calibration: ClassVar[int | None] = None
    code_licence: ClassVar[str] = "not stated"
    weights_licence: ClassVar[str] = "not stated"
    dtypes: ClassVar[Mapping[str, torch.dtype]] = {}

    def __init__(self, options: Any, device: torch.device) -> None:
        """Build and load. Raises `lactok.weights.MissingWeights` when a checkpoint is missing."""
        self.options = options
        self.device = device

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """The checkpoints that it loads with these options, in order; () where nothing was trained."""
        return ()

    @classmethod
    def label(cls, options: Any) -> str | None:
        """What its row is called with these options; None: its registered name with the options that differ."""
        return None

    @classmethod
    def at_rate(cls, bits: float) -> Mapping[str, Any] | None:
        """Of a calibration row that can spend any number of bits: the options with which it spends at most about
        `bits` an image; a table then has a row of it for each rate of its models. None where it can't."""
        return None

    @classmethod
    def same_as(cls, options: Any) -> Any:
        """Of a calibration row: rows whose values of this are equal are one and the same, and a table has one of them.

        By default the options themselves.
        """
        return tuple(sorted(dataclasses.asdict(options).items()))

    @classmethod
    def rate_parts(cls, options: Any, tokens: Tokens) -> Mapping[str, float]:
        """What an image's bytes are spent on ("header", "payload"), mean over the images; {}: nothing is told apart.

        tokens: all images', on the CPU.
        """
        return {}

    def networks(self) -> Mapping[str, nn.Module]:
        """Its networks by name. Under precision=bf16 linear and convolution layers of them are held in bfloat16.

        By default the attributes that are networks.
        """
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}


class Tokenizer(Model):
    """An image to tokens and back.

    `encode` and `decode` that have a parameter `items` are also given one Item an image: its file name (`items[i].id`)
    and what the dataset knows of it (`items[i].metadata`). Both are then in the keys of what they give.
    """

    @property
    @abstractmethod
    def info(self) -> TokenizerInfo:
        """The facts of this tokenizer with its options."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tokens | Latents:
        """Images to tokens. images: float32 (B, 3, input_size, input_size), RGB in [0, 1], on this device."""

    @abstractmethod
    def decode(self, encoded: Any, seeds: Sequence[int]) -> Tensor:
        """What `encode` gave, as images: float (B, 3, output_size, output_size), RGB around [0, 1], not clamped.

        seeds: one non-negative 63-bit integer an image. A decoder that draws noise draws image i's noise from
        seeds[i] alone, so that the result does not depend on order, batch or sharding.
        """


def asks_for_items(call: Any) -> bool:
    """Whether an `encode` or `decode` has a parameter `items`."""
    try:
        return "items" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # of compiled code that does not tell
        return False


def with_items(call: Callable[..., Any], items: Sequence[Item]) -> Callable[..., Any]:
    """The call, given copies of these items where it asks for them."""
    if not asks_for_items(call):
        return call
    given = [dataclasses.replace(i, tags=dict(i.tags), metadata=dict(i.metadata)) for i in items]

    def called(*arguments: Any) -> Any:
        return call(*arguments, items=given)

    return called


class Generator(Model):
    """Prompts to images.

    Class attribute expected_side: pixels of a side of its images as far as they are known before it is loaded, None
    where they are not; the estimate of disk space reads it, and nothing else.
    """

    expected_side: ClassVar[int | None] = None

    @property
    @abstractmethod
    def info(self) -> GeneratorInfo:
        """The facts of this generator with its options."""

    @abstractmethod
    def generate(self, items: Sequence[Item], seed_indices: Sequence[int], seeds: Sequence[int]) -> Sequence[Tensor]:
        """An image for each item: a tensor (B, 3, H, W) or B tensors (3, H, W), float RGB in [0, 1].

        items: their payloads are the prompts. seed_indices: which of several outputs of an item each is, from 0.
        seeds: as for `Tokenizer.decode`; they derive from the run's seed, the seed index and the item's content.
        Raises ItemsRefused for prompts that it can't take.
        """


class Recorded(Model):
    """Images that were made elsewhere; every task takes them.

    colour: what `images` does by colour profiles of files: the protocol's `colour`, set before each call.
    """

    colour: Literal["ignore", "srgb"] = "ignore"

    @property
    @abstractmethod
    def info(self) -> RecordedInfo:
        """The facts of these images."""

    @abstractmethod
    def images(self, items: Sequence[Item], seed_indices: Sequence[int]) -> Sequence[Tensor]:
        """The recorded images of these items, as `Generator.generate` gives them.

        Raises ItemsRefused for those that are missing.
        """
