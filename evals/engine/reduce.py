"""From stored artifacts to a row's cells: means, set metrics, intervals, use of the codebook, speed.

Artifacts are read in chunk order, whoever made them, so the figures are the same to the last digit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.engine.checks import PluginError
from evals.engine.isolation import isolated
from evals.engine.job import Artifact, Job
from evals.engine.models import ModelRun, type_of
from evals.engine.store import Entry
from evals.metrics.base import ImageMetric, Metric, SetMetric, TokenMetric
from evals.metrics.intervals import bootstrap, cluster_bootstrap
from evals.metrics.plan import MetricPlan
from evals.metrics.tokens import mean_bits
from evals.record import Origin, RowRecord, Speed, Value
from lactok.interface import GeneratorInfo, Item, ModelInfo, TokenizerInfo, Tokens

# Refused items that the error of a row with too many names.
FIRST_REASONS = 3


class LostArtifact(Exception):
    """An artifact that was there is damaged or gone; doing the work again recomputes it."""


@dataclass
class PerImage:
    """Per-image values of a row: name to float64 (S, N), S seed indices of N items; NaN where an item was refused."""

    values: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scores:
    """A metric's arrays of a row, all chunks joined: values, name to (S, N); features, one (N, D) a seed index;
    kept: (N,), which items no output of was refused."""

    values: dict[str, np.ndarray]
    features: list[Tensor]
    kept: np.ndarray


def reduce_row(job: Job, run: ModelRun) -> tuple[RowRecord, PerImage]:
    """The record of a row whose work is done, and its per-image values. Raises LostArtifact."""
    record = describe(run, job)
    if run.status != "ok":
        return record, PerImage()
    items = [item for chunk in job.chunks for item in chunk.items]
    reading = _Reading(job, run)
    per_image = PerImage()
    for plan in job.metrics.image:
        if reason := job.why_not_scored(run, plan.name):
            record.cells |= {column.name: Value(None, note=reason) for column in plan.cls.columns}
            continue
        scores = reading.scores(plan)
        artifacts = [job.scores(run, c, s, plan) for s in run.seed_indices(job.seeds) for c in job.chunks]
        record.keys[f"scores-{plan.name}"] = [artifact.key for artifact in artifacts]
        try:
            cells = image_cells(plan, scores.values, items, scores.kept)
            record.cells |= _noted(cells, trained_on(plan.cls, run.info))
        except Exception as error:  # a plugin's summary may fail in any way
            record.cells |= _failed(run, plan, error)
        for name, values in scores.values.items():
            per_image.values[name] = np.where(scores.kept, values, np.nan)
    for of_sets in job.metrics.sets:
        record.cells |= _set_cells(job, run, of_sets, reading, items)
    tokens = reading.tokens()
    if tokens is not None:
        assert isinstance(run.info, TokenizerInfo)
        record.bits_per_image = mean_bits(tokens, run.info)
        with isolated():
            record.rate_parts = dict(type_of(run.row).rate_parts(run.row.options, tokens))
        artifacts = [artifact for c in job.chunks if (artifact := job.task.tokens(run, c))]
        record.keys[artifacts[0].kind] = [artifact.key for artifact in artifacts]
        for of_tokens in job.metrics.tokens:
            record.cells |= _token_cells(run, of_tokens, tokens)
    record.refused = {item.id: run.refused[item.id] for item in items if item.id in run.refused}
    _check_refused(job, record.refused)
    of_whole = [column.name for plan in (*job.metrics.sets, *job.metrics.tokens) for column in plan.cls.columns]
    for name in of_whole:  # what refuses to decode has all its tokens
        cell = record.cells.get(name)
        if cell is not None and cell.value is not None and cell.count is not None:
            record.cells |= _noted({name: cell}, _incomplete(len(items) - cell.count, len(items)))
    record.speed = _speed(job, run, reading)
    record.origins = [Origin(**origin) for origin in reading.origins]
    return record, per_image


def _check_refused(job: Job, refused: Mapping[str, str]) -> None:
    """Raises PluginError with the first reasons where a row refused more items than the run allows."""
    count = len(job.dataset.items)
    if job.max_refused is None or len(refused) <= (most := job.max_refused.of(count)):
        return
    first = "; ".join(f"{item}: {reason}" for item, reason in list(refused.items())[:FIRST_REASONS])
    raise PluginError(
        f"{len(refused):,} of {count:,} {job.task.unit} refused, max_refused={job.max_refused.text} allows {most:,}: "
        f"{first}{'; ...' if len(refused) > FIRST_REASONS else ''}"
    )


def measured_bits(job: Job, run: ModelRun) -> float | None:
    """The row's bits an image, mean over the images; None where they are undefined. Raises LostArtifact."""
    if run.status != "ok" or not isinstance(run.info, TokenizerInfo) or run.info.bits_per_image is None:
        return None
    first = job.task.tokens(run, job.chunks[0])
    entry = None if first is None else job.cache.read(first)
    if entry is not None and "lengths" not in entry.arrays and entry.arrays["ids"].size:  # all count
        return run.info.bits_per_image
    tokens = _Reading(job, run).tokens()
    return None if tokens is None else mean_bits(tokens, run.info)


def describe(run: ModelRun, job: Job) -> RowRecord:
    """A row's record without its cells."""
    info, row = run.info, run.row
    record = RowRecord(row.label, row.name, dict(row.changed), run.status, run.error, run.trace)  # type: ignore[arg-type]  # validated by pydantic
    record.weights = list(run.identity.weights) if run.identity else []
    record.precision, record.seed = run.conditions.precision, run.conditions.seed
    record.calibration = row.cls.calibration if row.cls else None
    record.refused = dict(run.refused)
    if info is None:
        return record
    record.family, record.deterministic = info.family, info.deterministic
    record.training = str(info.training) if info.training else ""
    record.seeds = 1 if info.deterministic else job.seeds
    if isinstance(info, TokenizerInfo):
        record.tokens_per_image, record.max_bits_per_image = info.tokens_per_image, info.bits_per_image
        size = info.codebook_size
        record.codebook_size = list(size) if isinstance(size, tuple) else size
        record.input_size, record.output_size = info.input_size, info.output_size
    if isinstance(info, GeneratorInfo):
        record.output_size, record.settings = info.output_size, dict(info.settings)
    return record


class _Reading:
    """Reads a row's artifacts, each once, and remembers which processes made them."""

    def __init__(self, job: Job, run: ModelRun) -> None:
        self.job, self.run = job, run
        self.origins: list[dict[str, Any]] = []
        self._scores: dict[str, _Scores] = {}

    def entry(self, artifact: Artifact) -> Entry:
        entry = self.job.cache.read(artifact)
        if entry is None:
            raise LostArtifact(f"{artifact.kind}/{artifact.key}")
        if entry.origin and entry.origin not in self.origins:
            self.origins.append(entry.origin)
        return entry

    def scores(self, plan: MetricPlan[ImageMetric]) -> _Scores:
        if plan.name not in self._scores:
            job, run = self.job, self.run
            by_seed = [
                [self.entry(job.scores(run, chunk, seed_index, plan)) for chunk in job.chunks]
                for seed_index in run.seed_indices(job.seeds)
            ]
            for entries in by_seed:
                self._note_refused(entries)
            names = [name for name in by_seed[0][0].arrays if name not in ("features", "refused")]
            values = {name: np.stack([_joined(e, name).astype(np.float64) for e in by_seed]) for name in names}
            features = [torch.from_numpy(_joined(e, "features")) for e in by_seed if "features" in e[0].arrays]
            refused = [
                np.concatenate([e.arrays.get("refused", np.zeros(len(c), bool)) for e, c in zip(entries, job.chunks)])
                for entries in by_seed
            ]
            self._scores[plan.name] = _Scores(values, features, ~np.any(refused, axis=0))
        return self._scores[plan.name]

    def reference_features(self, plan: MetricPlan[ImageMetric]) -> Tensor:
        entries = [self.entry(self.job.reference_features(chunk, plan)) for chunk in self.job.chunks]
        return torch.from_numpy(_joined(entries, "features"))

    def _note_refused(self, entries: Sequence[Entry]) -> None:
        """The reasons of refused items, which this process did not see where another one did the work."""
        for chunk, entry in zip(self.job.chunks, entries):
            for place, reason in entry.meta.get("refused", {}).items():
                self.run.refused[chunk.items[int(place)].id] = reason

    def tokens(self) -> Tokens | None:
        """All tokens of the row but those of refused items; None where it has none."""
        artifacts = [self.job.task.tokens(self.run, chunk) for chunk in self.job.chunks]
        entries = [self.entry(artifact) for artifact in artifacts if artifact is not None]
        self._note_refused(entries)
        entries = [e for e in entries if len(e.meta["refused"]) < len(e.arrays["ids"])]
        if not entries:
            return None
        kept = np.concatenate([[str(p) not in e.meta["refused"] for p in range(len(e.arrays["ids"]))] for e in entries])
        ids = torch.from_numpy(_joined(entries, "ids")[kept]).long()
        has_lengths = "lengths" in entries[0].arrays
        return Tokens(ids, torch.from_numpy(_joined(entries, "lengths")[kept]).long() if has_lengths else None)


def trained_on(metric: type[Metric], info: ModelInfo | None) -> str:
    """What a reader must know of a model's figures in a metric whose network was a loss of its training, else ""."""
    losses = info.training.losses if info and info.training else ()
    shared = [loss for loss in losses if loss in metric.shares_network_with]
    if shared == ["lpips"]:
        return "trained on LPIPS, of a network that is not told: perhaps of the one that scores here"
    return f"trained on {', '.join(shared)}: the same network scores here" if shared else ""


def _incomplete(refused: int, count: int) -> str:
    """The note of a figure of a row that refused items; "" where it took all."""
    return f"incomplete: {refused} of {count} items refused" if refused else ""


def _noted(cells: Mapping[str, Value], note: str) -> dict[str, Value]:
    """Cells with another note beside their own."""
    return {n: dataclasses.replace(c, note="; ".join(filter(None, (c.note, note)))) for n, c in cells.items()}


def _joined(entries: Sequence[Entry], name: str) -> np.ndarray:
    return np.concatenate([entry.arrays[name] for entry in entries])


def image_cells(
    plan: MetricPlan[ImageMetric], values: dict[str, np.ndarray], items: Sequence[Item], kept: np.ndarray
) -> dict[str, Value]:
    """An image metric's cells: means of its columns, and what it summarises itself. values: name to (S, N)."""
    chosen = [item for item, keep in zip(items, kept) if keep]
    found = {name: array[:, kept] for name, array in values.items()}
    clusters = [item.cluster for item in chosen]
    note = _incomplete(len(items) - len(chosen), len(items))
    if not chosen:
        return {column.name: Value(None, count=0, note=note) for column in plan.cls.columns}
    cells = {name: mean_cell(array, clusters) for name, array in found.items()}
    if summary := plan.cls.summarise(found, chosen):

        def resampled(index: np.ndarray) -> dict[str, float]:
            return dict(plan.cls.summarise({n: a[:, index] for n, a in found.items()}, [chosen[i] for i in index]))

        intervals = bootstrap(resampled, list(summary), clusters)
        for name, value in summary.items():
            low, high = intervals[name]
            cells[name] = Value(None if np.isnan(value) else float(value), low, high, count=len(chosen))
    if note:
        cells = {name: dataclasses.replace(cell, note=note) for name, cell in cells.items()}
    return cells


def mean_cell(values: np.ndarray, clusters: Sequence[str]) -> Value:
    """Mean over seed indices, then over the items whose value is finite; the interval is clustered.

    values: (S, N) without NaN. Infinite values (PSNR of identical images) are counted; when all are, the mean is
    infinite.
    """
    of_item = values.mean(axis=0)
    finite = np.isfinite(of_item)
    infinite = int((~finite).sum())
    if not finite.any():
        return Value(float(of_item[0]), count=len(of_item), infinite=infinite)
    kept = of_item[finite]
    low, high = cluster_bootstrap(kept, [c for c, ok in zip(clusters, finite) if ok])
    spread = float(np.std([v[finite].mean() for v in values], ddof=1)) if len(values) > 1 else None
    return Value(float(kept.mean()), low, high, count=len(of_item), infinite=infinite, seeds=spread)


def _set_cells(
    job: Job, run: ModelRun, plan: MetricPlan[SetMetric], reading: _Reading, items: Sequence[Item]
) -> dict[str, Value]:
    """A set metric's columns, from the cache where they are: they take seconds."""
    of = job.metrics.features_of(plan)
    if reason := job.why_not_scored(run, of.name):
        return {column.name: Value(None, note=reason) for column in plan.cls.columns}
    clusters = [item.cluster for item in items]
    artifact = job.set_metric(run, plan, clusters)
    entry = job.cache.read(artifact)
    if entry is not None:
        return {name: Value(**fields) for name, fields in entry.meta["cells"].items()}
    scores, references = reading.scores(of), reading.reference_features(of)
    kept = torch.from_numpy(scores.kept)
    try:
        cells = set_cells(
            plan.cls(),
            [features[kept] for features in scores.features],
            references[kept],
            [c for c, keep in zip(clusters, scores.kept) if keep],
        )
    except Exception as error:  # a plugin may fail in any way; nothing of it is kept
        return _failed(run, plan, error)
    job.cache.write(artifact, {}, {"cells": {name: dataclasses.asdict(cell) for name, cell in cells.items()}})
    return cells


def set_cells(
    metric: SetMetric, features: Sequence[Tensor], references: Tensor, clusters: Sequence[str]
) -> dict[str, Value]:
    """A set metric with its interval and the note of one too noisy for its N. features: one (N, D) a seed index.

    One that is not defined for these sets (ValueError) is a cell without a value; other errors are the metric's own.
    """
    shown = metric.columns[0].name
    sets = features if metric.paired else [torch.cat(list(features))]
    try:
        computed = [metric.compute(one, references) for one in sets]
        low, high = metric.interval(sets, references, clusters)
    except ValueError as error:  # not defined for these sets, such as a single image
        return {shown: Value(None, count=len(references), note=str(error))}
    cells = {}
    for name in computed[0]:
        values = [found[name] for found in computed]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        cells[name] = Value(float(np.mean(values)), count=len(references), seeds=spread)
    cells[shown] = dataclasses.replace(cells[shown], low=low, high=high, note=metric.note(len(references)))
    return cells


def _token_cells(run: ModelRun, plan: MetricPlan[TokenMetric], tokens: Tokens) -> dict[str, Value]:
    assert isinstance(run.info, TokenizerInfo)
    try:
        found = plan.cls().compute(tokens, run.info)
        return {name: Value(float(value), count=len(tokens)) for name, value in found.items()}
    except ValueError as error:  # not defined for these tokens
        return {column.name: Value(None, count=len(tokens), note=str(error)) for column in plan.cls.columns}
    except Exception as error:  # a plugin may fail in any way
        return _failed(run, plan, error)


def _failed(run: ModelRun, plan: MetricPlan[Any], error: Exception) -> dict[str, Value]:
    """The empty cells of a metric that failed on a row, which is noted in it."""
    run.metric_errors[plan.name] = reason = f"{type(error).__name__}: {error}"
    return {column.name: Value(None, note=reason) for column in plan.cls.columns}


def _speed(job: Job, run: ModelRun, reading: _Reading) -> dict[str, Speed]:
    """Of encoding and of making images, as far as it was timed."""
    timings = [job.timing(run, chunk, s) for chunk in job.chunks for s in run.seed_indices(job.seeds)]
    tokens = [artifact for chunk in job.chunks if (artifact := job.task.tokens(run, chunk)) is not None]
    steps: list[tuple[str, list[Artifact]]] = [("encode", tokens), (job.task.output_step, timings)]
    found = {}
    read: Callable[[Artifact], Entry | None] = job.cache.read
    for name, artifacts in steps:
        entries = [e for artifact in artifacts if (e := read(artifact)) is not None and e.meta.get("seconds")]
        if entries:
            metas = [e.meta for e in entries]
            found[name] = Speed(
                images_per_second=float(np.median([m["images"] / m["seconds"] for m in metas])),
                batch=sorted({m["batch"] for m in metas}),
                threads=sorted({e.origin["threads"] for e in entries if e.origin}),
                devices=sorted({e.origin["device"] for e in entries if e.origin}),
                peak_mib=max(m["peak_mib"] for m in metas),
            )
    return found
