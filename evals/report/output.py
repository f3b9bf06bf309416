"""A finished run to its folder: run.json, per_image.parquet, tables, report, page, contact sheet, tracebacks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd

from evals import record
from evals.cli.compare import NotComparable, Run, load
from evals.engine.job import Job
from evals.engine.reduce import PerImage
from evals.engine.reopen import NotReopened, reopened
from evals.engine.run import Finished, contact_images
from evals.engine.store import write_atomically
from evals.report.contact import contact_sheet
from evals.report.html import write_page
from evals.report.markdown import write_report
from evals.report.table import traceback_name


def write_run(finished: Finished, command: str) -> list[Path]:
    """Write everything that a reader of the run needs; returns the paths, the report first. Raises StoreError."""
    folder = finished.folder
    finished.record.command = command
    paths = [folder / "run.json"]
    write_atomically(folder / "per_image.parquet", _parquet(per_image_frame(finished)))
    references, rows = contact_images(finished)
    if references or rows:
        buffer = io.BytesIO()
        items = finished.job.dataset.items
        names = [items[index].id for index in sorted(finished.job.shown)]
        contact_sheet(references, rows, names).save(buffer, format="PNG")
        write_atomically(folder / "contact.png", buffer.getvalue())
        paths.insert(0, folder / "contact.png")
    else:  # none of an earlier attempt is shown in its place
        (folder / "contact.png").unlink(missing_ok=True)
    write_atomically(folder / "run.json", record.to_json(finished.record).encode())
    for stale in folder.glob("errors/*.txt"):  # of an earlier attempt
        stale.unlink()
    for row in finished.record.rows:
        if row.trace:
            paths.append(folder / traceback_name(row))
            write_atomically(paths[-1], row.trace.encode())
    return [*write_report(finished.record, folder), write_page(finished), *paths]


def per_image_frame(finished: Finished) -> pd.DataFrame:
    """One line a row, an item and a seed index; a column a per-image metric (infinite where PSNR is)."""
    items = finished.job.dataset.items
    frames = []
    for label, values in finished.per_image.items():
        seeds = len(next(iter(values.values.values()))) if values.values else 0
        for seed_index in range(seeds):
            frame = pd.DataFrame({name: v[seed_index] for name, v in values.values.items()})
            frame.insert(0, "row", label)
            frame.insert(1, "item", [item.id for item in items])
            frame.insert(2, "cluster", [item.cluster for item in items])
            frame.insert(3, "seed_index", seed_index)
            frames.append(frame)
    if not frames:  # no metric is of single images
        return pd.DataFrame(columns=["row", "item", "cluster", "seed_index"])
    return pd.concat(frames, ignore_index=True)


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def page_again(folder: Path) -> Path:
    """Write report.html of a finished run anew, from its folder and the store beside it; returns its path.

    Nothing is measured. Raises NotComparable and RecordError for a folder that is no run's, NotReopened where the store
    is gone or the run's command means something else now, StoreError, and what planning a run raises.
    """
    run = load(folder)
    job = reopened(folder, run.record)
    labels, planned = [row.label for row in run.record.rows], [one.row.label for one in job.runs]
    if sorted(labels) != sorted(planned):
        raise NotReopened(
            f"{folder} has the rows {', '.join(labels)}; its command means {', '.join(planned)} now: run it again: "
            f"{run.record.command}"
        )
    measured = [row.label for row in run.record.rows if row.status == "ok"]
    per_image = {label: _per_image(run, label, job) for label in measured}
    return write_page(Finished(run.record, folder, per_image, job))


def _per_image(run: Run, label: str, job: Job) -> PerImage:
    """A row's values of per_image.parquet, in the dataset's order. Raises NotComparable."""
    frame = run.values[run.values["row"] == label] if len(run.values) else run.values
    items = [item.id for item in job.dataset.items]
    found: dict[str, list[np.ndarray]] = {}
    for _, part in frame.groupby("seed_index", sort=True) if len(frame) else ():
        if list(part["item"]) != items:
            raise NotComparable(f"{run.folder}/per_image.parquet has other items of {label} than the run's dataset now")
        for name in part.columns.difference(["row", "item", "cluster", "seed_index"], sort=False):
            if part[name].notna().any():
                found.setdefault(name, []).append(part[name].to_numpy(float))
    return PerImage({name: np.stack(seeds) for name, seeds in found.items()})
