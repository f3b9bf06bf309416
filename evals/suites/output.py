"""A finished run to its folder: run.json, per_image.parquet, tables, report, contact sheet."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from evals import record
from evals.report.contact import contact_sheet
from evals.report.markdown import write_report
from evals.store import write_atomically
from evals.suites.recon import Finished, contact_pictures


def write_run(finished: Finished, command: str) -> list[Path]:
    """Write everything that a reader of the run needs; returns the paths, the report first. Raises StoreError."""
    folder = finished.folder
    finished.record.command = command
    write_atomically(folder / "per_image.parquet", _parquet(per_image_frame(finished)))
    originals, rows = contact_pictures(finished)
    buffer = io.BytesIO()
    contact_sheet(originals, rows).save(buffer, format="PNG")
    write_atomically(folder / "contact.png", buffer.getvalue())
    write_atomically(folder / "run.json", record.to_json(finished.record).encode())
    return [*write_report(finished.record, folder), folder / "contact.png", folder / "run.json"]


def per_image_frame(finished: Finished) -> pd.DataFrame:
    """One line a row, a picture and a decoding; a column a per-image metric (infinite where PSNR is)."""
    samples = finished.job.dataset.samples
    frames = []
    for label, values in finished.per_image.items():
        repeats = len(next(iter(values.values.values()))) if values.values else 0
        for repeat in range(repeats):
            frame = pd.DataFrame({name: v[repeat] for name, v in values.values.items()})
            frame.insert(0, "row", label)
            frame.insert(1, "sample", [s.id for s in samples])
            frame.insert(2, "cluster", [s.cluster for s in samples])
            frame.insert(3, "decoding", repeat)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"row": [], "sample": []})


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
