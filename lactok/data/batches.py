"""Training batches as a pure function of (seed, step, sample): a resumed run needs no state of a loader.

Each epoch is a permutation of the images; each sample is a random square crop, resized and perhaps mirrored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lactok.data.folder import DataError, name_rank
from lactok.images.decode import ImageError

ORDER, CROP, NOISE, FOLDER, INSTEAD = 1, 2, 3, 4, 6
"""Independent RNG streams for one (seed, step, sample); 5 is `lactok.train.token_data.HELD_BACK`."""
_MANY = 2**20
"""Images whose order takes megabytes: few such orders are held."""
_ATTEMPTS = 1000
"""Images in a row that can't be read, after which no other is looked for."""


@dataclass(frozen=True)
class CropRange:
    """Side, in pixels of a packed image, of the square that is cut from it: log-uniform in [smallest, largest].

    Clipped to the image's shorter side. The crop is then resized to the training size (antialiased bicubic), so a
    128-pixel crop at 64 pixels looks like an evaluation tile at the tokenizer's native size.
    """

    smallest: int
    largest: int


def rng(*key: int) -> np.random.Generator:
    """The random numbers that belong to `key`, a tuple of non-negative integers."""
    return np.random.default_rng(key)


def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return (_few_permutations if count > _MANY else _permutations)(seed, epoch, count)


@lru_cache(maxsize=16)
def _permutations(seed: int, epoch: int, count: int) -> np.ndarray:
    return rng(seed, ORDER, epoch).permutation(count)


@lru_cache(maxsize=3)
def _few_permutations(seed: int, epoch: int, count: int) -> np.ndarray:
    return rng(seed, ORDER, epoch).permutation(count).astype(np.uint32 if count < 2**32 else np.int64)


def image_of(seed: int, position: int, count: int) -> int:
    """Which of `count` images stands at `position` of the endless, epoch-wise shuffled sequence."""
    epoch, place = divmod(position, count)
    return int(_permutation(seed, epoch, count)[place])


def noise_seed(seed: int, step: int, sample: int) -> int:
    """The 63-bit integer from which a recipe draws the noise of one sample of one step."""
    return int(rng(seed, NOISE, step, sample).integers(2**63))


def random_crop(pixels: np.ndarray, size: int, crops: CropRange, numbers: np.random.Generator) -> np.ndarray:
    """uint8 (size, size, 3): a random square of uint8 (H, W, 3), resized, mirrored half of the time."""
    height, width = pixels.shape[:2]
    drawn = np.exp(numbers.uniform(np.log(crops.smallest), np.log(crops.largest)))
    side = min(round(float(drawn)), height, width)
    top, left = int(numbers.integers(height - side + 1)), int(numbers.integers(width - side + 1))
    cut = _resized(pixels[top : top + side, left : left + side], size)
    return cut[:, ::-1] if numbers.random() < 0.5 else cut


def centre_crop(pixels: np.ndarray, size: int, side: int) -> np.ndarray:
    """uint8 (size, size, 3): the middle square of `side` pixels (or the shorter side), resized."""
    height, width = pixels.shape[:2]
    side = min(side, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(pixels[top : top + side, left : left + side], size)


def _resized(square: np.ndarray, size: int) -> np.ndarray:
    if len(square) == size:
        return square
    return np.asarray(Image.fromarray(np.ascontiguousarray(square)).resize((size, size), Image.Resampling.BICUBIC))


def to_tensor(images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """uint8 (S, S, 3) each to float32 (B, 3, S, S) on a device, RGB in [0, 1], channels-last in memory."""
    return as_images(torch.from_numpy(np.stack([np.ascontiguousarray(p) for p in images])).to(device))


def as_images(pixels: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) to float32 (B, 3, S, S), RGB in [0, 1], channels-last in memory."""
    return pixels.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


def by_folder(indices: Sequence[int] | np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """The indices of each folder, in ascending order, of which `counts` says how many images it has, one folder after
    the other."""
    ordered = np.sort(np.asarray(indices, np.int64))
    return np.split(ordered, np.searchsorted(ordered, np.cumsum(counts)[:-1]))


def split(names: Sequence[str], validation: int) -> tuple[list[int], list[int]]:
    """Indices of training and of validation images: the `validation` smallest by the sha256 of their names.

    So they do not depend on the order of the folder, and hardly on images that are added to it.
    """
    training, held_back = split_ranks(np.array([name_rank(name) for name in names], np.uint64), validation)
    return training.tolist(), held_back


def split_ranks(ranks: np.ndarray, validation: int) -> tuple[np.ndarray, list[int]]:
    """The same for ranks, uint64 (N,), see `name_rank`; training indices int64, ascending."""
    if validation < len(ranks):
        near = np.flatnonzero(ranks <= np.partition(ranks, validation)[validation])  # all that may be among them
    else:
        near = np.arange(len(ranks))
    held_back = near[np.argsort(ranks[near], kind="stable")][:validation]
    kept = np.ones(len(ranks), bool)
    kept[held_back] = False
    return np.flatnonzero(kept), held_back.tolist()


BLOCK = 10_000
"""Positions of which every folder has exactly its share, and at least one."""


def _shared_out(weights: Sequence[float]) -> tuple[int, ...]:
    """How many positions of a block each folder has: shares rounded, those with the largest remainders upwards."""
    wanted = BLOCK * np.asarray(weights, float) / sum(weights)
    counts = np.maximum(wanted.astype(int), 1)
    for _ in range(BLOCK - int(counts.sum())):
        counts[np.argmax(wanted - counts)] += 1
    for _ in range(int(counts.sum()) - BLOCK):
        counts[np.argmax(counts)] -= 1
    return tuple(counts.tolist())


@lru_cache(maxsize=4)
def _block(seed: int, number: int, counts: tuple[int, ...]) -> np.ndarray:
    """The folder of each position of a block."""
    return rng(seed, FOLDER, number).permutation(np.repeat(np.arange(len(counts)), counts))


class SampleOrder:
    """Which sample stands at each position of the endless sequence that a run trains on.

    folders: indices of the samples; of several folders each has an endless, shuffled sequence of its own, and by
    `weights` a share of every `BLOCK` positions, drawn anew for each block.
    """

    def __init__(
        self, folders: Sequence[Sequence[int] | np.ndarray], seed: int, weights: Sequence[float] = (1.0,)
    ) -> None:
        self.folders, self.seed = folders, seed
        self._counts = _shared_out(weights)

    def at(self, position: int) -> int:
        """The sample at a position."""
        indices, own = self._folder(position)
        return int(indices[image_of(self.seed, own, len(indices))])

    def instead(self, position: int, attempt: int) -> int:
        """A sample of the same folder for one at a position that can't be read; attempt: from 0."""
        indices, _ = self._folder(position)
        return int(indices[int(rng(self.seed, INSTEAD, position, attempt).integers(len(indices)))])

    def _folder(self, position: int) -> tuple[Sequence[int] | np.ndarray, int]:
        """The folder of a position, and which position of the folder's own sequence it is."""
        if len(self.folders) == 1:
            return self.folders[0], position
        number, place = divmod(position, BLOCK)
        block = _block(self.seed, number, self._counts)
        folder = int(block[place])
        own = number * self._counts[folder] + int((block[:place] == folder).sum())
        return self.folders[folder], own


class Pictures(Protocol):
    """The images of a run. ranks: uint64 (N,), see `name_rank`; counts: of each folder, one after the other;
    fingerprint: sha256 hex, and `of_what` it is."""

    @property
    def ranks(self) -> np.ndarray: ...

    @property
    def counts(self) -> Sequence[int]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def of_what(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray:
        """uint8 (H, W, 3) RGB. Raises ImageError for one that can't be read and is to be done without, else
        DataError."""


class TrainingImages:
    """Batches of one step: samples of step s are positions s * per_step ... (s + 1) * per_step - 1 of `order`."""

    def __init__(self, images: Pictures, order: SampleOrder, crops: CropRange, per_step: int) -> None:
        self.images, self.order, self.crops, self.per_step = images, order, crops, per_step

    def sample(self, step: int, sample: int, size: int) -> np.ndarray:
        """uint8 (size, size, 3), the given sample of a step. Raises DataError."""
        pixels = self._pixels(step * self.per_step + sample)
        return random_crop(pixels, size, self.crops, rng(self.order.seed, CROP, step, sample))

    def _pixels(self, position: int) -> np.ndarray:
        """Of the image at a position, or of one that a rule puts in the place of one that can't be read."""
        image = self.order.at(position)
        for attempt in range(_ATTEMPTS):
            try:
                return self.images[image]
            except ImageError as error:
                reason = error
                image = self.order.instead(position, attempt)
        raise DataError(f"{_ATTEMPTS:,} images in a row can't be read, the last: {reason}")


@dataclass(frozen=True)
class StepPlan:
    """What one process trains on. micro_batches: the samples of each micro-batch of a step; steps: after the last one.

    size_at: side in pixels of the images of a step.
    """

    micro_batches: tuple[range, ...]
    steps: int
    size_at: Callable[[int], int]


class StepBatches(ABC):
    """The micro-batches of each step, made ahead of training; what they hold depends on the step alone."""

    def __init__(self, images: TrainingImages, plan: StepPlan, device: torch.device | str = "cpu") -> None:
        self.images, self.plan, self.device = images, plan, device

    @abstractmethod
    def at(self, step: int) -> list[Tensor]:
        """float32 (B, 3, S, S) each, on the device, RGB in [0, 1]. Steps are asked for one after the other."""

    @abstractmethod
    def close(self) -> None:
        """Stop what works ahead."""


class ThreadedBatches(StepBatches):
    """Makes the next step's batches in threads: enough where a step takes far longer than its crops."""

    def __init__(
        self, images: TrainingImages, plan: StepPlan, device: torch.device | str = "cpu", threads: int = 2
    ) -> None:
        super().__init__(images, plan, device)
        self.pool = ThreadPoolExecutor(threads)
        self.waiting: dict[int, list[list[Future]]] = {}

    def at(self, step: int) -> list[Tensor]:
        futures = self.waiting.pop(step, None) or self._begin(step)
        made = [to_tensor([future.result() for future in batch], self.device) for batch in futures]
        if step + 1 < self.plan.steps:
            self.waiting = {step + 1: self._begin(step + 1)}
        return made

    def _begin(self, step: int) -> list[list[Future]]:
        size = self.plan.size_at(step)
        return [
            [self.pool.submit(self.images.sample, step, i, size) for i in samples]
            for samples in self.plan.micro_batches
        ]

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


class WorkerBatches(StepBatches):
    """Makes the batches of the next steps in processes, for a GPU: threads share one interpreter. With them three small
    trainings on an H200 with 16 cores had 1,400 crops a second in all."""

    AHEAD = 3
    """Steps that each process works ahead."""

    def __init__(
        self, images: TrainingImages, plan: StepPlan, device: torch.device | str = "cpu", workers: int = 2
    ) -> None:
        super().__init__(images, plan, device)
        self.workers = workers
        self._steps: Iterator[tuple[int, list[Tensor] | DataError]] | None = None

    def at(self, step: int) -> list[Tensor]:
        if self._steps is None:
            self._steps = iter(self._loader(step))
        made, stacked = next(self._steps)
        if isinstance(stacked, DataError):
            raise stacked
        assert made == step, f"step {step} was asked for, {made} comes next"
        return [as_images(pixels.to(self.device, non_blocking=True)) for pixels in stacked]

    def _loader(self, first: int) -> DataLoader:
        # sizes are asked for here, as the processes work ahead, not in them
        wanted = ((step, self.plan.size_at(step)) for step in range(first, self.plan.steps))
        return DataLoader(
            _Steps(self.images, self.plan.micro_batches),
            batch_size=None,
            sampler=wanted,
            num_workers=self.workers,
            prefetch_factor=self.AHEAD,
            pin_memory=torch.device(self.device).type == "cuda",
        )

    def close(self) -> None:
        self._steps = None


class _Steps(Dataset):
    """(step, size) to the step and its micro-batches, uint8 (B, S, S, 3) each."""

    def __init__(self, images: TrainingImages, micro_batches: tuple[range, ...]) -> None:
        self.images, self.micro_batches = images, micro_batches

    def __getitem__(self, wanted: tuple[int, int]) -> tuple[int, list[Tensor] | DataError]:
        step, size = wanted
        try:
            batches = [[self.images.sample(step, i, size) for i in samples] for samples in self.micro_batches]
        except DataError as error:
            return step, error  # raised in the process that trains, with its message alone
        return step, [torch.from_numpy(np.stack(batch)) for batch in batches]
