"""What the page of a run knows: its table, its per-image figures and its plots, as HTML text and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evals.record import RowRecord, RunRecord
from evals.report.comparison import published_comparisons
from evals.report.html_review import review_json
from evals.report.rate import rate_columns
from evals.report.symbols import ARROWS, NOTHING, short_labels
from evals.report.table import Cell, number_text, shown_table

# Digits that a per-image figure keeps on the page; per_image.parquet has them all.
DIGITS = 5
# Columns that the plots prefer, in this order.
PLOTTED = ("PSNR", "LPIPS-alex")
MOST_PLOTTED = 2


@dataclass(frozen=True)
class ShownItem:
    """An item on the page. index: in the dataset's order; prompt: "" for an image."""

    index: int
    id: str
    cluster: str
    prompt: str = ""


@dataclass(frozen=True)
class TableCell:
    """A figure in the table of the page. order: what a click on the column sorts by, "" without a figure (last);
    hover: the interval in full; published: what the paper has of it, "" without one."""

    shown: Cell
    order: str
    hover: str
    published: str = ""


@dataclass(frozen=True)
class TableRow:
    """A row in the table of the page. lines: its label, shortened, in lines; label: the whole; number: its place."""

    number: int
    label: str
    lines: Sequence[str]
    status: str
    marks: str
    facts: str
    facts_order: str
    training: str
    calibration: bool
    cells: Sequence[TableCell]


@dataclass(frozen=True)
class PageData:
    """All that the page shows apart from images.

    values: row label to metric name to float64 (S, N), as in `Finished.per_image`; reasons: row label to
    "INDEX/SEED" (of an item and an output) to why a judge holds the image to be wrong.
    """

    run: RunRecord
    items: Sequence[ShownItem]
    values: Mapping[str, Mapping[str, np.ndarray]]
    reasons: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """Outputs of an item, of the row that has most."""
        counts = [len(array) for metrics in self.values.values() for array in metrics.values()]
        return max(counts, default=1)


def readable(text: str) -> str:
    """The text with what is no Unicode (half of a surrogate pair, as file names may have) spelled out, so that it can
    be written as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def table_rows(run: RunRecord) -> list[TableRow]:
    """The lines of the table, in the run's order."""
    table, names = shown_table(run), short_labels([row.label for row in run.rows])
    rows = []
    for number, (row, shown, lines) in enumerate(zip(run.rows, table.rows, names, strict=True)):
        published = published_comparisons(run, row) if row.status == "ok" else {}
        cells = []
        for column, cell in zip(run.columns, shown.cells, strict=True):
            value, text = row.cells.get(column.name), ""
            if (one := published.get(column.name)) is not None:
                sign = "+" if one.difference > 0 else ""
                text = f"paper {one.figure.value:g} ({sign}{number_text(one.difference, column)}; {one.verdict})"
            figure = value.value if value is not None else None
            hover = column.name
            if value is not None and value.low is not None and value.high is not None:
                hover += f": 95 % interval {number_text(value.low, column)} to {number_text(value.high, column)}"
            if value is not None and value.count is not None:
                hover += f", {value.count:,} {run.unit}"
            order = (
                "" if figure is None or math.isnan(figure) else str(abs(figure) if column.better == "zero" else figure)
            )
            cells.append(TableCell(cell, order, hover, text))
        facts_order = "" if row.bits_per_image is None else str(row.bits_per_image)
        rows.append(
            TableRow(
                number,
                row.label,
                lines,
                row.status,
                shown.marks,
                shown.facts,
                facts_order,
                row.training or NOTHING,
                row.calibration is not None,
                cells,
            )
        )
    return rows


def headers(run: RunRecord) -> list[tuple[str, str, str, str, bool]]:
    """(name, arrow and unit, what it is, better, whether the shown table has it) of each column."""
    return [
        (
            column.name,
            f"{ARROWS[column.better]}{f' ({column.unit})' if column.unit else ''}".strip(),
            column.note,
            column.better or "",
            column.shown,
        )
        for column in run.columns
    ]


def page_json(page: PageData, images: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's scripts read, as plain JSON. images: where they lie (`html_images`)."""
    run = page.run
    names = short_labels([row.label for row in run.rows])
    columns = {column.name: column for column in run.columns}
    found = dict.fromkeys(name for metrics in page.values.values() for name in metrics)
    metrics = [*(name for name in columns if name in found), *(name for name in found if name not in columns)]
    return {
        "unit": run.unit,
        "seeds": page.seeds,
        "model": "tokenizer" if run.unit == "images" else "generator",
        "metrics": [
            {
                "name": name,
                "better": columns[name].better if name in columns else None,
                "digits": columns[name].digits if name in columns else 4,
                "unit": columns[name].unit if name in columns else "",
                "note": columns[name].note if name in columns else "",
            }
            for name in metrics
        ],
        "rows": [_row(row, lines) for row, lines in zip(run.rows, names, strict=True)],
        "items": [[readable(item.id), readable(item.cluster), readable(item.prompt)] for item in page.items],
        "values": [
            {name: [_compact(seed) for seed in array] for name, array in page.values.get(row.label, {}).items()}
            for row in run.rows
        ],
        "plots": _plotted(run),
        "review": review_json(run),
        "reasons": [
            {key: [readable(reason) for reason in reasons] for key, reasons in page.reasons.get(row.label, {}).items()}
            for row in run.rows
        ],
        "images": dict(images),
    }


def _row(row: RowRecord, lines: Sequence[str]) -> dict[str, Any]:
    speed = list(row.speed.items())
    return {
        "label": readable(row.label),
        "lines": [readable(line) for line in lines],
        "name": readable(row.name),
        "status": row.status,
        "calibration": row.calibration is not None,
        "bits": row.bits_per_image,
        "most": row.max_bits_per_image,
        "speed": {"step": speed[-1][0], "rate": speed[-1][1].images_per_second} if speed else None,
        "cells": {
            name: [_finite(value.value), _finite(value.low), _finite(value.high)] for name, value in row.cells.items()
        },
    }


def _plotted(run: RunRecord) -> dict[str, list[dict[str, Any]]]:
    """The columns of the two plots: the preferred ones where they are there, else the first with a direction."""

    def chosen(columns: Sequence[Any]) -> list[dict[str, Any]]:
        liked = sorted(columns, key=lambda c: PLOTTED.index(c.name) if c.name in PLOTTED else len(PLOTTED))
        return [
            {"name": c.name, "better": c.better, "unit": c.unit, "arrow": ARROWS[c.better]}
            for c in liked[:MOST_PLOTTED]
        ]

    judged = [c for c in run.columns if c.better and c.kind != "token" and c.shown]
    return {"rate": chosen(rate_columns(run)), "speed": chosen(judged)}


def _compact(values: np.ndarray) -> list[float | str | None]:
    """Figures to DIGITS digits; null where there is none, and "inf" or "-inf"."""
    return [
        None if math.isnan(v) else float(f"{v:.{DIGITS}g}") if math.isfinite(v) else str(v) for v in values.tolist()
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def script_json(data: Any) -> str:
    """Strict JSON in ASCII that is safe inside a <script> element: no character that HTML knows is left in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
