"""Rows of several runs of one protocol in one table."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from evals.cli.compare import NotComparable, Run, load, same_conditions
from evals.engine.store import write_atomically
from evals.record import RowRecord, RunRecord, to_json
from evals.report.markdown import write_report
from lactok.files import check_new, new_folder


def merge(folders: Sequence[Path], out: Path, command: str) -> RunRecord:
    """Write the rows of several runs as one to the new folder `out`, whole or not at all; row order is that given.

    A row that several runs have is taken once where it is the same work. Raises NotComparable for runs of other
    protocols, items, clusters or conditions and for two rows of one name, RecordError and WriteError.
    """
    check_new(out)
    runs = [load(folder) for folder in folders]
    for run in runs[1:]:
        _check(runs[0], run)
    rows, parts = _rows(runs)
    values = pd.concat(parts, ignore_index=True) if parts else runs[0].values.iloc[:0]
    merged = _record([run.record for run in runs], rows, command)
    content = io.BytesIO()
    values.to_parquet(content, index=False)
    with new_folder(out) as temporary:
        write_atomically(temporary / "per_image.parquet", content.getvalue())
        write_atomically(temporary / "run.json", to_json(merged).encode())
        write_report(merged, temporary)
    return merged


def _check(first: Run, other: Run) -> None:
    """Raises NotComparable naming each key that differs where both runs' figures can't share a table."""
    a, b = first.record, other.record
    try:
        same_conditions(a, b)
    except NotComparable as error:
        raise NotComparable(f"{first.folder} and {other.folder}: {error}") from error
    facts = [
        (run.task, run.unit, run.scale, run.parameters, run.config.get("seed"), run.config.get("seeds"))
        for run in (a, b)
    ]
    names = ("task", "unit", "scale", "parameters", "seed", "seeds")
    wrong = [f"{name}: {x} and {y}" for name, x, y in zip(names, *facts, strict=True) if x != y]
    kinds = {column.name: column for column in a.columns}
    wrong += [f"column {c.name}: another unit or direction" for c in b.columns if kinds.get(c.name, c) != c]
    if _clusters(first.values) != _clusters(other.values):
        wrong.append("clusters: intervals resample other groups of images (dataset.cluster)")
    if wrong:
        raise NotComparable(f"{first.folder} and {other.folder} differ ({'; '.join(wrong)}): run both alike")


def _clusters(values: pd.DataFrame) -> dict[str, str]:
    return dict(zip(values["item"], values["cluster"])) if len(values) else {}


def _rows(runs: Sequence[Run]) -> tuple[list[RowRecord], list[pd.DataFrame]]:
    """The rows, models before the calibration rows behind them, with their per-image values. Raises NotComparable."""
    found: dict[str, tuple[RowRecord, Run]] = {}
    for run in runs:
        for row in run.record.rows:
            kept = found.setdefault(row.label, (row, run))
            if kept[1] is not run and not _same(kept[0], row):
                raise NotComparable(
                    f"{kept[1].folder} and {run.folder} both have a row {row.label}, with other figures or of other "
                    "code, weights or device: leave one of them out, or run both anew"
                )
    ordered = sorted(found.values(), key=lambda one: _place(one[0]))
    parts = [run.values[run.values["row"] == row.label] for row, run in ordered if len(run.values)]
    return [row for row, _ in ordered], [part for part in parts if len(part)]


def _same(a: RowRecord, b: RowRecord) -> bool:
    """Whether two rows are one piece of work: no artifact that both have a key of is another."""
    if a.status != b.status or [w.sha256 for w in a.weights] != [w.sha256 for w in b.weights]:
        return False
    shared = a.keys.keys() & b.keys.keys()
    return all(a.keys[kind] == b.keys[kind] for kind in shared) and a.cells.keys() == b.cells.keys()


def _place(row: RowRecord) -> tuple[int, int]:
    if row.calibration is None:
        return 0, 0
    return (-1 if row.calibration < 0 else 1), row.calibration


def _record(runs: Sequence[RunRecord], rows: list[RowRecord], command: str) -> RunRecord:
    first = runs[0]
    columns = {column.name: column for run in reversed(runs) for column in run.columns}
    order = dict.fromkeys(column.name for run in runs for column in run.columns)
    notes = list(dict.fromkeys(note for run in runs for note in run.notes))
    missing = list(dict.fromkeys(line for run in runs for line in run.missing_metrics))
    same = {k: v for k, v in first.config.items() if all(run.config.get(k) == v for run in runs)}
    return dataclasses.replace(
        first,
        config_hash=hashlib.sha256("".join(run.config_hash for run in runs).encode()).hexdigest()[:10],
        config={k: same.get(k) for k in first.config},
        notes=[*notes, f"rows of {len(runs)} runs: {', '.join(run.command for run in runs)}"],
        missing_metrics=missing,
        command=command,
        columns=[columns[name] for name in order],
        rows=rows,
        started=max(run.started for run in runs),
        seconds=sum(run.seconds for run in runs),
        complete=all(run.complete for run in runs),
    )
