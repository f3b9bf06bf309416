"""A run from its settings to its record: plan, execute, reduce; as one process or as one of several ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import socket
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch

from evals.config import ConfigError, Limit, RunConfig
from evals.datasets.base import ChangedImage, Dataset
from evals.engine.environment import (
    check_precision,
    choose_device,
    code_revision,
    describe_device,
    package_versions,
    process_origin,
)
from evals.engine.examine import DRIFTED, examine
from evals.engine.execute import begun, execute, remove_damaged
from evals.engine.job import Job
from evals.engine.missing import open_all
from evals.engine.models import Conditions, ModelRun
from evals.engine.progress import LiveProgress, RankProgress
from evals.engine.ranks import ENDED, POLL, RankError, Ranks
from evals.engine.reduce import LostArtifact, PerImage, describe, measured_bits, reduce_row
from evals.engine.rows import Wanted, references_at, resolve_rows
from evals.engine.store import Cache, StoreError
from evals.metrics.base import Column, SetMetric
from evals.metrics.plan import metric_class, plan
from evals.record import ColumnRecord, RowRecord, RunRecord
from evals.tasks.base import Task, unpack_images
from evals.tasks.build import make_task, task_class
from lactok.interface import Generator, Model, Tokenizer, asks_for_items
from lactok.progress import silent
from lactok.registry import RegistryError
from lactok.weights import offline

# Images on the contact sheet.
SHOWN = 8
# Images of at most this side fill a whole chunk's batch on a CPU; larger ones go two at a time.
SMALL_SIDE = 256


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run as it stands: its record, its folder, and per-image values by row label."""

    record: RunRecord
    folder: Path
    per_image: dict[str, PerImage]
    job: Job


def run(
    config: RunConfig, quiet: bool = False, ranks: Ranks | None = None, live: Mapping[str, Model] | None = None
) -> Finished:
    """Plan, execute, reduce; as rank 0 of `ranks`, of which the others `assist`. live: built models by label, which are
    rows too; of a process alone.

    Failures of rows and metrics are in the record; raises ConfigError, DatasetError, StoreError, RankError.
    """
    started, ranks = time.time(), ranks or Ranks()
    with silent(quiet):
        try:
            return _run(config, quiet, ranks, started, live or {})
        except ChangedImage:
            if ranks.size > 1:  # the others hold the old list
                raise
            return _run(config, quiet, Ranks(), started, live or {})  # the index is gone: every image is checked again
        finally:
            ranks.end()


def _run(config: RunConfig, quiet: bool, ranks: Ranks, started: float, live: Mapping[str, Model]) -> Finished:
    job = _plan(config, ranks, live)
    record = _record(config, job, started)
    folder = Path(config.out) / "runs" / f"{config.suite}-{config.scale}-{record.config_hash}"
    with LiveProgress(quiet, ranks, unit=job.task.unit) as progress:
        finished = _until_whole(job, progress, config.weights)
    record.rows = [row for row, _ in finished]
    if config.costs or config.drift:
        with LiveProgress(quiet, Ranks(), unit=job.task.unit) as progress:
            examine(job, record.rows, progress, spread(job.dataset, DRIFTED), config.costs, config.drift)
    _name_failed_metrics(record, job)
    record.seconds = round(time.time() - started, 2)
    record.complete = True
    return Finished(record, folder, {row.label: values for row, values in finished if row.status == "ok"}, job)


def reopen(config: RunConfig, rates: Sequence[float]) -> Job:
    """The job of a run that was made, its rows identified, so that its store can be read again; nothing is measured.

    rates: the bits an image of its models under test, for each of which calibration rows may have joined. Raises as
    `run` does.
    """
    job = _plan(config, Ranks())
    _add_references(job, rates, config.weights)
    with offline(True):  # what has to be downloaded is not what was measured here
        for run in job.runs:
            if run.status == "ok":
                run.identify()
            if run.status == "ok":
                run.find_info(job.cache)
    return job


def require_inputs(configs: Sequence[RunConfig]) -> None:
    """Raises MissingInputs with all that any of several runs of the same rows lacks, before the first one begins."""
    config = configs[0]
    rows = resolve_rows(_wanted(config))
    open_all(configs, rows, Cache(Path(config.out) / "cache").root / "index")


def assist(config: RunConfig, ranks: Ranks) -> None:
    """The part of the work that falls to a rank other than 0. Raises as `run` does, after publishing the reason."""
    attempt = 0
    try:
        job = _plan(config, ranks)
        while True:
            execute(job, RankProgress(ranks), attempt)
            ranks.publish(_done(attempt, ranks.rank), _failures(job))
            while (rates := ranks.poll(_again(attempt))) is None:
                if ranks.poll(ENDED):
                    return
                time.sleep(POLL)
            _add_references(job, rates, config.weights)
            attempt += 1
    except Exception as error:
        ranks.publish(_done(attempt, ranks.rank), f"rank {ranks.rank} on {socket.gethostname()} stopped: {error}")
        raise


def _done(attempt: int, rank: int) -> str:
    return f"done/{attempt}/{rank}"


def _again(attempt: int) -> str:
    """The key under which rank 0 publishes that there is more to do: the rates at which references join, or []."""
    return f"again/{attempt}"


def _failures(job: Job) -> list[object]:
    """What rank 0 must know of this rank's rows and metrics, as JSON; `_merge` reads it."""
    rows = [[r.row.label, r.status, r.error, r.trace, r.metric_errors, r.refused] for r in job.runs]
    return [rows, job.broken_metrics]


def _merge(job: Job, rank: int, found: list) -> None:
    """A row or metric that failed on any rank has failed."""
    rows, broken = found
    for run, (_, status, error, trace, metric_errors, refused) in zip(job.runs, rows, strict=True):
        if run.status == "ok" and status != "ok":
            where = f"on rank {rank}: " if status == "failed" else ""
            run.status, run.error, run.trace = status, f"{where}{error}", trace
        for metric, reason in metric_errors.items():
            run.metric_errors.setdefault(metric, f"on rank {rank}: {reason}")
        run.refused |= refused
    job.broken_metrics.update(broken)


def _wanted(config: RunConfig) -> Wanted:
    takes = task_class(config).takes
    group = "generators" if Generator in takes else "tokenizers"
    names = config.generators if group == "generators" else config.tokenizers
    return Wanted(group, names, config.weights, config.calibration, config.options, takes)


def _plan(config: RunConfig, ranks: Ranks, live: Mapping[str, Model] = MappingProxyType({})) -> Job:
    device = choose_device(config.device, ranks)
    check_precision(config.precision, device)
    rows = resolve_rows(_wanted(config), live)
    cache = Cache(Path(config.out) / "cache", process_origin(device))
    ranks.check_shared(cache.root)
    with ranks.zero_first("dataset"):
        dataset = open_all([config], rows, cache.root / "index")[0]
    if not dataset.items:
        raise ConfigError(f"dataset {config.dataset.name} has no items")
    task = make_task(config, dataset)
    conditions = Conditions(device, config.precision, config.seed)
    refused = task.max_refused if config.max_refused is None else str(config.max_refused)
    batch_size = config.batch_size or _batch_size(task, device)
    return Job(
        task=task,
        dataset=dataset,
        runs=[ModelRun(row, conditions, batch_size) for row in rows],
        metrics=plan(config.metrics, config.default_metrics, task),
        cache=cache,
        device=device,
        batch_size=batch_size,
        seeds=config.seeds,
        resident=config.resident or (None if config.weights == "mini" else 1),
        save_images=config.save_images,
        shown=frozenset(spread(dataset, SHOWN)),
        max_refused=None if refused is None else Limit(refused),
        ranks=ranks,
    )


def _until_whole(job: Job, progress: LiveProgress, preset: str) -> list[tuple[RowRecord, PerImage]]:
    """Execute, add the references of the rates that were measured, and reduce; where an artifact turns out damaged, all
    damaged ones are removed and recomputed, once."""
    _execute_all(job, progress, 0)
    done = 0
    try:
        done = _execute_references(job, progress, done, preset)
        return [_reduced(job, run, (LostArtifact, StoreError)) for run in job.runs]
    except LostArtifact:
        remove_damaged(job)
        job.ranks.publish(_again(done), [])
        _execute_all(job, progress, done + 1)
        with contextlib.suppress(LostArtifact):  # the row that lost it says so
            _execute_references(job, progress, done + 1, preset)
        return [_reduced(job, run, (StoreError,)) for run in job.runs]


def _execute_references(job: Job, progress: LiveProgress, done: int, preset: str) -> int:
    """Execute the rows that stand for the rates of the models under test, which are known only when their tokens are.

    Returns the last attempt. done: the last one so far. Raises LostArtifact.
    """
    models = [run for run in job.runs if run.row.cls is not None and run.row.cls.calibration is None]
    rates = sorted({bits for run in models if (bits := measured_bits(job, run)) is not None}, reverse=True)
    if not references_at([run.row for run in job.runs], rates, preset):
        return done
    job.ranks.publish(_again(done), rates)
    _add_references(job, rates, preset)
    _execute_all(job, progress, done + 1)
    return done + 1


def _add_references(job: Job, rates: Sequence[float], preset: str) -> None:
    """Add the rows of these rates behind those of their name; every rank does the same."""
    for name, rows in references_at([run.row for run in job.runs], rates, preset).items():
        behind = max(place for place, run in enumerate(job.runs) if run.row.name == name) + 1
        like = job.runs[behind - 1]
        job.runs[behind:behind] = [ModelRun(row, like.conditions, like.batch_size) for row in rows]


def _reduced(job: Job, run: ModelRun, ends: tuple[type[Exception], ...]) -> tuple[RowRecord, PerImage]:
    """The row's record; that of a failed row for any error that is not one of `ends`, which are raised."""
    try:
        return reduce_row(job, run)
    except ends:
        raise
    except Exception as error:  # the other rows come
        run.fail(error)
        return describe(run, job), PerImage()


def _name_failed_metrics(record: RunRecord, job: Job) -> None:
    """A line a metric that failed, with its reason; one that failed on every measured row has no columns."""
    measured = [run for run in job.runs if run.status == "ok"]
    for metric in (*job.metrics.image, *job.metrics.sets, *job.metrics.tokens):
        of = [metric.name] + ([metric.cls.features_of] if issubclass(metric.cls, SetMetric) else [])
        reasons = {r.row.label: [reason for name in of if (reason := job.why_not_scored(r, name))] for r in measured}
        errors = {label: found[0] for label, found in reasons.items() if found}
        if not errors:
            continue
        reason = next(iter(errors.values()))
        if len(errors) < len(measured):
            record.missing_metrics.append(f"{metric.name}: not computed for {', '.join(errors)}: {reason}")
            continue
        record.missing_metrics.append(f"{metric.name}: {reason}")
        names = {column.name for column in metric.cls.columns}
        record.columns = [column for column in record.columns if column.name not in names]
        for row in record.rows:
            row.cells = {name: cell for name, cell in row.cells.items() if name not in names}


def _execute_all(job: Job, progress: LiveProgress, attempt: int) -> None:
    """Until every rank is done. Raises RankError when one stopped."""
    execute(job, progress, attempt)
    for rank in range(1, job.ranks.size):
        if job.ranks.started_here and job.ranks.poll(begun(attempt, rank)) is None:
            continue  # all chunks are done, so it will claim none
        found = job.ranks.wait(_done(attempt, rank), progress.refresh)
        if isinstance(found, str):
            raise RankError(f"{found}\nAll finished work is kept; the same command resumes")
        _merge(job, rank, found)


def _batch_size(task: Task, device: torch.device) -> int:
    side = task.image_side()
    return 16 if device.type == "cuda" or (side is not None and side <= SMALL_SIDE) else 2


def spread(dataset: Dataset, count: int) -> list[int]:
    """Indices of `count` items for the contact sheet: one of each cluster in turn; of more clusters than that, one of
    `count` that are evenly spread over them."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(dataset.items):
        groups.setdefault(item.cluster, []).append(index)
    for group in groups.values():
        group.sort(key=lambda i: sha256(dataset.items[i].id.encode()).digest())
    taken: list[int] = []
    clusters = list(groups.values())
    wanted = min(max(count, 1), len(clusters))
    queues = [clusters[place * len(clusters) // wanted] for place in range(wanted)]
    while len(taken) < count and any(queues):
        for queue in queues:
            if queue and len(taken) < count:
                taken.append(queue.pop(0))
    return sorted(taken)


def _record(config: RunConfig, job: Job, started: float) -> RunRecord:
    conditions = {"device": job.device.type, "precision": config.precision, "seed": config.seed, "seeds": config.seeds}
    determining = {
        "suite": config.suite,
        "scale": config.scale,
        "rows": [[run.row.label, run.row.changed] for run in job.runs],
        "metrics": [p.identity for p in (*job.metrics.image, *job.metrics.sets, *job.metrics.tokens)],
        "columns": [planned.column.name for planned in job.metrics.columns],
        "round_trips": config.round_trips,
        "max_refused": job.max_refused,
        "protocol": job.task.protocol.hash,
        "parameters": job.task.parameters,
        "dataset": job.dataset.fingerprint,
        "clusters": [item.cluster for item in job.dataset.items],
        "conditions": conditions,
    } | ({"costs": config.costs, "drift": config.drift} if config.costs or config.drift else {})
    told = [run.row.label for run in job.runs if _is_told(run)]
    if told:
        known = [[item.id, dict(item.metadata)] for item in job.dataset.items]
        determining["told"] = sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return RunRecord(
        suite=config.suite,
        task=job.task.name,
        parameters=job.task.parameters,
        scale=config.scale,
        config_hash=sha256(json.dumps(determining, sort_keys=True, default=str).encode()).hexdigest()[:10],
        config=dataclasses.asdict(config),
        protocol=job.task.protocol.as_dict(),
        protocol_hash=job.task.protocol.hash,
        dataset=config.dataset.name,
        dataset_fingerprint=job.dataset.fingerprint,
        items=len(job.dataset.items),
        clusters=len({item.cluster for item in job.dataset.items}),
        unit=job.task.unit,
        left_out=[dataclasses.asdict(bad) for bad in job.dataset.left_out],
        notes=[
            *job.dataset.notes,
            *([_told(job.dataset, told)] if told else []),
            *(unmeasured(name) for name in config.unasked),
        ],
        missing_metrics=list(job.metrics.missing),
        columns=[column_record(planned.column, planned.kind) for planned in job.metrics.columns],
        device=describe_device(job.device),
        ranks=job.ranks.size,
        versions=package_versions(),
        code_revision=code_revision(),
        started=datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
    )


def _is_told(run: ModelRun) -> bool:
    """Whether it is a tokenizer that asks for the names of images and what is known of them."""
    cls = run.row.cls
    return cls is not None and issubclass(cls, Tokenizer) and (asks_for_items(cls.encode) or asks_for_items(cls.decode))


def _told(dataset: Dataset, labels: list[str]) -> str:
    known = dict.fromkeys(key for item in dataset.items for key in item.metadata)
    what = f"names and {', '.join(known)}" if known else "names, without metadata"
    return f"given the images' {what}, beside the images: {', '.join(labels)}"


def unmeasured(name: str) -> str:
    """What is said of a metric that a run could have and was not asked for: its columns, and the weights it needs."""
    try:
        cls = metric_class(name)
        columns, needs = [column.name for column in cls.columns], [str(source) for source in cls.weights()]
    except RegistryError as error:
        return f"{name} is not measured: {error}"
    return (
        f"{', '.join(columns)}: not measured here; metrics=[...,{name}] asks for it, and needs "
        f"{' and '.join(needs) or 'no weights'} (`python -m evals list metrics`)"
    )


def column_record(column: Column, kind: Literal["image", "set", "token"] = "image") -> ColumnRecord:
    """A metric's column as a run's record has it: without the controls to which it is blind."""
    shown = {name: value for name, value in vars(column).items() if name != "blind_to"}
    return ColumnRecord(**shown, kind=kind)


def contact_images(finished: Finished) -> tuple[list[np.ndarray], list[tuple[str, list[np.ndarray]]]]:
    """(references, [(label, a model's images)]) of the contact sheet's items, uint8 (H, W, 3) each; references are []
    where the task has none."""
    job, cpu = finished.job, torch.device("cpu")
    chunks = [chunk for chunk in job.chunks if job.shown_in(chunk)]
    references: list[np.ndarray] = []
    for chunk in chunks:
        loaded = job.task.load(chunk).references
        if loaded is not None:
            references += [_hwc(loaded[place]) for place in job.shown_in(chunk)]
    rows = []
    for run in job.runs:
        if run.status == "ok":
            entries = [job.cache.read(job.contact(run, chunk)) for chunk in chunks]
            found = [entry for entry in entries if entry is not None]
            if len(found) == len(chunks):
                images = [_hwc(image) for entry in found for image in unpack_images(entry, cpu)]
                rows.append((run.row.label, images))
    return references, rows


def _hwc(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
