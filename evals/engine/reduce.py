"""From the store's pieces to a row's cells: means, distances, intervals, the use of the codebook, speed.

Pieces are read in chunk order, whoever made them, so the figures are the same to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from evals.engine.execute import Job, ProbePlan, RowWork, reason_of
from evals.engine.guard import PluginError
from evals.engine.isolation import isolated
from evals.metrics import codes as code_metrics
from evals.metrics import psnr, registry
from evals.metrics.base import Distance
from evals.metrics.intervals import cluster_bootstrap, jackknife_interval
from evals.record import RowRecord, Value
from evals.store import Piece, StoreError, key_of


class LostPiece(Exception):
    """A piece that was there is damaged or gone; doing the work again makes it anew."""


@dataclass(frozen=True)
class DistancePlan:
    """A distance and the probe whose features it reads. identity: what determines its value, for keys."""

    distance: Distance
    probe: ProbePlan
    identity: dict[str, Any]


@dataclass(frozen=True)
class PerImage:
    """Per-image values of a row: column name to float64 (repeats, N)."""

    values: dict[str, np.ndarray]


def reduce_row(job: Job, work: RowWork, distances: Sequence[DistancePlan], codes: bool) -> tuple[RowRecord, PerImage]:
    """The record of a row whose work is done, and its per-image values. Raises LostPiece.

    A metric that can't be computed leaves its cells empty, with the reason in their notes and in work.metric_errors.
    """
    record = describe(work, job)
    if work.status != "ok":
        return record, PerImage({})
    clusters = [s.cluster for chunk in job.chunks for s in chunk.samples]
    per_image: dict[str, np.ndarray] = {}
    for plan in job.probes:
        if plan.name in work.metric_errors:
            record.cells |= _empty(plan.name, work)
            continue
        per_image |= _probe_values(job, work, plan)
        record.keys[f"scores-{plan.name}"] = [
            job.keys.scores(c, work.identity.parts, r, plan.identity)
            for r in work.repeats(job.seeds)
            for c in job.chunks
        ]
    for name, values in per_image.items():
        record.cells[name] = mean_cell(values, clusters)
    if "MSE" in per_image:
        record.cells["PSNR-pooled"] = pooled_psnr(per_image["MSE"])
    for plan in distances:
        measure = partial(_distance_cells, job, work, plan, clusters)
        record.cells |= _or_empty(plan.distance.name, work, measure)
    if codes and work.info.ids_per_image is not None:
        record.keys["ids"] = [job.keys.ids(c, work.identity.parts) for c in job.chunks]
        record.cells |= _or_empty("codes", work, lambda: _code_cells(job, work))
    record.conditions |= _speed(job, work)
    return record, PerImage(per_image)


def _or_empty(metric: str, work: RowWork, cells: Callable[[], dict[str, Value]]) -> dict[str, Value]:
    """The metric's cells, empty ones where it can't be computed. Raises LostPiece, StoreError."""
    if not error_of(metric, work):
        try:
            with isolated():
                return cells()
        except (LostPiece, StoreError):
            raise
        except Exception as error:  # a metric may fail in any way; the other cells come
            work.metric_errors[metric] = reason_of(error)
    return _empty(metric, work)


def error_of(metric: str, work: RowWork) -> str:
    """Why a metric, or the probe that it reads, could not be computed for a row; "" where it could."""
    probe = registry.METRICS[metric].probe
    return work.metric_errors.get(metric) or work.metric_errors.get(probe or "", "")


def columns_of(metric: str) -> list[str]:
    """The columns that a metric fills, derived ones included."""
    return [c.name for c in registry.METRICS[metric].columns()] + ["PSNR-pooled"] * (metric == "psnr")


def _empty(metric: str, work: RowWork) -> dict[str, Value]:
    return {name: Value(None, note=f"{metric}: {error_of(metric, work)}") for name in columns_of(metric)}


def describe(work: RowWork, job: Job) -> RowRecord:
    """A row's record without its cells."""
    info = work.info
    record = RowRecord(work.row.label, work.row.name, dict(work.row.changed), work.status, work.error)
    record.weights = list(work.identity.weights) if work.identity else []
    record.conditions = {"precision": job.precision, "seed": job.keys.conditions.seed}
    if info is not None:
        record.family, record.deterministic = info.family, info.deterministic
        record.ids_per_image, record.bits_per_image = info.ids_per_image, info.bits_per_image
        record.vocabulary = list(info.vocabulary) if isinstance(info.vocabulary, tuple) else info.vocabulary
        record.input_size, record.output_size = info.input_size, info.output_size
        record.training = str(info.training) if info.training else ""
        record.conditions["seeds"] = 1 if info.deterministic else job.seeds
    return record


def _piece(job: Job, kind: str, key: str) -> Piece:
    piece = job.cache.read(kind, key)
    if piece is None:
        raise LostPiece(f"{kind}/{key}")
    return piece


def _probe_values(job: Job, work: RowWork, plan: ProbePlan) -> dict[str, np.ndarray]:
    """Column name to (repeats, N). Raises PluginError for a value that is no number."""
    rows: dict[str, list[np.ndarray]] = {}
    for repeat in work.repeats(job.seeds):
        pieces = [
            _piece(job, f"scores-{plan.name}", job.keys.scores(c, work.identity.parts, repeat, plan.identity))
            for c in job.chunks
        ]
        for name in pieces[0].arrays:
            if name != "features":
                rows.setdefault(name, []).append(np.concatenate([p.arrays[name] for p in pieces]).astype(np.float64))
    found = {name: np.stack(values) for name, values in rows.items()}
    for name, values in found.items():
        _check_numbers(job, name, values)
    return found


def _check_numbers(job: Job, name: str, values: np.ndarray) -> None:
    """Raises PluginError where a value (repeats, N) is NaN: it is no identical image, and can't enter a mean."""
    bad = np.isnan(values)
    if bad.any():
        repeat, image = np.argwhere(bad)[0]
        sample = job.dataset.samples[image]
        raise PluginError(
            f"{name} is NaN for {int(bad.any(axis=0).sum())} of {bad.shape[1]} images, first for {sample.id!r} "
            f"(decoding {repeat}); expected a number or an infinity"
        )


def mean_cell(values: np.ndarray, clusters: Sequence[str]) -> Value:
    """Mean over pictures (finite ones), then over decodings; the interval is clustered by source.

    values: (repeats, N). Infinite values (PSNR of identical pictures) are counted; when all are, the mean is infinite.
    """
    of_picture = values.mean(axis=0)
    finite = np.isfinite(of_picture)
    infinite = int((~finite).sum())
    if not finite.any():
        return Value(float(of_picture[0]), count=len(of_picture), infinite=infinite)
    kept = of_picture[finite]
    low, high = cluster_bootstrap(kept, [c for c, ok in zip(clusters, finite) if ok])
    spread = float(np.std([v[finite].mean() for v in values], ddof=1)) if len(values) > 1 else None
    return Value(float(kept.mean()), low, high, count=len(of_picture), infinite=infinite, seeds=spread)


def pooled_psnr(mse: np.ndarray) -> Value:
    """10 log10(255^2 / mean squared error over all pictures), beside the mean of per-image PSNR. mse: (repeats, N)."""
    return Value(psnr.pooled_psnr(torch.from_numpy(mse.ravel())), count=mse.shape[1])


def _features(job: Job, work: RowWork, plan: ProbePlan, repeat: int | None) -> torch.Tensor:
    pieces = [
        _piece(job, f"scores-{plan.name}", job.keys.scores(c, work.identity.parts, repeat, plan.identity))
        for c in job.chunks
    ]
    return torch.from_numpy(np.concatenate([p.arrays["features"] for p in pieces]))


def _originals(job: Job, plan: ProbePlan) -> torch.Tensor:
    pieces = [_piece(job, f"originals-{plan.name}", job.keys.originals(c, plan.identity)) for c in job.chunks]
    return torch.from_numpy(np.concatenate([p.arrays["features"] for p in pieces]))


def _distance_cells(job: Job, work: RowWork, plan: DistancePlan, clusters: list[str]) -> dict[str, Value]:
    """The distance's columns; over several decodings their mean, its interval, and the spread.

    Kept in the store: they take seconds.
    """
    repeats = work.repeats(job.seeds)
    if len(repeats) == 1:
        return _distance(job, work, plan, repeats[0], clusters)
    found = [_replicated(job, work, plan, r, clusters) for r in repeats]
    note = next((f.note for f in found if not f.values), "") or plan.distance.note(len(clusters))
    shown = plan.distance.columns[0].name
    if not all(f.values for f in found):
        return {shown: Value(None, count=len(clusters), note=note)}
    cells = {}
    for name in found[0].values:
        values = [f.values[name] for f in found]
        cells[name] = Value(float(np.mean(values)), count=len(clusters), seeds=float(np.std(values, ddof=1)))
    cells[shown].note = note
    if all(f.replicates is not None for f in found):
        left = np.mean([f.replicates for f in found], axis=0)
        cells[shown].low, cells[shown].high = jackknife_interval(cells[shown].value, list(left))
    return cells


@dataclass(frozen=True)
class Replicated:
    """A distance for one of several decodings. values: by column, {} where it is not defined (note says why).

    replicates: the first column with each group of sources left out, None where there are none.
    """

    values: dict[str, float]
    replicates: list[float] | None = None
    note: str = ""


def _replicated(job: Job, work: RowWork, plan: DistancePlan, repeat: int | None, clusters: list[str]) -> Replicated:
    key = key_of(replicates=True, **_distance_parts(job, work, plan, repeat, clusters))
    kept = job.cache.read("distance", key)
    if kept is not None:
        return Replicated(**kept.meta)
    a, b = _originals(job, plan.probe), _features(job, work, plan.probe, repeat)
    try:
        values = dict(plan.distance.compute(a, b))
        found = Replicated(values, plan.distance.replicates(a, b, clusters))
    except ValueError as error:  # not defined for these sets, such as a single image
        found = Replicated({}, note=str(error))
    job.cache.write("distance", key, {}, vars(found))
    return found


def _distance_parts(
    job: Job, work: RowWork, plan: DistancePlan, repeat: int | None, clusters: list[str]
) -> dict[str, Any]:
    """What determines a distance, for its key."""
    return {
        "distance": plan.identity,
        "originals": [job.keys.originals(c, plan.probe.identity) for c in job.chunks],
        "scores": [job.keys.scores(c, work.identity.parts, repeat, plan.probe.identity) for c in job.chunks],
        "clusters": clusters,
    }


def _distance(job: Job, work: RowWork, plan: DistancePlan, repeat: int | None, clusters: list[str]) -> dict[str, Value]:
    key = key_of(**_distance_parts(job, work, plan, repeat, clusters))
    kept = job.cache.read("distance", key)
    if kept is None:
        a, b = _originals(job, plan.probe), _features(job, work, plan.probe, repeat)
        found = measure_distance(plan.distance, a, b, clusters)
        job.cache.write("distance", key, {}, {name: vars(value) for name, value in found.items()})
        return found
    return {name: Value(**fields) for name, fields in kept.meta.items()}


def measure_distance(
    distance: Distance, originals: torch.Tensor, reconstructions: torch.Tensor, clusters: list[str]
) -> dict[str, Value]:
    """A distance with its interval (where it has one) and the note of a distance too noisy for its N."""
    try:
        values = distance.compute(originals, reconstructions)
    except ValueError as error:  # not defined for these sets, such as a single picture
        return {distance.columns[0].name: Value(None, count=len(originals), note=str(error))}
    low, high = distance.interval(originals, reconstructions, clusters)
    note = distance.note(len(originals))
    shown = distance.columns[0].name
    return {
        name: Value(
            value,
            *((low, high) if name == shown else (None, None)),
            count=len(originals),
            note=note if name == shown else "",
        )
        for name, value in values.items()
    }


def _code_cells(job: Job, work: RowWork) -> dict[str, Value]:
    pieces = [_piece(job, "ids", job.keys.ids(c, work.identity.parts)) for c in job.chunks]
    ids = torch.from_numpy(np.concatenate([p.arrays["ids"] for p in pieces])).long()
    lengths = None
    if "lengths" in pieces[0].arrays:
        lengths = torch.from_numpy(np.concatenate([p.arrays["lengths"] for p in pieces])).long()
    found = code_metrics.measure(ids, work.info.vocabulary, lengths)
    return {name: Value(value, count=len(ids)) for name, value in found.items()}


def _speed(job: Job, work: RowWork) -> dict[str, Any]:
    """Images a second of encode and decode (median over chunks), batch, threads, peak memory."""
    identity, repeats = work.identity.parts, work.repeats(job.seeds)
    encode = [job.cache.read("ids", job.keys.ids(c, identity)) for c in job.chunks] if work.info.ids_per_image else []
    decode = [job.cache.read("timing", job.keys.pictures(c, identity, r)) for c in job.chunks for r in repeats]
    found: dict[str, Any] = {}
    for name, pieces in (("encode", encode), ("decode", decode)):
        metas = [p.meta for p in pieces if p is not None]
        if metas:
            found[f"{name}_images_per_second"] = float(np.median([m["images"] / m["seconds"] for m in metas]))
            found[f"{name}_batch"] = sorted({m["batch"] for m in metas})
            found["threads"] = sorted({m["threads"] for m in metas})
            found["peak_mib"] = max(found.get("peak_mib", 0.0), *(m["peak_mib"] for m in metas))
    return found
