"""A finished run to its folder: run.json, per_image.parquet, tables, report, page, contact sheet, tracebacks."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from evals import record
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
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"row": [], "item": []})


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
