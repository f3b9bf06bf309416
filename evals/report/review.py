"""The parts of a report that answer a reviewer: costs, what files are made of, few-step curves, round trips."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pandas as pd

from evals.record import ColumnRecord, CostsOfStep, RowRecord, RunRecord
from evals.report.rate import CALIBRATION, MARKERS, PANEL, dress, label_ends
from evals.report.symbols import ARROWS, COLOURS, NOTHING
from evals.report.table import bits_text, interval_text, number_text

STEPS = ("encode", "decode")
# Round trips whose figures the report shows; round_trips.csv has all.
SHOWN_TRIPS = (1, 2, 3, 5, 10)
# Columns of the drift that are plotted, where the run has them.
DRIFT_PANELS = ("PSNR", "LPIPS-alex", "colour-de00", "chroma-dc")
STEP_PANELS = ("PSNR", "LPIPS-alex", "FD-effnet", "rFID")


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    head: list[str]
    lines: list[list[str]]


def costs_grid(run: RunRecord) -> Grid | None:
    """Tokens, bits and costs, a line a row that was measured; None where no costs were."""
    rows = [row for row in run.rows if row.status == "ok" and row.costs is not None]
    if not rows:
        return None
    head = [
        "tokenizer", "tokens", "bits/image", "parameters, M: all", "encode", "decode", "GFLOPs: encode", "decode",
        "NFE", "peak MiB: encode", "decode", "images/s: encode", "decode", "timed on",
    ]  # fmt: skip
    return Grid(head, [_costs_line(row) for row in rows])


def _costs_line(row: RowRecord) -> list[str]:
    assert row.costs is not None
    steps = [row.costs.steps.get(name) for name in STEPS]
    speeds = [row.speed.get(name) for name in STEPS]
    devices = dict.fromkeys(device for speed in speeds if speed for device in speed.devices)
    tokens = NOTHING if row.tokens_per_image is None else f"{row.tokens_per_image:,}"
    rates = [NOTHING if speed is None else _rate(speed.images_per_second) for speed in speeds]
    return [
        row.label,
        tokens,
        bits_text(row),
        NOTHING if row.costs.parameters is None else f"{row.costs.parameters / 1e6:,.2f}",
        *(_of(step, lambda s: f"{s.parameters / 1e6:,.2f}") for step in steps),
        *(_of(step, lambda s: f"{s.flops / 1e9:,.3g}") for step in steps),
        _of(steps[-1], lambda s: NOTHING if s.evaluations is None else str(s.evaluations)),
        *(_of(step, lambda s: NOTHING if s.peak_mib is None else f"{s.peak_mib:,.1f}") for step in steps),
        *rates,
        ", ".join(devices) or NOTHING,
    ]


def _rate(value: float) -> str:
    """Images a second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _of(step: CostsOfStep | None, text: Any) -> str:
    return NOTHING if step is None else text(step)


def costs_notes(run: RunRecord) -> list[str]:
    """Why rows have no costs, or not all: a line a reason."""
    found: dict[str, list[str]] = {}
    for row in run.rows:
        if row.costs is not None and row.costs.note:
            found.setdefault(row.costs.note, []).append(row.label)
    return [f"{reason}: {', '.join(labels)}" for reason, labels in found.items()]


def parts_grid(run: RunRecord) -> Grid | None:
    """Bytes an image of the rows that tell what they spend them on; None where none does."""
    rows = [row for row in run.rows if row.rate_parts]
    parts = list(dict.fromkeys(part for row in rows for part in row.rate_parts))
    if not rows:
        return None
    lines = []
    for row in rows:
        most, spent = row.max_bits_per_image, row.bits_per_image
        lines.append(
            [
                row.label,
                NOTHING if most is None else f"{most / 8:,.0f}",
                NOTHING if spent is None else f"{spent / 8:,.1f}",
                *(f"{row.rate_parts[part]:,.1f}" if part in row.rate_parts else NOTHING for part in parts),
            ]
        )
    return Grid(["tokenizer", "bytes: at most", "spent", *parts], lines)


def few_steps(run: RunRecord) -> dict[str, list[tuple[int, RowRecord]]]:
    """By name, the rows of tokenizers that were measured at several numbers of evaluations, by rising number."""
    found: dict[str, list[tuple[int, RowRecord]]] = {}
    for row in run.rows:
        decode = row.costs.steps.get("decode") if row.costs is not None and row.status == "ok" else None
        if decode is not None and decode.evaluations is not None and row.calibration is None:
            found.setdefault(row.name, []).append((decode.evaluations, row))
    several = {name: sorted(rows, key=lambda pair: pair[0]) for name, rows in found.items()}
    return {name: rows for name, rows in several.items() if len({count for count, _ in rows}) > 1}


def steps_grid(run: RunRecord) -> Grid | None:
    """A line a row of `few_steps`; None where there is none."""
    columns = _judged(run)
    lines = []
    for rows in few_steps(run).values():
        for count, row in rows:
            speed = row.speed.get("decode")
            rate = NOTHING if speed is None else _rate(speed.images_per_second)
            lines.append([row.label, str(count), *(_figure(row, column) for column in columns), rate])
    return Grid(["tokenizer", "NFE", *map(_header, columns), "decoded images/s"], lines) if lines else None


def _judged(run: RunRecord) -> list[ColumnRecord]:
    """The columns of the short table that have a direction and are of images."""
    return [c for c in run.columns if c.better and c.shown and c.kind != "token"]


def _header(column: ColumnRecord) -> str:
    unit = f" ({column.unit})" if column.unit else ""
    return f"{column.name} {ARROWS[column.better]}{unit}".strip()


def _figure(row: RowRecord, column: ColumnRecord) -> str:
    value = row.cells.get(column.name)
    if value is None or value.value is None or math.isnan(value.value):
        return NOTHING
    return f"{number_text(value.value, column)} {interval_text(value, column)}".strip()


def drift_grids(run: RunRecord) -> dict[str, Grid]:
    """By column, each row's figure after some numbers of round trips."""
    found = {}
    for column in run.columns:
        rows = [row for row in run.rows if any(v is not None for v in row.drift.get(column.name, []))]
        if not rows or column.name not in DRIFT_PANELS:
            continue
        trips = [n for n in SHOWN_TRIPS if n <= max(len(row.drift[column.name]) for row in rows)]
        lines = [[row.label, *(_after(row, column, n) for n in trips)] for row in rows]
        found[_header(column)] = Grid(["tokenizer", *(f"after {n}" for n in trips)], lines)
    return found


def _after(row: RowRecord, column: ColumnRecord, trips: int) -> str:
    values = row.drift[column.name]
    value = values[trips - 1] if trips <= len(values) else None
    return NOTHING if value is None else number_text(value, column)


def costs_frame(run: RunRecord) -> pd.DataFrame | None:
    """One line a row with costs, unrounded: parameters, FLOPs, evaluations and peak memory of each step, bytes of each
    part of its rate; None where no row has any."""
    rows = [row for row in run.rows if row.costs is not None]
    if not rows:
        return None
    lines = []
    for row in rows:
        assert row.costs is not None
        line: dict[str, Any] = {"tokenizer": row.label, "parameters": row.costs.parameters}
        for name in STEPS:
            step = row.costs.steps.get(name)
            for field in ("parameters", "flops", "evaluations", "peak_mib"):
                line[f"{name}_{field}"] = None if step is None else getattr(step, field)
        lines.append(line | {f"{part}_bytes": size for part, size in row.rate_parts.items()} | {"note": row.costs.note})
    return pd.DataFrame(lines)


def drift_frame(run: RunRecord) -> pd.DataFrame | None:
    """One line a row and number of round trips, a column a figure; None where no drift was measured."""
    lines = []
    for row in run.rows:
        for trips in range(max(map(len, row.drift.values()), default=0)):
            of = {name: values[trips] if trips < len(values) else None for name, values in row.drift.items()}
            lines.append({"tokenizer": row.label, "round_trips": trips + 1} | of)
    return pd.DataFrame(lines) if lines else None


# --- Plots -----------------------------------------------------------------------------------------------------------

Line = tuple[str, bool, list[tuple[float, float]]]  # label, whether it is a calibration row, points


def steps_plot(run: RunRecord) -> bytes | None:
    """PNG: figures by number of evaluations; None where no tokenizer has several."""
    panels = []
    for column in run.columns:
        lines: list[Line] = []
        for name, rows in few_steps(run).items():
            cells = [(count, row.cells.get(column.name)) for count, row in rows]
            points = [(float(n), cell.value) for n, cell in cells if cell and cell.value is not None]
            lines.append((name, False, points))
        if column.name in STEP_PANELS and any(points for _, _, points in lines):
            panels.append((column, lines))
    return _plot(run, panels, "evaluations of the decoder's network (NFE)")


def drift_plot(run: RunRecord) -> bytes | None:
    """PNG: figures by number of round trips; None where no drift was measured."""
    panels = []
    for column in run.columns:
        lines: list[Line] = [
            (row.label, row.calibration is not None, points)
            for row in run.rows
            if worth_plotting(row)
            and (points := [(n + 1.0, v) for n, v in enumerate(row.drift.get(column.name, [])) if v is not None])
        ]
        if column.name in DRIFT_PANELS and lines:
            panels.append((column, lines))
    return _plot(run, panels, "round trips")


def worth_plotting(row: RowRecord) -> bool:
    """Whether the drift's plot has the row: of reference rows those of the usual rate, and none without a loss."""
    return row.calibration is None or (row.calibration > 0 and "[" not in row.label)


def _plot(run: RunRecord, panels: Sequence[tuple[ColumnRecord, list[Line]]], across: str) -> bytes | None:
    if not panels:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = min(2, len(panels))
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(PANEL[0] * 1.4 * wide, PANEL[1] * 1.25 * high + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    names = dict.fromkeys(label for _, lines in panels for label, calibration, _ in lines if not calibration)
    greys = dict.fromkeys(label for _, lines in panels for label, calibration, _ in lines if calibration)
    styles = {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]) for i, name in enumerate(names)
    } | {name: (CALIBRATION, marker) for name, marker in zip(greys, cycle(MARKERS))}
    for place, (column, lines) in enumerate(panels, 1):
        axes = figure.add_subplot(high, wide, place)
        ends = []
        scale = 100 if column.unit == "%" else 1
        for label, calibration, points in lines:
            if points:
                x, y = zip(*[(n, v * scale) for n, v in points])
                colour, marker = styles[label]
                axes.plot(x, y, color=colour, marker=marker, markersize=4, linestyle=":" if calibration else "-")
                ends.append((x[-1], y[-1], label, colour))
        axes.set_xticks(sorted({n for _, _, points in lines for n, _ in points}))
        axes.set_xlabel(across)
        axes.set_ylabel(_header(column))
        dress(axes)
        label_ends(axes, ends, log=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
