"""Doing the work that the cache lacks: claim a chunk, load it once, make each model's missing artifacts, score, commit.

Models are on the device in groups, and a chunk is loaded and its references embedded once for all models of a group. A
model that fails is named and left, and so is a metric; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evals.engine.batches import is_out_of_memory
from evals.engine.environment import precision
from evals.engine.isolation import isolated
from evals.engine.job import Chunk, Job
from evals.engine.load import load_ahead
from evals.engine.models import ModelRun, stop
from evals.engine.space import check_space
from evals.engine.store import StoreError
from evals.metrics.base import ImageMetric
from evals.metrics.plan import MetricPlan
from evals.tasks.base import Batch, Images, Outputs, pack_images, pack_thumbnails, plain, unpack_images
from lactok.interface import Item

ImagePlan = MetricPlan[ImageMetric]


class Progress(Protocol):
    """Where the engine reports how far it is."""

    def say(self, line: str) -> None: ...

    def start(self, total: int) -> None: ...

    def advance(self, row: str, items: int, worked: bool) -> None: ...


@dataclass
class Missing:
    """What the cache lacks of one row for one chunk. scores, images: by seed index."""

    run: ModelRun
    scores: dict[int, list[ImagePlan]]
    contact: bool = False
    images: list[int] = field(default_factory=list)
    tokens: bool = False

    @property
    def any(self) -> bool:
        return self.contact or self.tokens or bool(self.images) or any(self.scores.values())

    @property
    def seed_indices(self) -> list[int]:
        """The outputs that are needed."""
        return [s for s in self.scores if self.scores[s] or s in self.images or (self.contact and s == 0)]


@dataclass
class Scored:
    """A model's images of a chunk that a metric has yet to see."""

    run: ModelRun
    seed_index: int
    outputs: Outputs
    arrays: list[dict[str, Tensor]] = field(default_factory=list)
    reasons: dict[int, Sequence[str]] = field(default_factory=dict)


def execute(job: Job, progress: Progress, attempt: int = 0) -> None:
    """Make every artifact of the job that the cache lacks, together with the other ranks, if any.

    Failures of rows and metrics are noted in the job; StoreError (also of a disk that will not hold the images) and
    DatasetError are raised. attempt: a number that
    all ranks share and no earlier call of this run had.
    """
    with job.ranks.zero_first(f"rows/{attempt}"):
        for run in job.runs:
            if run.identity is None and run.status == "ok":
                run.identify()
    job.ranks.publish(begun(attempt, job.ranks.rank), True)
    active = [run for run in job.runs if run.status == "ok"]
    if job.task.keeps_images and attempt == 0 and job.ranks.rank == 0:
        check_space(job, progress.say)
    progress.start(len(active) * len(job.chunks))
    size = job.resident or max(1, len(active))
    for number, first in enumerate(range(0, len(active), size)):
        group = active[first : first + size]
        try:
            _run_group(job, group, progress, f"{attempt}/{number}")
        finally:
            stop(group)


def begun(attempt: int, rank: int) -> str:
    """The key under which a rank publishes that it is about to claim chunks."""
    return f"begun/{attempt}/{rank}"


def _run_group(job: Job, group: list[ModelRun], progress: Progress, counter: str) -> None:
    for run in group:
        if run.info is None:
            run.find_info(job.cache)

    def incomplete() -> Iterator[Chunk]:
        for chunk in _claimed(job, counter):
            going = [run for run in group if run.status == "ok"]
            if going and (_references_missing(job, chunk) or any(_missing(job, run, chunk).any for run in going)):
                yield chunk
            else:
                for run in group:
                    progress.advance(run.row.label, len(chunk), worked=False)

    for batch in load_ahead(job.task, incomplete(), job.device):
        _run_chunk(job, group, batch, progress)


def _claimed(job: Job, counter: str) -> Iterator[Chunk]:
    """The chunks that fall to this rank: each is some rank's, and no two ranks have the same."""
    while (number := job.ranks.claim(counter)) < len(job.chunks):
        yield job.chunks[number]


def _missing(job: Job, run: ModelRun, chunk: Chunk) -> Missing:
    has, seed_indices = job.cache.has, run.seed_indices(job.seeds) if run.status == "ok" else []
    scores = {
        s: [p for p in _scorable(job, run) if not has(job.scores(run, chunk, s, p))]
        for s in seed_indices
    }  # fmt: skip
    missing = Missing(run, scores)
    if seed_indices:
        missing.contact = bool(job.shown_in(chunk)) and not has(job.contact(run, chunk))
        if job.save_images or job.task.keeps_images:
            missing.images = [s for s in seed_indices if not has(job.task.images(run, chunk, s))]
        tokens = job.task.tokens(run, chunk)
        missing.tokens = tokens is not None and not has(tokens)
    return missing


def _scorable(job: Job, run: ModelRun) -> list[ImagePlan]:
    return [p for p in job.metrics.image if p.name not in job.broken_metrics and p.name not in run.metric_errors]


def _references_missing(job: Job, chunk: Chunk) -> list[ImagePlan]:
    if not job.task.has_references:
        return []
    return [
        p
        for p in job.metrics.image
        if p.cls.feature_dim
        and p.name not in job.broken_metrics
        and not job.cache.has(job.reference_features(chunk, p))
    ]


def _run_chunk(job: Job, group: list[ModelRun], batch: Batch, progress: Progress) -> None:
    made: list[tuple[Missing, int, Outputs]] = []
    if batch.references is not None and job.viewed(batch.chunk) and not job.cache.has(job.thumbnails(batch.chunk)):
        job.cache.write(job.thumbnails(batch.chunk), pack_thumbnails(batch.references), {})
    for run in group:
        missing = _missing(job, run, batch.chunk)
        if missing.any:
            try:
                made.extend((missing, s, outputs) for s, outputs in _outputs(job, missing, batch))
            except StoreError:
                raise
            except (Exception, SystemExit) as error:  # a plugin may fail in any way; the other rows go on
                run.fail(error)
    for plan in job.metrics.image:
        if plan.name not in job.broken_metrics:
            _score(job, plan, batch, [Scored(m.run, s, o) for m, s, o in made if _wanted(m, s, plan)])
    for run in group:
        progress.advance(run.row.label, len(batch.chunk), worked=True)


def _wanted(missing: Missing, seed_index: int, plan: ImagePlan) -> bool:
    return missing.run.status == "ok" and plan in missing.scores[seed_index]


def _outputs(job: Job, missing: Missing, batch: Batch) -> Iterator[tuple[int, Outputs]]:
    """(seed index, outputs) for every output that the row lacks something of; stores images, timing, contact images."""
    run, chunk, cache = missing.run, batch.chunk, job.cache
    stored: dict[int, Outputs] = {}
    for seed_index in missing.seed_indices:
        entry = cache.read(job.task.images(run, chunk, seed_index))
        if entry is not None:
            refused = {int(place): reason for place, reason in entry.meta["refused"].items()}
            stored[seed_index] = Outputs(unpack_images(entry, job.device), refused)
    absent = [s for s in missing.seed_indices if s not in stored]
    fresh = iter(())  # type: Iterator[Outputs]
    if absent or missing.tokens:
        fresh = job.task.run(run, batch, absent, cache)
    for seed_index in missing.seed_indices:
        outputs = stored.get(seed_index) or next(fresh)
        run.refused.update({chunk.items[place].id: reason for place, reason in outputs.refused.items()})
        if outputs.timed is not None:
            meta = {"images": len(chunk) - len(outputs.refused), **plain(outputs.timed)}
            cache.write(job.timing(run, chunk, seed_index), {}, meta)
        if seed_index in missing.images:
            refused_meta = {"refused": {str(place): reason for place, reason in outputs.refused.items()}}
            cache.write(job.task.images(run, chunk, seed_index), pack_images(outputs.images), refused_meta)
        if job.viewed(chunk) and not cache.has(thumbnails := job.thumbnails(chunk, run, seed_index)):
            cache.write(thumbnails, pack_thumbnails(outputs.images), {})
        if missing.contact and seed_index == 0:
            shown = job.shown_in(chunk)
            cache.write(job.contact(run, chunk), pack_images([outputs.images[place] for place in shown]), {})
        yield seed_index, outputs
    next(fresh, None)  # lets a task that has only tokens to make run


def _score(job: Job, plan: ImagePlan, batch: Batch, wanted: list[Scored]) -> None:
    """One metric over the references (once) and all images of a chunk; commits values and features."""
    keep_references = plan in _references_missing(job, batch.chunk)
    if not wanted and not keep_references:
        return
    references = batch.references if plan.cls.needs_reference or keep_references else None
    reference_parts: list[Tensor] = []
    try:
        with isolated():
            metric, batcher = job.metric(plan)

        def score(start: int, of_range: slice) -> None:
            part = slice(start + of_range.start, start + of_range.stop)
            items = batch.chunk.items[part]
            embedded = None
            if references is not None:
                with isolated(), precision("fp32", job.device):
                    embedded = metric.embed(references[part], items)
                    features = metric.features(embedded) if keep_references else None
            found = [_one(metric, plan, one, part, embedded, items, job.device) for one in wanted]
            # nothing is kept of a batch that ran out of memory on the way
            if references is not None and features is not None:
                reference_parts.append(features)
            for one, arrays in zip(wanted, found, strict=True):
                one.arrays.append(arrays)

        for start, stop in _same_sizes([one.outputs.images for one in wanted], len(batch.chunk)):
            batcher.run(stop - start, partial(score, start))
    except (StoreError, KeyboardInterrupt):
        raise
    except Exception as error:  # the metric fails on the references themselves, or can't be built
        job.broken_metrics[plan.name] = f"{type(error).__name__}: {error}"
        return
    meta = {"batch": min(batcher.size, len(batch.chunk))}
    if keep_references:
        job.cache.write(
            job.reference_features(batch.chunk, plan), {"features": torch.cat(reference_parts).cpu().numpy()}, meta
        )
    for one in wanted:
        if plan.name not in one.run.metric_errors:
            arrays = _joined(one, batch.chunk.items, plan)
            if arrays is not None:
                refused = {str(place): reason for place, reason in one.outputs.refused.items()}
                told = {str(place): list(reasons) for place, reasons in one.reasons.items()}
                artifact = job.scores(one.run, batch.chunk, one.seed_index, plan)
                job.cache.write(artifact, arrays, {**meta, "refused": refused} | ({"reasons": told} if told else {}))


def _one(
    metric: Any, plan: ImagePlan, one: Scored, part: slice, reference: Any, items: Sequence[Item], device: torch.device
) -> dict[str, Tensor]:
    """The values and features of one model's images; a metric that fails on them is noted in the row."""
    if plan.name in one.run.metric_errors:
        return {}
    try:
        with isolated(), precision("fp32", device):
            embedded = metric.embed(_stacked(one.outputs.images, part), items)
            arrays = dict(metric.score(reference, embedded, items))
            if plan.cls.feature_dim:
                arrays["features"] = metric.features(embedded)
            for place, reasons in enumerate(metric.reasons(embedded) or (), part.start):
                if reasons and place not in one.outputs.refused:
                    one.reasons[place] = reasons
            return {name: values.clone() for name, values in arrays.items()}
    except Exception as error:
        if is_out_of_memory(error):
            raise
        one.run.metric_errors[plan.name] = f"{type(error).__name__}: {error}"
        return {}


def _joined(one: Scored, items: Sequence[Item], plan: ImagePlan) -> dict[str, np.ndarray] | None:
    """A chunk's arrays; refused items are marked. None where a value is NaN: then the row fails, by name."""
    arrays = {name: torch.cat([part[name] for part in one.arrays]).cpu().numpy() for name in one.arrays[0]}
    refused = one.outputs.refused
    for name, values in arrays.items():
        bad = np.isnan(values.reshape(len(values), -1)).any(axis=1)
        for place in np.flatnonzero(bad).tolist():
            if place not in refused:
                one.run.fail(NotANumber(f"{plan.name} gave NaN ({name}) for {items[place].id}"))
                return None
    if refused:
        arrays["refused"] = np.isin(np.arange(len(items)), list(refused))
    return arrays


class NotANumber(ValueError):
    """A metric gave NaN for an image that a model made."""


def _same_sizes(all_images: Sequence[Images], count: int) -> Iterator[tuple[int, int]]:
    """Ranges of positions within which every model's images have one size."""
    start = 0
    for position in range(1, count + 1):
        if position == count or any(images[position].shape != images[start].shape for images in all_images):
            yield start, position
            start = position


def _stacked(images: Images, part: slice) -> Tensor:
    return images[part] if isinstance(images, Tensor) else torch.stack(images[part])


def remove_damaged(job: Job) -> None:
    """Read every artifact that the job's figures are made from; reading removes a damaged one."""
    for chunk in job.chunks:
        for plan in job.metrics.image:
            if job.task.has_references:
                job.cache.read(job.reference_features(chunk, plan))
            for run in job.runs:
                if run.status == "ok":
                    for seed_index in run.seed_indices(job.seeds):
                        job.cache.read(job.scores(run, chunk, seed_index, plan))
        for run in job.runs:
            tokens = job.task.tokens(run, chunk) if run.status == "ok" else None
            if tokens is not None:
                job.cache.read(tokens)
