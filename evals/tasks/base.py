"""What a task is: how items become a batch, how a model makes images of it, and which artifacts it keeps."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evals.datasets.base import Dataset
from evals.engine.batches import Timed
from evals.engine.job import Artifact, Chunk
from evals.engine.models import ModelRun
from evals.engine.store import Cache, Entry
from evals.tasks.protocol import Conventions
from lactok.interface import Model

# Side in pixels to which the longer side of a thumbnail is reduced, and the quality of its JPEG file. A miniature's
# evaluation image keeps its size.
THUMBNAIL_SIDE = 192
THUMBNAIL_QUALITY = 85

# Images of one model: a tensor uint8 (B, 3, H, W), or B tensors uint8 (3, H, W) where sizes differ.
Images = Tensor | list[Tensor]


@dataclass(frozen=True)
class Batch:
    """A chunk, ready for models. references: uint8 (B, 3, H, W) on the run's device, None where the task has none;
    sources: the decoded source images, uint8 (H, W, 3), only where the protocol makes native images from them; sizes:
    height and width in pixels of each reference's source."""

    chunk: Chunk
    references: Tensor | None = None
    sources: Sequence[np.ndarray] = ()
    sizes: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Outputs:
    """A model's images of a batch, one an item. refused: position in the batch to the reason, for items that the model
    refused: their images are black and are not scored. timed: how the model's calls went, None for stored images."""

    images: Images
    refused: Mapping[int, str]
    timed: Timed | None = None


class Task(ABC):
    """One way to put a model to the test.

    protocol: every convention that moves a number. takes: the kinds of model that it can run; has_references: whether
    its batches have reference images; keeps_images: whether every image is stored, so that it can be scored again
    without the model; dataset_kind: the class of dataset that it runs on; output_step: what a model does to make an
    image; unit: what an item is called; max_refused: how many of its items a model may refuse unless the run says
    otherwise ("1%"), None: any number.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[type[Model], ...]]
    dataset_kind: ClassVar[type[Dataset]]
    has_references: ClassVar[bool]
    keeps_images: ClassVar[bool] = False
    output_step: ClassVar[str]
    unit: ClassVar[Literal["images", "prompts"]]
    max_refused: ClassVar[str | None] = None
    protocol: Conventions

    @property
    def parameters(self) -> dict[str, Any]:
        """The task's own parameters that differ from their defaults; they stand in every report."""
        return {}

    @abstractmethod
    def inputs(self, chunk: Chunk) -> Artifact:
        """What determines the chunk's batch: a node, not stored."""

    @abstractmethod
    def load(self, chunk: Chunk) -> Batch:
        """The chunk's batch, on the CPU. Called on a thread of its own, beside the work on the chunk before."""

    @abstractmethod
    def images(self, run: ModelRun, chunk: Chunk, seed_index: int) -> Artifact:
        """The model's images: a node, stored only where images are saved."""

    def tokens(self, run: ModelRun, chunk: Chunk) -> Artifact | None:
        """The model's stored tokens of the chunk; None where the task or the model has none."""
        return None

    @abstractmethod
    def run(self, run: ModelRun, batch: Batch, seed_indices: Sequence[int], cache: Cache) -> Iterator[Outputs]:
        """The model's outputs for each seed index in turn; also stores what the task keeps besides images."""

    def calls(self, run: ModelRun, batch: Batch) -> Mapping[str, Callable[[], Any]]:
        """A model's calls on the one item of a batch, by the name of the step; {} where the task tells of none."""
        return {}

    def round_trip(self, run: ModelRun, batch: Batch, count: int, cache: Cache) -> Iterator[Outputs]:
        """The model's images after each of `count` round trips; none where the task has no such."""
        return iter(())

    @abstractmethod
    def image_side(self) -> int | None:
        """Side in pixels of the images that metrics see, None where it is the model's affair."""


def pack_images(images: Images) -> dict[str, np.ndarray]:
    """Images as arrays for the cache, lossless: the bytes of their PNG files, and where each ends."""
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG", compress_level=1)
        files.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    ends = np.cumsum([len(file) for file in files], dtype=np.int64)
    return {"png": np.concatenate(files), "ends": ends}


def pack_thumbnails(images: Images) -> dict[str, np.ndarray]:
    """Images as arrays for the cache, as small JPEG files (side THUMBNAIL_SIDE at most): bytes, and where each ends.

    They are for the eye. No figure is made from them.
    """
    files = []
    for image in images:
        small, buffer = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()), io.BytesIO()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=3.0)
        small.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
        files.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    ends = np.cumsum([len(file) for file in files], dtype=np.int64)
    return {"jpeg": np.concatenate(files), "ends": ends}


def unpack_files(entry: Entry, kind: str) -> list[bytes]:
    """The files of `pack_images` (kind "png") or `pack_thumbnails` (kind "jpeg"), in the order of the items."""
    starts, ends = [0, *entry.arrays["ends"][:-1]], entry.arrays["ends"]
    return [entry.arrays[kind][a:b].tobytes() for a, b in zip(starts, ends, strict=True)]


def unpack_images(entry: Entry, device: torch.device) -> Images:
    """The images of `pack_images`, on `device`: a tensor where all have one size."""
    images = [
        torch.from_numpy(np.array(Image.open(io.BytesIO(file)).convert("RGB"))).permute(2, 0, 1).contiguous().to(device)
        for file in unpack_files(entry, "png")
    ]
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


def plain(meta: Any) -> dict[str, Any]:
    """A small record's fields as plain JSON."""
    return dict(vars(meta))
