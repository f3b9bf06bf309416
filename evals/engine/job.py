"""What a run computes: chunks of items, artifacts with derived keys, and the job that holds it all.

An artifact is one stored result. Its key is derived from its kind, its parameters and the artifacts that it depends on,
and holds nothing else, so equal work has equal keys in every run. Raise a step's version (evals/tasks) when it gives
another result for the same inputs; tests/test_pinned.py fails when a result changes and its version does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from evals.config import Limit
from evals.datasets.base import Dataset
from evals.engine.batches import Batcher
from evals.engine.ranks import Ranks
from evals.engine.store import Cache
from lactok.interface import Item

if TYPE_CHECKING:
    from evals.engine.models import ModelRun
    from evals.metrics.base import ImageMetric, SetMetric
    from evals.metrics.plan import MetricPlan, Plan
    from evals.tasks.base import Task

# Items a chunk: resume and sharding act on whole chunks. 16 images of 1024 px decode in minutes even where a decoder
# takes seconds an image, and fill a batch on a GPU.
CHUNK = 16
# Items of which thumbnails are kept for the page of the run; of a larger dataset, those of chunks spread over it.
MOST_VIEWED = 5000
# Version of the thumbnails.
THUMBNAIL_STEP = 1
# Version of scoring: uint8 images to per-image values and features.
SCORE_STEP = 1


@dataclass(frozen=True)
class Chunk:
    """Consecutive items, the unit of work. start: index of the first one in the dataset's order."""

    start: int
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)


def chunks_of(items: Sequence[Item]) -> list[Chunk]:
    """The dataset cut into chunks of CHUNK items; the last one may be shorter."""
    return [Chunk(i, tuple(items[i : i + CHUNK])) for i in range(0, len(items), CHUNK)]


@dataclass(frozen=True)
class Artifact:
    """One stored result. kind: its folder in the cache; params: plain JSON; inputs: what it is made from.

    Nodes that nobody stores (a model, a metric, a chunk's images) are artifacts too: they give their key to others.
    """

    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Artifact, ...] = ()

    @cached_property
    def key(self) -> str:
        """32 hex digits of the sha256 of all that determines its content."""
        content = [self.kind, dict(self.params), [artifact.key for artifact in self.inputs]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def metric_node(plan: MetricPlan[Any]) -> Artifact:
    """What determines a metric's values, apart from the images."""
    return Artifact("metric", plan.identity)


@dataclass(frozen=True)
class Job:
    """All that the engine needs; evals/config.py explains the settings.

    runs: the rows in execution; resident: how many models are held on the device together, None: all;
    shown: dataset indices on the contact sheet; max_refused: a row of which more items were refused fails, None: any
    number; broken_metrics: by name, why an image metric can't be computed at all.
    """

    task: Task
    dataset: Dataset
    runs: list[ModelRun]
    metrics: Plan
    cache: Cache
    device: torch.device
    batch_size: int
    seeds: int = 1
    resident: int | None = None
    save_images: bool = False
    shown: frozenset[int] = frozenset()
    max_refused: Limit | None = None
    ranks: Ranks = field(default_factory=Ranks)
    broken_metrics: dict[str, str] = field(default_factory=dict)
    _built: dict[str, tuple[ImageMetric, Batcher]] = field(default_factory=dict)

    @cached_property
    def chunks(self) -> list[Chunk]:
        return chunks_of(self.dataset.items)

    def metric(self, plan: MetricPlan[ImageMetric]) -> tuple[ImageMetric, Batcher]:
        """The built metric (built once), and the batcher that remembers the batch size that fits it."""
        if plan.name not in self._built:
            built = plan.cls.build(self.device, plan.settings)
            self._built[plan.name] = built, Batcher(self.batch_size, self.device)
        return self._built[plan.name]

    def why_not_scored(self, run: ModelRun, metric: str) -> str:
        """Why an image metric could not score a row; "" where it could."""
        return self.broken_metrics.get(metric, "") or run.metric_errors.get(metric, "")

    def shown_in(self, chunk: Chunk) -> list[int]:
        """Positions within the chunk of the items that the contact sheet shows."""
        return [i for i in range(len(chunk)) if chunk.start + i in self.shown]

    def reference_features(self, chunk: Chunk, plan: MetricPlan[ImageMetric]) -> Artifact:
        """Feature rows of the references, shared by all models."""
        params = {"device": self.device.type, "step": SCORE_STEP}
        return Artifact("reference-features", params, (self.task.inputs(chunk), metric_node(plan)))

    def scores(self, run: ModelRun, chunk: Chunk, seed_index: int, plan: MetricPlan[ImageMetric]) -> Artifact:
        """An image metric's values and feature rows of a model's images."""
        params = {"step": SCORE_STEP}
        return Artifact("scores", params, (self.task.images(run, chunk, seed_index), metric_node(plan)))

    def contact(self, run: ModelRun, chunk: Chunk) -> Artifact:
        """The images of the items that the contact sheet shows."""
        return Artifact("contact", {"shown": self.shown_in(chunk)}, (self.task.images(run, chunk, 0),))

    def viewed(self, chunk: Chunk) -> bool:
        """Whether thumbnails of the chunk's images are kept: of all chunks up to MOST_VIEWED items, else of some."""
        count, most = len(self.chunks), MOST_VIEWED // CHUNK
        place = chunk.start // CHUNK
        return count <= most or place * most // count != (place - 1) * most // count

    def thumbnails(self, chunk: Chunk, run: ModelRun | None = None, seed_index: int = 0) -> Artifact:
        """Small JPEG files of a model's images, or of the references. Kept when the images are made; nothing is made
        again for want of them."""
        of = self.task.inputs(chunk) if run is None else self.task.images(run, chunk, seed_index)
        return Artifact("thumbnails", {"step": THUMBNAIL_STEP}, (of,))

    def timing(self, run: ModelRun, chunk: Chunk, seed_index: int) -> Artifact:
        """How long a model's images took, and what they took."""
        return Artifact("timing", {}, (self.task.images(run, chunk, seed_index),))

    def set_metric(self, run: ModelRun, plan: MetricPlan[SetMetric], clusters: Sequence[str]) -> Artifact:
        """A set metric with its interval over all chunks and seed indices."""
        of = self.metrics.features_of(plan)
        references = tuple(self.reference_features(c, of) for c in self.chunks)
        scores = tuple(self.scores(run, c, s, of) for s in run.seed_indices(self.seeds) for c in self.chunks)
        return Artifact("set-metric", {"clusters": list(clusters)}, (metric_node(plan), *references, *scores))
