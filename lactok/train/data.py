"""What a run trains on: `TrainingData`, and `ImageData`, crops of the images of folders and tars."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from lactok.data.batches import (
    CropRange,
    Pictures,
    SampleOrder,
    StepBatches,
    StepPlan,
    ThreadedBatches,
    TrainingImages,
    WorkerBatches,
    by_folder,
    noise_seed,
    split_ranks,
)
from lactok.data.folder import DataError
from lactok.data.pack import UnreadableImages, open_pack
from lactok.data.sources import all_files
from lactok.data.stream import OnBad, StreamedImages
from lactok.data.tar_roots import find_tars
from lactok.images.decode import ImageError
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

    @property
    def of_what(self) -> str:
        """What the fingerprint is made of, for a message."""
        return "sha256 of the data"

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
    """Random crops of the images of data.root."""

    def __init__(self, images: Pictures) -> None:
        self.images = images
        self._batches: StepBatches | None = None

    @classmethod
    def open(cls, config: TrainConfig, check_held_out: bool = True) -> ImageData:
        """The images, decoded once (`open_pack`), or read as they are needed (`StreamedImages`): those of tars, and all
        with data.stream=true. Raises DataError, WriteError."""
        data = config.data
        assert data.roots, "data.root is None: expected the folder that compose_config requires"
        where = Path(data.pack).expanduser() if data.pack else config.folder
        streamed = data.stream
        if streamed is None:
            streamed = any(find_tars(root) is not None for root in data.roots)
        on_bad: OnBad = "skip" if data.on_bad_image == "skip" else "stop"
        if not streamed:
            try:
                return cls(open_pack(data.roots, where, data.side, check_held_out))
            except UnreadableImages as error:
                if on_bad == "stop":
                    raise
                more = "train without them by data.stream=true: data.on_bad_image=skip is for streamed images alone"
                raise DataError(f"{error}, or {more}") from None
        images = StreamedImages(all_files(data.roots, where), data.side, where, on_bad, check_held_out)
        if on_bad == "stop":
            images.check()
        return cls(images)

    @property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    @property
    def of_what(self) -> str:
        return self.images.of_what

    def __len__(self) -> int:
        return len(self.images)

    def begin(self, recipe: Recipe, config: TrainConfig, share: Share) -> None:
        data = config.data
        training, validation = split_ranks(self.images.ranks, data.validation)
        if not len(training):
            raise DataError(
                f"data.root={data.root} holds {len(self.images)} image(s), data.validation={data.validation} of them "
                "held back: none is left to train on; name a larger folder, or a smaller data.validation"
            )
        folders = by_folder(training, self.images.counts)
        if empty := [root for root, indices in zip(data.roots, folders) if data.weights and not len(indices)]:
            raise DataError(
                f"data.root: all images of {', '.join(empty)} are held back: none is left to train on; leave the "
                "folder out, or name a smaller data.validation"
            )
        if data.weights is None:
            folders = [training]
        crops = CropRange(data.smallest_crop, data.largest_crop)
        order = SampleOrder(folders, config.seed, data.weights or (1.0,))
        images = TrainingImages(self.images, order, crops, share.per_step)
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
        usable = self._usable(validation)
        self.shown = shown_images(self.images, usable, recipe.image_size, crops)
        self.measured = measured_images(self.images, usable, recipe.image_size, crops)

    def _usable(self, validation: Sequence[int]) -> list[int]:
        """Those that can be read, which data.on_bad_image=skip does not know before. Raises DataError for none."""
        usable: list[int] = []
        for i in validation:
            with contextlib.suppress(ImageError):
                self.images[i]
                usable.append(i)
        if not usable:
            raise DataError(f"none of the {len(validation)} images held back (data.validation) can be read")
        return usable

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
