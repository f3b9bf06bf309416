"""Training batches as a pure function of (seed, step, sample): a resumed run needs no state of a loader.

Each epoch is a permutation of the images; each sample is a random square crop, resized and perhaps mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lactok.data.pack import Pack

ORDER, CROP, NOISE, FOLDER = 1, 2, 3, 4
"""Independent RNG streams for one (seed, step, sample)."""


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


@lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return rng(seed, ORDER, epoch).permutation(count)


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
    stacked = torch.from_numpy(np.stack([np.ascontiguousarray(p) for p in images])).to(device)
    return stacked.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


def by_folder(indices: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """The indices of each folder, of which `counts` says how many images it has, one folder after the other."""
    ends = np.cumsum(counts)
    folders: list[list[int]] = [[] for _ in counts]
    for index, place in zip(indices, np.searchsorted(ends, indices, side="right")):
        folders[place].append(index)
    return folders


def split(names: Sequence[str], validation: int) -> tuple[list[int], list[int]]:
    """Indices of training and of validation images: the `validation` smallest by the sha256 of their names.

    So they do not depend on the order of the folder, and hardly on images that are added to it.
    """
    order = sorted(range(len(names)), key=lambda i: sha256(names[i].encode()).hexdigest())
    return sorted(order[validation:]), order[:validation]


class TrainingImages:
    """Batches of one step: samples of step s are positions s * per_step ... (s + 1) * per_step - 1 of the sequence.

    folders: indices of the images; of several folders each has a sequence of its own, and the folder of a sample is
    drawn by `weights`.
    """

    def __init__(
        self,
        pack: Pack,
        folders: Sequence[Sequence[int]],
        crops: CropRange,
        seed: int,
        per_step: int,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        self.pack, self.crops, self.seed, self.per_step = pack, crops, seed, per_step
        self.folders = [list(indices) for indices in folders]
        self._shares = np.cumsum(weights) / sum(weights)

    def sample(self, step: int, sample: int, size: int) -> np.ndarray:
        """uint8 (size, size, 3), the given sample of a step."""
        position = step * self.per_step + sample
        indices = self.folders[0]
        if len(self.folders) > 1:
            drawn = rng(self.seed, FOLDER, position).random()
            indices = self.folders[int(np.searchsorted(self._shares, drawn, side="right"))]
        image = indices[image_of(self.seed, position, len(indices))]
        return random_crop(self.pack[image], size, self.crops, rng(self.seed, CROP, step, sample))


class Prefetcher:
    """Makes the next batches in threads while the current one trains; what it gives depends on its arguments alone."""

    def __init__(
        self, images: TrainingImages, workers: int, ahead: int = 2, device: torch.device | str = "cpu"
    ) -> None:
        self.images, self.ahead, self.device = images, ahead, device
        self.pool = ThreadPoolExecutor(workers)
        self.waiting: dict[tuple[int, int, tuple[int, ...]], list[Future]] = {}

    def request(self, step: int, size: int, samples: Sequence[int]) -> None:
        """Begin to make a batch; more than `ahead` are not begun."""
        key = (step, size, tuple(samples))
        if key not in self.waiting and len(self.waiting) < self.ahead:
            self.waiting[key] = [self.pool.submit(self.images.sample, step, i, size) for i in samples]

    def get(self, step: int, size: int, samples: Sequence[int]) -> Tensor:
        """float32 (len(samples), 3, size, size) on the device, RGB in [0, 1]."""
        futures = self.waiting.pop((step, size, tuple(samples)), None)
        if futures is None:
            futures = [self.pool.submit(self.images.sample, step, i, size) for i in samples]
        return to_tensor([f.result() for f in futures], self.device)

    def close(self) -> None:
        """Stop the threads."""
        self.pool.shutdown(wait=False, cancel_futures=True)
