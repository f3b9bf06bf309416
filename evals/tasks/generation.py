"""Generation: a prompt becomes an image, which is scored by itself, by its prompt, or as one of a set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.datasets.base import PromptDataset
from evals.engine.checks import check_image_list
from evals.engine.job import Artifact, Chunk
from evals.engine.models import ModelRun
from evals.engine.store import Cache
from evals.tasks.base import Batch, Images, Outputs, Task
from evals.tasks.protocol import GenerationProtocol
from lactok.interface import Generator, Recorded
from lactok.items import item_seed

# Version of the step: raise it when the same inputs give another result.
GENERATE_STEP = 1
# Side in pixels of the black image that stands for a refused prompt where no other image says a size.
PLACEHOLDER = 64


class Generation(Task):
    """Every image is stored, so that a metric added later scores it without the model."""

    name = "generation"
    takes = (Generator, Recorded)
    dataset_kind = PromptDataset
    has_references = False
    protocol: GenerationProtocol
    output_step, unit = "generate", "prompts"
    keeps_images = True

    def __init__(self, dataset: PromptDataset, protocol: GenerationProtocol) -> None:
        self.dataset, self.protocol = dataset, protocol

    def image_side(self) -> int | None:
        return self.protocol.image_size

    def inputs(self, chunk: Chunk) -> Artifact:
        return Artifact("prompts", {"content": [[item.content_hash, dict(item.tags)] for item in chunk.items]})

    def load(self, chunk: Chunk) -> Batch:
        return Batch(chunk)

    def images(self, run: ModelRun, chunk: Chunk, seed_index: int) -> Artifact:
        params = {
            "protocol": self.protocol.subset("image_size", "resize_filter", "rounding"),
            "noise": run.noise(seed_index),
            "step": GENERATE_STEP,
        }
        return Artifact("images", params, (self.inputs(chunk), run.node))

    def run(self, run: ModelRun, batch: Batch, seed_indices: Sequence[int], cache: Cache) -> Iterator[Outputs]:
        items, model = batch.chunk.items, run.built()

        def consume(result: Any, count: int) -> list[Tensor]:
            return [self._rounded(image) for image in check_image_list(result, count, "generate")]

        for seed_index in seed_indices:
            seeds = [item_seed(run.conditions.seed, seed_index, item.content_hash) for item in items]

            def generate(wanted: list[int], index: int = seed_index, seeds: list[int] = seeds) -> Any:
                chosen, indices = [items[p] for p in wanted], [index] * len(wanted)
                if isinstance(model, Recorded):
                    return model.images(chosen, indices)
                return model.generate(chosen, indices, [seeds[p] for p in wanted])

            called = run.call("generate", items, range(len(items)), generate, consume, apart=True)
            made = {place: image for places, part in called.parts for place, image in zip(places, part, strict=True)}
            yield Outputs(self._gathered(made, len(items)), called.refused, called.timed)

    def _rounded(self, image: Tensor) -> Tensor:
        """Float (3, H, W) to the uint8 that metrics see."""
        pixels, size = image.float().clamp(0, 1), self.protocol.image_size
        if size is not None and tuple(pixels.shape[1:]) != (size, size):
            mode = self.protocol.resize_filter
            pixels = F.interpolate(pixels[None], size=(size, size), mode=mode, antialias=True)[0].clamp(0, 1)
        scaled = pixels * 255
        return (scaled + 0.5 if self.protocol.rounding == "half_up" else scaled).floor().byte()

    def _gathered(self, made: dict[int, Tensor], count: int) -> Images:
        size = self.protocol.image_size or PLACEHOLDER
        shape = next(iter(made.values())).shape if made else (3, size, size)
        device = next(iter(made.values())).device if made else torch.device("cpu")
        images = [made[p] if p in made else torch.zeros(shape, dtype=torch.uint8, device=device) for p in range(count)]
        return torch.stack(images) if len({image.shape for image in images}) == 1 else images
