"""What a run trains on: `TrainingData`, and `ImageData`, crops of a folder's images."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch

from lactok.data.batches import (
    CropRange,
    SampleOrder,
    StepBatches,
    StepPlan,
    ThreadedBatches,
    TrainingImages,
    WorkerBatches,
    by_folder,
    noise_seed,
    split,
)
from lactok.data.folder import DataError
from lactok.data.pack import Pack, open_pack
from lactok.train.config import TrainConfig
from lactok.train.recipe import Batch, Recipe
from lactok.train.sheet import measured_images, shown_images


@dataclass(frozen=True)
class Share:
    """What one process takes of every step. rows: the samples of each of its micro-batches; per_step: samples of a step
    in all processes; device: where it trains."""

    rows: tuple[range, ...]
    per_step: int
    device: torch.device


class TrainingData(ABC):
    """Batches as a pure function of (seed, step, sample), and fixed samples to show and measure.

    shown, measured: what `Recipe.reconstruct` and `Recipe.measure` take; set by `begin`.
    """

    unit: ClassVar[str] = "images"
    shown: Any
    measured: Any

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 hex over the content, in order: a run goes on with the same data alone."""

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are, those held back included."""

    @abstractmethod
    def begin(self, recipe: Recipe, config: TrainConfig, share: Share) -> None:
        """Make ready what `at` needs. Raises DataError where nothing is left to train on."""

    @abstractmethod
    def at(self, step: int) -> list[Any]:
        """This process's micro-batches of a step, as `Recipe.forward` takes them. Steps are asked for in order."""

    def close(self) -> None:  # noqa: B027  # some work ahead, others don't
        """Stop what works ahead."""


class ImageData(TrainingData):
    """Random crops of the images below data.root."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self._batches: StepBatches | None = None

    @classmethod
    def open(cls, config: TrainConfig, check_held_out: bool = True) -> ImageData:
        """The images, decoded. Raises DataError, WriteError; see `open_pack`."""
        assert config.data.roots, "data.root is None: expected the folder that compose_config requires"
        where = Path(config.data.pack).expanduser() if config.data.pack else config.folder
        return cls(open_pack(config.data.roots, where, config.data.side, check_held_out))

    @property
    def fingerprint(self) -> str:
        """Over the images' names, sizes and pixels (as they are packed)."""
        index = self.pack.index
        return sha256(json.dumps([index.names, index.sizes, index.pixels]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.pack)

    def begin(self, recipe: Recipe, config: TrainConfig, share: Share) -> None:
        data = config.data
        training, validation = split(self.pack.index.names, data.validation)
        if not training:
            raise DataError(
                f"data.root={data.root} holds {len(self.pack)} image(s), data.validation={data.validation} of them "
                "held back: none is left to train on; name a larger folder, or a smaller data.validation"
            )
        folders = by_folder(training, self.pack.index.counts)
        if empty := [root for root, indices in zip(data.roots, folders) if data.weights and not indices]:
            raise DataError(
                f"data.root: all images of {', '.join(empty)} are held back: none is left to train on; leave the "
                "folder out, or name a smaller data.validation"
            )
        if data.weights is None:
            folders = [training]
        crops = CropRange(data.smallest_crop, data.largest_crop)
        order = SampleOrder(folders, config.seed, data.weights or (1.0,))
        images = TrainingImages(self.pack, order, crops, share.per_step)
        self._seed, self._rows = config.seed, share.rows
        plan = StepPlan(share.rows, config.steps, recipe.image_size_at)
        workers = data.workers
        if workers is None:
            workers = 0 if share.device.type == "cpu" else min(8, os.cpu_count() or 1)
        self._batches = (
            WorkerBatches(images, plan, share.device, workers)
            if workers
            else ThreadedBatches(images, plan, share.device)
        )
        self.shown = shown_images(self.pack, validation, recipe.image_size, crops)
        self.measured = measured_images(self.pack, validation, recipe.image_size, crops)

    def at(self, step: int) -> list[Batch]:
        assert self._batches is not None, "begin was not called"
        return [
            Batch(images, step_seeds(self._seed, step, samples), step)
            for images, samples in zip(self._batches.at(step), self._rows, strict=True)
        ]

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()


def step_seeds(seed: int, step: int, samples: Sequence[int]) -> tuple[int, ...]:
    """The noise seeds of these samples of a step."""
    return tuple(noise_seed(seed, step, i) for i in samples)
