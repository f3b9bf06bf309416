"""What a reviewer asks of a model beyond its figures: parameters, arithmetic, evaluations; drift over round trips.

Each row is built once more, alone, and looked at from outside, so that a plugin states nothing: which parameters its
calls read, what its matrix products, convolutions and attention cost, and how often an image passes its networks.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from evals.engine.environment import precision
from evals.engine.isolation import isolated
from evals.engine.job import Artifact, Chunk, Job, metric_node
from evals.engine.models import ModelRun, stop
from evals.engine.progress import LiveProgress
from evals.engine.reduce import image_cells
from evals.engine.store import StoreError
from evals.metrics.base import ImageMetric
from evals.metrics.plan import MetricPlan
from evals.record import Costs, CostsOfStep, RowRecord
from evals.tasks.base import Images
from lactok.interface import Item

# Versions of what is measured here: raise one when the same model gives another figure.
COSTS_STEP = 1
DRIFT_STEP = 1
# Images whose drift is followed.
DRIFTED = 8
# Share of a step's parameters that a module holds at least whose passes are counted.
LARGE = 0.2


def examine(
    job: Job, records: list[RowRecord], progress: LiveProgress, shown: list[int], costs: bool, trips: int
) -> None:
    """Add what the store lacks, and put all of it into the records. shown: dataset indices of the images to follow.

    trips: round trips of the drift, 0 for none. A row that fails here says so in its record, its figures stay.
    Raises StoreError.
    """
    going = [(run, record) for run, record in zip(job.runs, records, strict=True) if run.status == "ok"]
    progress.start(len(going))
    for run, record in going:
        try:
            if costs:
                record.costs = _costs(job, run)
            if trips:
                record.drift = _drift(job, run, shown[:DRIFTED], trips)
        except StoreError:
            raise
        except (Exception, SystemExit) as error:  # a plugin may fail in any way; its figures are there
            record.costs = dataclasses.replace(record.costs or Costs(), note=f"{type(error).__name__}: {error}")
        finally:
            stop([run])
        progress.advance(record.label, DRIFTED * trips, worked=True)


def _costs(job: Job, run: ModelRun) -> Costs:
    artifact = Artifact("costs", {"step": COSTS_STEP, "protocol": job.task.protocol.as_dict()}, (run.node,))
    entry = job.cache.read(artifact)
    if entry is not None:
        return Costs(**{**entry.meta, "steps": {k: CostsOfStep(**v) for k, v in entry.meta["steps"].items()}})
    found = measure_costs(job, run)
    job.cache.write(artifact, {}, dataclasses.asdict(found))
    return found


def measure_costs(job: Job, run: ModelRun) -> Costs:
    """Of a model's calls on one image, the first of the dataset."""
    first = Chunk(0, tuple(job.dataset.items[:1]))
    batch = job.task.load(first)
    if batch.references is not None:
        batch = dataclasses.replace(batch, references=batch.references.to(job.device))
    networks = run.built().networks()
    held = [tensor for network in networks.values() for tensor in (*network.parameters(), *network.buffers())]
    sizes = {_storage(p): p.numel() for network in networks.values() for p in network.parameters()}
    if not sizes:
        return Costs(note="no network of torch")
    weights = sum({_storage(tensor): tensor.untyped_storage().nbytes() for tensor in held}.values())
    steps = {}
    for name, call in job.task.calls(run, batch).items():
        with isolated(), precision(run.conditions.precision, job.device):
            steps[name] = _of_call(call, sizes, weights)
    return Costs(sum(sizes.values()), steps)


def _of_call(call: Callable[[], Any], sizes: dict[int, int], weights: int) -> CostsOfStep:
    """sizes: by storage, the numbers of the parameters; weights: bytes of all networks."""
    # the counter takes composite operations apart, so that the watch sees their parts
    with _passes() as passes, _Watch() as watch, FlopCounterMode(display=False) as flops:
        call()
    read = sum(size for storage, size in sizes.items() if storage in watch.read)
    counts = [
        count
        for module, count in passes.items()
        if read and sum(p.numel() for p in module.parameters() if _storage(p) in watch.read) >= LARGE * read
    ]
    peak = (weights + watch.most) / 2**20
    return CostsOfStep(read, flops.get_total_flops(), max(counts, default=None), peak)


class _Watch(TorchDispatchMode):
    """Remembers which storages operations are given, and the most bytes of tensors that they made and that lived at
    once."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self.made: dict[int, int] = {}
        self.most = self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        self.read |= {_storage(leaf) for leaf in given}
        old = {leaf.untyped_storage()._cdata for leaf in given}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (key := leaf.untyped_storage()._cdata) not in old | self.made.keys():
                self.made[key] = leaf.untyped_storage().nbytes()
                self._now += self.made[key]
                weakref.finalize(leaf.untyped_storage(), self._gone, key)
        self.most = max(self.most, self._now)
        return result

    def _gone(self, key: int) -> None:
        self._now -= self.made.pop(key, 0)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _passes() -> Iterator[dict[nn.Module, int]]:
    """How often each module is called within the block; a call on a batch of several counts as so many."""
    found: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        first = next((a for a in args if isinstance(a, Tensor)), None)
        found[module] = found.get(module, 0) + (len(first) if first is not None and first.ndim in (3, 4) else 1)

    hook = register_module_forward_pre_hook(count)
    try:
        yield found
    finally:
        hook.remove()


def _drift(job: Job, run: ModelRun, shown: list[int], trips: int) -> dict[str, list[float | None]]:
    """By column, its figure after each round trip: means over the items at `shown`."""
    plans = [plan for plan in job.metrics.image if plan.columns_wanted and not job.why_not_scored(run, plan.name)]
    items = tuple(job.dataset.items[place] for place in shown)
    chunk = Chunk(0, items)
    artifact = Artifact(
        "drift",
        {"step": DRIFT_STEP, "trips": trips},
        (job.task.images(run, chunk, 0), *map(metric_node, plans)),
    )
    entry = job.cache.read(artifact)
    if entry is None:
        found = _measure_drift(job, run, chunk, plans, trips)
        job.cache.write(artifact, {}, found)
        return found
    return dict(entry.meta)


def _measure_drift(
    job: Job, run: ModelRun, chunk: Chunk, plans: list[MetricPlan[ImageMetric]], trips: int
) -> dict[str, list[float | None]]:
    batch = job.task.load(chunk)
    if batch.references is None:
        return {}
    references = batch.references.to(job.device)
    batch = dataclasses.replace(batch, references=references)
    found: dict[str, list[float | None]] = {}
    for outputs in job.task.round_trip(run, batch, trips, job.cache):
        kept = np.array([place not in outputs.refused for place in range(len(chunk))])
        for plan in plans:
            values = _scored(job, plan, references, outputs.images, chunk.items)
            cells = image_cells(plan, values, chunk.items, kept)
            for column in plan.cls.columns:
                found.setdefault(column.name, []).append(cells[column.name].value if column.name in cells else None)
    return {name: [v if v is None or np.isfinite(v) else None for v in of] for name, of in found.items()}


def _scored(
    job: Job, plan: MetricPlan[ImageMetric], references: Tensor, images: Images, items: tuple[Item, ...]
) -> dict[str, np.ndarray]:
    """Name to (1, N)."""
    metric, batcher = job.metric(plan)
    parts: list[dict[str, Tensor]] = []

    def score(part: slice) -> None:
        with isolated(), precision("fp32", job.device):
            of = items[part]
            embedded = metric.embed(references[part], of)
            scores = metric.score(embedded, metric.embed(images[part], of), of)  # type: ignore[arg-type]  # of one size
            parts.append({name: values.double().cpu() for name, values in scores.items()})

    batcher.run(len(items), score)
    return {name: torch.cat([part[name] for part in parts]).numpy()[None] for name in parts[0]}
