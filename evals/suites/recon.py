"""The reconstruction suite: how well each tokenizer gives a picture back, at how many bits."""

from __future__ import annotations

import dataclasses
import datetime
import json
import socket
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from evals.config import ConfigError, RunConfig
from evals.datasets.base import Dataset
from evals.engine import measures
from evals.engine.execute import Job, RowWork, execute, remove_damaged, shown_in
from evals.engine.missing import open_inputs
from evals.engine.progress import LiveProgress, RankProgress
from evals.engine.ranks import ENDED, POLL, RankError, Ranks
from evals.engine.reduce import LostPiece, PerImage, columns_of, describe, error_of, reduce_row
from evals.engine.rows import resolve_rows
from evals.engine.work import Conditions, Keys, chunks_of
from evals.environment import choose_device, code_revision, describe_device, package_versions
from evals.record import RowRecord, RunRecord
from evals.store import Cache, StoreError

# Pictures on the contact sheet.
SHOWN = 8
# Pictures of at most this side fill a whole chunk's batch on a CPU; larger ones go two at a time.
SMALL_SIDE = 256
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run as it stands: its record, its folder, and per-image values by row label."""

    record: RunRecord
    folder: Path
    per_image: dict[str, PerImage]
    job: Job


def run(config: RunConfig, quiet: bool = False, ranks: Ranks | None = None) -> Finished:
    """Plan, execute, reduce; as rank 0 of `ranks`, of which the others `assist`.

    Row failures are in the record; raises ConfigError, DatasetError, StoreError, RankError.
    """
    started, ranks = time.time(), ranks or Ranks()
    try:
        wanted, job = _plan(config, ranks)
        record = _record(config, job, wanted, started)
        folder = Path(config.out) / "runs" / f"{config.suite}-{config.scale}-{record.config_hash}"
        with LiveProgress(quiet, ranks) as progress:
            finished = _until_whole(job, wanted, progress)
    finally:
        ranks.end()
    record.rows = [row for row, _ in finished]
    _note_failed_metrics(record, job, measures.metric_names(config.metrics, config.features))
    record.seconds = round(time.time() - started, 2)
    record.complete = True
    return Finished(record, folder, {row.label: values for row, values in finished if row.status == "ok"}, job)


def assist(config: RunConfig, ranks: Ranks) -> None:
    """The part of the work that falls to a rank other than 0. Raises as `run` does, after telling rank 0."""
    attempt = 0
    try:
        _, job = _plan(config, ranks)
        while True:
            execute(job, RankProgress(ranks), attempt)
            ranks.tell(_done(attempt, ranks.rank), _told(job))
            while ranks.heard(_again(attempt)) is None:
                if ranks.heard(ENDED):
                    return
                time.sleep(POLL)
            attempt += 1
    except Exception as error:
        ranks.tell(_done(attempt, ranks.rank), f"rank {ranks.rank} on {socket.gethostname()} stopped: {error}")
        raise


def _told(job: Job) -> dict[str, list]:
    """By row: how it went on this rank."""
    return {work.row.label: [work.status, work.error, work.metric_errors] for work in job.rows}


def _done(attempt: int, rank: int) -> str:
    return f"done/{attempt}/{rank}"


def _again(attempt: int) -> str:
    return f"again/{attempt}"


def _plan(config: RunConfig, ranks: Ranks) -> tuple[measures.Measures, Job]:
    device = choose_device(config.device, ranks)
    protocol = config.make_protocol()
    rows = resolve_rows(config.tokenizers, config.weights, config.calibration, config.options)
    cache = Cache(Path(config.out) / "cache")
    ranks.check_shared(cache.root)
    with ranks.zero_first("dataset"):
        dataset = open_inputs(config, rows, cache.root / "index")
    wanted = measures.plan(config.metrics, config.features, protocol)
    chunks = chunks_of(dataset.samples)
    return wanted, Job(
        dataset=dataset,
        chunks=chunks,
        rows=[RowWork(row) for row in rows],
        probes=wanted.probes,
        protocol=protocol,
        keys=Keys(protocol, Conditions(device.type, config.precision, config.seed)),
        cache=cache,
        device=device,
        precision=config.precision,
        batch_size=config.batch_size or _batch_size(protocol.eval_size, device),
        seeds=config.seeds,
        resident=config.resident or (None if config.weights == "mini" else 1),
        save_pictures=config.save_pictures,
        shown=frozenset(spread(dataset, SHOWN)),
        ranks=ranks,
    )


def _until_whole(job: Job, wanted: measures.Measures, progress: LiveProgress) -> list[tuple[RowRecord, PerImage]]:
    """Execute and reduce; where a piece turns out damaged, all damaged ones are removed and made anew, once."""
    _execute_all(job, progress, 0)
    try:
        return [_reduced(job, work, wanted, (LostPiece, StoreError)) for work in job.rows]
    except LostPiece:
        remove_damaged(job)
        job.ranks.tell(_again(0), True)
        _execute_all(job, progress, 1)
        return [_reduced(job, work, wanted, (StoreError,)) for work in job.rows]


def _execute_all(job: Job, progress: LiveProgress, attempt: int) -> None:
    """Until every rank is done. A row that failed on any of them has failed. Raises RankError when one stopped."""
    execute(job, progress, attempt)
    for rank in range(1, job.ranks.size):
        found = job.ranks.wait(_done(attempt, rank), progress.refresh)
        if isinstance(found, str):
            raise RankError(f"{found}\nAll finished work is kept; the same command goes on from there")
        for work in job.rows:
            status, error, metrics = found[work.row.label]
            for metric, reason in metrics.items():
                work.metric_errors.setdefault(metric, f"on rank {rank}: {reason}")
            if work.status == "ok" and status != "ok":
                work.status, work.error = status, f"on rank {rank}: {error}"


def _reduced(
    job: Job, work: RowWork, wanted: measures.Measures, ends: tuple[type[Exception], ...]
) -> tuple[RowRecord, PerImage]:
    """The row's record; that of a failed row for any error that is not one of `ends`, which are raised."""
    if work.status == "ok":
        try:
            return reduce_row(job, work, wanted.distances, wanted.codes)
        except ends:
            raise
        except Exception as error:  # the other rows come
            work.fail(error)
    return describe(work, job), PerImage({})


def _note_failed_metrics(record: RunRecord, job: Job, names: Sequence[str]) -> None:
    """A line a metric that failed, with its reason; one that failed on every measured row has no columns."""
    measured = [work for work in job.rows if work.status == "ok"]
    for name in names:
        errors = {work.row.label: error for work in measured if (error := error_of(name, work))}
        if not errors:
            continue
        reason = next(iter(errors.values()))
        if len(errors) < len(measured):
            record.missing_metrics.append(f"{name}: not computed for {', '.join(errors)}: {reason}")
            continue
        record.missing_metrics.append(f"{name}: {reason}")
        lacking = columns_of(name)
        record.columns = [column for column in record.columns if column.name not in lacking]
        for row in record.rows:
            row.cells = {column: cell for column, cell in row.cells.items() if column not in lacking}


def _batch_size(side: int, device: torch.device) -> int:
    return 16 if device.type == "cuda" or side <= SMALL_SIDE else 2


def spread(dataset: Dataset, count: int) -> list[int]:
    """Indices of `count` samples for the contact sheet: one of each cluster in turn, the middle one first."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(dataset.samples):
        groups.setdefault(sample.cluster, []).append(index)
    for group in groups.values():
        group.sort(key=lambda i: sha256(dataset.samples[i].id.encode()).digest())
    taken: list[int] = []
    queues = list(groups.values())[: max(count, 1)]
    while len(taken) < count and any(queues):
        for queue in queues:
            if queue and len(taken) < count:
                taken.append(queue.pop(0))
    return sorted(taken)


def _record(config: RunConfig, job: Job, wanted: measures.Measures, started: float) -> RunRecord:
    determining = {
        "suite": config.suite,
        "scale": config.scale,
        "rows": [[work.row.label, work.row.changed] for work in job.rows],
        "metrics": [p.identity for p in job.probes] + [d.identity for d in wanted.distances],
        "protocol": job.protocol.hash,
        "dataset": job.dataset.fingerprint,
        "conditions": dataclasses.asdict(job.keys.conditions) | {"seeds": config.seeds},
    }
    if not job.dataset.samples:
        raise ConfigError(f"dataset {config.dataset.name} has no pictures")
    return RunRecord(
        suite=config.suite,
        scale=config.scale,
        config_hash=sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:10],
        config=dataclasses.asdict(config),
        protocol=job.protocol.as_dict(),
        protocol_hash=job.protocol.hash,
        dataset=config.dataset.name,
        dataset_fingerprint=job.dataset.fingerprint,
        pictures=len(job.dataset.samples),
        clusters=len({s.cluster for s in job.dataset.samples}),
        left_out=[dataclasses.asdict(b) for b in job.dataset.left_out],
        notes=list(job.dataset.notes),
        missing_metrics=list(wanted.missing),
        columns=wanted.columns,
        device=describe_device(job.device),
        ranks=job.ranks.size,
        versions=package_versions(),
        code_revision=code_revision(),
        started=datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
    )


def contact_pictures(finished: Finished) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """(originals, [(label, reconstructions)]) of the contact sheet's samples, uint8 (n, H, W, 3) each."""
    from evals.engine.source import read_chunks

    job = finished.job
    chunks = [c for c in job.chunks if shown_in(job, c)]
    originals = [o.evaluation[shown_in(job, o.chunk)] for o in read_chunks(job.dataset, chunks, job.protocol, CPU)]
    rows = []
    for work in job.rows:
        if work.status == "ok":
            keys = [job.keys.contact(c, work.identity.parts, shown_in(job, c)) for c in chunks]
            kept = [job.cache.read("contact", key) for key in keys]
            if all(kept):
                rows.append((work.row.label, _hwc(np.concatenate([k.arrays["pictures"] for k in kept]))))
    return _hwc(torch.cat(originals).numpy()), rows


def _hwc(pictures: np.ndarray) -> np.ndarray:
    return pictures.transpose(0, 2, 3, 1)
