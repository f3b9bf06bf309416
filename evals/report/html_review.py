"""What the page of a run shows a reviewer: costs, few-step curves, colour by hue, round trips. Tables and plot data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evals.record import ColumnRecord, RowRecord, RunRecord
from evals.report.review import (
    DRIFT_PANELS,
    STEP_PANELS,
    STEPS,
    Grid,
    costs_grid,
    costs_notes,
    drift_grids,
    few_steps,
    parts_grid,
    steps_grid,
    worth_plotting,
)
from evals.report.symbols import ARROWS, NOTHING

# Columns by hue begin so: drift-red, ..., drift-grey (evals/metrics/image/hue.py).
HUE = "drift-"


@dataclass(frozen=True)
class Review:
    """The tables; None where the run has no such figures. timed_on: the device of all costs, "" where there are several
    and a column says which; drift: by column; hues: whether colour by hue was measured; references: calibration rows.
    """

    costs: Grid | None
    timed_on: str
    costs_notes: list[str]
    parts: Grid | None
    steps: Grid | None
    drift: dict[str, Grid]
    hues: bool
    references: set[str]

    @property
    def any(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.costs or self.parts or self.steps or self.drift or self.hues)


def review_of(run: RunRecord) -> Review:
    """What stands in the tables of the page."""
    costs, timed_on = costs_grid(run), ""
    if costs is not None:
        devices = {line[-1] for line in costs.lines} - {NOTHING}
        if len(devices) == 1:
            timed_on, costs = devices.pop(), Grid(costs.head[:-1], [line[:-1] for line in costs.lines])
        costs = Grid(_whole_heads(costs.head), costs.lines)
    references = {row.label for row in run.rows if row.calibration is not None}
    grids = parts_grid(run), steps_grid(run), drift_grids(run)
    return Review(costs, timed_on, costs_notes(run), *grids, bool(_hues(run)), references)


def _whole_heads(head: list[str]) -> list[str]:
    """ "GFLOPs: encode", "decode" as "GFLOPs: encode", "GFLOPs: decode"."""
    whole, group = [], ""
    for name in head:
        group = name.partition(":")[0] if ":" in name else group if name in STEPS else ""
        whole.append(f"{group}: {name}" if group and ":" not in name else name)
    return whole


def review_json(run: RunRecord) -> dict[str, Any]:
    """What the plots read. Rows are their places in the run.

    costs: by row, GFLOPs of decoding an image; steps: by row, its evaluations where its name has several; drift: by
    column and row, figures after 1, 2, ... round trips; hues: columns by hue, and the rows that have them.
    """
    places = {row.label: number for number, row in enumerate(run.rows)}
    costs = {
        str(number): decode.flops / 1e9
        for number, row in enumerate(run.rows)
        if row.costs is not None and (decode := row.costs.steps.get("decode")) is not None and decode.flops
    }
    steps = {str(places[row.label]): count for rows in few_steps(run).values() for count, row in rows}
    drifted = [column for column in run.columns if column.name in DRIFT_PANELS and _drifts(run, column)]
    hues = _hues(run)
    return {
        "costs": costs,
        "steps": steps,
        "stepColumns": [_column(c) for c in run.columns if c.name in STEP_PANELS and _has(run, c, steps)],
        "drift": [
            {
                **_column(column),
                "rows": {str(places[row.label]): row.drift[column.name] for row in _drifts(run, column)},
            }
            for column in drifted
        ],
        "hues": [{"hue": column.name.removeprefix(HUE), "name": column.name} for column in hues],
        "hueRows": [number for number, row in enumerate(run.rows) if worth_plotting(row)],
    }


def _column(column: ColumnRecord) -> dict[str, Any]:
    return {"name": column.name, "better": column.better, "unit": column.unit, "arrow": ARROWS[column.better]}


def _has(run: RunRecord, column: ColumnRecord, steps: dict[str, int]) -> bool:
    cells = [run.rows[int(number)].cells.get(column.name) for number in steps]
    return any(cell is not None and cell.value is not None for cell in cells)


def _drifts(run: RunRecord, column: ColumnRecord) -> list[RowRecord]:
    """The rows whose drift in a column is plotted."""
    return [
        row for row in run.rows if worth_plotting(row) and any(v is not None for v in row.drift.get(column.name, []))
    ]


def _hues(run: RunRecord) -> list[ColumnRecord]:
    columns = [column for column in run.columns if column.name.startswith(HUE)]
    return [c for c in columns if any((cell := row.cells.get(c.name)) and cell.value is not None for row in run.rows)]
