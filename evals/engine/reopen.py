"""A finished run's job anew, over the store beside its folder: what it refers to, without measuring anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evals.config import DatasetConfig, JudgesConfig, RunConfig, SlurmConfig
from evals.engine.job import Artifact, Job
from evals.engine.models import ModelRun
from evals.engine.run import reopen
from evals.record import RowRecord, RunRecord

MERGED = "python -m evals runs merge"
"""How the command of a merged run begins: it refers to no store of its own."""


class NotReopened(Exception):
    """A run's store can't be read as it was written; the message says why and the way out. Exit status 2."""


def reopened(folder: Path, found: RunRecord) -> Job:
    """The run's job over the store beside it. Raises NotReopened where it would not be what was measured."""
    if found.command.startswith(MERGED):
        raise NotReopened(f"{folder} is merged from other runs ({found.command}): name these, each for itself")
    again = f"run it again: {found.command} save_images=true"
    out = folder.absolute().parent.parent
    if not (out / "cache").is_dir():
        raise NotReopened(f"the store {out / 'cache'} of {folder} is not here, so its images are gone: {again}")
    try:
        fields = dict(found.config) | {
            "dataset": DatasetConfig(**found.config["dataset"]),
            "slurm": SlurmConfig(**found.config["slurm"]),
            "judges": JudgesConfig(**found.config.get("judges", {})),
            "out": str(out),
        }
        config = RunConfig(**fields)
    except (TypeError, KeyError) as error:
        raise NotReopened(f"{folder}/run.json has settings of another version of lactok ({error}): {again}") from error
    models = [row for row in found.rows if row.calibration is None and row.status == "ok"]
    rates = sorted({row.bits_per_image for row in models if row.bits_per_image is not None}, reverse=True)
    job = reopen(config, rates)
    seen = (job.task.protocol.hash, job.dataset.fingerprint)
    for what, now, then in zip(("protocol", "dataset"), seen, (found.protocol_hash, found.dataset_fingerprint)):
        if now != then:
            raise NotReopened(f"{folder}: the {what} is another now ({now[:12]}, measured: {then[:12]}): {again}")
    return job


def is_same(job: Job, run: ModelRun, row: RowRecord) -> bool:
    """Whether the row's artifacts have the keys under which it was measured: same model, code, device, images.

    A row without figures has none; the store then has its images under the present ones, or the export stops.
    """
    if not row.keys and job.task.keeps_images:
        return True
    for plan in job.metrics.image:
        keys = [job.scores(run, c, s, plan).key for s in run.seed_indices(job.seeds) for c in job.chunks]
        if row.keys.get(f"scores-{plan.name}") == keys:
            return True
    artifacts = [job.task.tokens(run, chunk) for chunk in job.chunks]
    keys = [artifact.key for artifact in artifacts if artifact is not None]
    return bool(keys) and keys in row.keys.values()


def artifacts_of(job: Job) -> Iterator[Artifact]:
    """Everything that the store may hold of a job, of rows that failed, too: the same command resumes with it."""
    for plan in job.metrics.image:
        if job.task.has_references:
            yield from (job.reference_features(chunk, plan) for chunk in job.chunks)
    yield from (job.thumbnails(chunk) for chunk in job.chunks)
    clusters = [item.cluster for item in job.dataset.items]
    for run in job.runs:
        if run.identity is None:
            continue
        yield Artifact("info", {}, (run.node,))
        if run.info is None:
            continue
        yield from (artifact for chunk in job.chunks if (artifact := job.task.tokens(run, chunk)) is not None)
        for chunk in job.chunks:
            yield job.contact(run, chunk)
            for seed_index in run.seed_indices(job.seeds):
                yield job.task.images(run, chunk, seed_index)
                yield job.thumbnails(chunk, run, seed_index)
                yield job.timing(run, chunk, seed_index)
                yield from (job.scores(run, chunk, seed_index, plan) for plan in job.metrics.image)
        yield from (job.set_metric(run, of_sets, clusters) for of_sets in job.metrics.sets)
