"""From a run's record to its table: once as raw numbers (`raw_frame`), once as text to be shown (`shown_table`)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from evals.record import ColumnRecord, Origin, RowRecord, RunRecord, Value
from evals.report.comparison import raw_columns
from evals.report.symbols import NOTHING, superscript

# An interval whose sides differ by less than this share of the wider one is shown as one ±.
NEARLY_EVEN = 0.25
LONGEST_NAME = 100  # characters of a traceback's file name


@dataclass(frozen=True)
class Cell:
    """One figure as text. interval: "±0.52", "+0.70/−0.40" or ""; marks: superscript numbers of footnotes."""

    text: str
    interval: str = ""
    best: bool = False
    marks: str = ""


@dataclass(frozen=True)
class Row:
    """One line. status: as in RowRecord; facts: bits of a tokenizer, settings of a generator; marks: of the footnote
    with the reason where the row is missing or failed."""

    label: str
    status: str
    facts: str
    training: str
    cells: list[Cell]
    marks: str = ""


@dataclass(frozen=True)
class ShownTable:
    """A table ready to be drawn. model: what a row is called; footnotes: in the order of their numbers, from 1."""

    model: str
    columns: list[ColumnRecord]
    rows: list[Row]
    footnotes: list[str]

    @property
    def facts(self) -> str:
        """What `Row.facts` holds."""
        return "bits" if self.model == "tokenizer" else "settings"


@dataclass
class _Footnotes:
    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The superscript number of a footnote; one text has one number."""
        if text not in self.texts:
            self.texts.append(text)
        return superscript(self.texts.index(text) + 1)


def shown_table(run: RunRecord) -> ShownTable:
    """The run's columns and rows in their order, formatted."""
    notes = _Footnotes()
    best = {column.name: _best(run, column) for column in run.columns}
    rows = []
    for row in run.rows:
        if row.status == "ok":
            cells, mark = [_cell(row, column, best[column.name], notes) for column in run.columns], ""
        else:
            cells = [Cell(NOTHING) for _ in run.columns]
            where = f" (traceback: {traceback_name(row)})" if row.trace else ""
            mark = notes.mark(f"{row.label}: {row.status}: {one_line(row.error)}{where}")
        facts = bits_text(row) if run.unit == "images" else settings_text(row)
        rows.append(Row(row.label, row.status, facts, row.training or NOTHING, cells, mark))
    return ShownTable(model_word(run), run.columns, rows, notes.texts)


def model_word(run: RunRecord) -> str:
    """What a row of the run is called."""
    return "tokenizer" if run.unit == "images" else "generator"


def _cell(row: RowRecord, column: ColumnRecord, best: str | None, notes: _Footnotes) -> Cell:
    value = row.cells.get(column.name)
    if value is None or value.value is None or math.isnan(value.value):
        return Cell(NOTHING, marks=notes.mark(value.note) if value and value.note else "")
    text = number_text(value.value, column)
    marks = [notes.mark(value.note)] if value.note else []
    if 0 < value.infinite < (value.count or 0):
        marks.append(notes.mark(f"{value.infinite} of {value.count} images are identical: infinite, not averaged"))
    judged = text.removeprefix("−") if column.better == "zero" else text
    is_best = judged == best and row.calibration is None
    return Cell(text, interval_text(value, column), is_best, " ".join(marks))


def _best(run: RunRecord, column: ColumnRecord) -> str | None:
    """The text of the best figure among the models under test, None where there is nothing to compare. By text, so
    that figures that look the same are marked the same; where 0 is best, without its sign."""
    figures = [
        cell.value
        for row in run.rows
        if row.status == "ok"
        and row.calibration is None
        and (cell := row.cells.get(column.name)) is not None
        and cell.value is not None
        and not math.isnan(cell.value)
    ]
    if column.better is None or len(figures) < 2:
        return None
    if column.better == "zero":
        return number_text(min(map(abs, figures)), column)
    return number_text(max(figures) if column.better == "higher" else min(figures), column)


def number_text(value: float, column: ColumnRecord) -> str:
    """A figure with the column's digits; a column in % holds fractions."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{_scaled(value, column):,.{column.digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def interval_text(value: Value, column: ColumnRecord) -> str:
    """The 95 % interval around a figure, to two significant digits: "±0.52" when both sides are nearly even,
    "+0.70/−0.40" when they are not, "[0.30, 0.90]" when the figure lies outside (a biased estimate), "" when there is
    none or it is narrower than the figure's last digit."""
    if value.value is None or value.low is None or value.high is None or not math.isfinite(value.value):
        return ""
    low, middle, high = (_scaled(v, column) for v in (value.low, value.value, value.high))
    if high - low < 10**-column.digits:
        return ""
    if not low <= middle <= high:
        return f"[{number_text(value.low, column)}, {number_text(value.high, column)}]"
    below, above = middle - low, high - middle
    digits = min(column.digits, max(0, 1 - math.floor(math.log10(max(below, above)))))
    if abs(above - below) <= NEARLY_EVEN * max(above, below):
        return f"±{(high - low) / 2:.{digits}f}"
    return f"+{above:.{digits}f}/−{below:.{digits}f}"


def _scaled(value: float, column: ColumnRecord) -> float:
    return value * 100 if column.unit == "%" else value


def bits_text(row: RowRecord) -> str:
    """Measured bits an image, with the maximum where they are less: "34,567 (≤ 160,000)"; "–" where they are undefined.

    Of a row that was not measured the maximum alone is known.
    """
    measured, most = row.bits_per_image, row.max_bits_per_image
    if measured is None:
        return NOTHING if most is None else f"≤ {most:,.0f}"
    return f"{measured:,.0f}" + ("" if most is None or most == measured else f" (≤ {most:,.0f})")


def settings_text(row: RowRecord) -> str:
    """What a generator samples with; "–" where it says nothing."""
    return ", ".join(f"{name}={value}" for name, value in row.settings.items()) or NOTHING


def traceback_name(row: RowRecord) -> str:
    """The file in the run's folder that holds a failed row's traceback."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", row.label)
    if len(name) > LONGEST_NAME:  # a label may hold the path of a checkpoint, a file's name has 255 bytes at most
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(row.label.encode()).hexdigest()[:8]}"
    return f"errors/{name}.txt"


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def items_text(run: RunRecord) -> str:
    """How many items of which dataset, from how many sources, and how many were left out."""
    sources = f" from {run.clusters:,} sources" if run.clusters < run.items else ""
    left_out = f" ({len(run.left_out):,} unreadable left out)" if run.left_out else ""
    return f"{run.items:,} {run.unit} of {run.dataset}{sources}{left_out}"


def distinct_origins(rows: Iterable[RowRecord]) -> list[Origin]:
    """The processes that made the rows' artifacts, each once."""
    found: list[Origin] = []
    for row in rows:
        found += [origin for origin in row.origins if origin not in found]
    return found


def devices_text(run: RunRecord) -> str:
    """The devices on which the run's artifacts were made; "–" where there are none."""
    return ", ".join(dict.fromkeys(origin.device for origin in distinct_origins(run.rows))) or NOTHING


def is_mini(run: RunRecord) -> bool:
    """Whether any part of the run is the miniature of what the papers measure."""
    return run.scale == "mini" or run.config.get("weights") == "mini"


def bits_per_pixel(row: RowRecord, run: RunRecord) -> float | None:
    """Measured bits a pixel of the evaluation image; None where bits are undefined."""
    return None if row.bits_per_image is None else row.bits_per_image / run.protocol["eval_size"] ** 2


def raw_frame(run: RunRecord) -> pd.DataFrame:
    """One line a row, unrounded. For a column X: X, X_low and X_high (95 % interval), X_seeds (standard deviation
    over seed indices) and, for means over images, X_infinite (images that were counted and not averaged); where the
    paper has a figure to compare with, X_published, X_difference and X_beyond (1: outside the interval).

    All cells of the record are here, those that the shown table leaves out too; a missing figure is empty.
    """
    per_image = {column.name: column.per_image for column in run.columns}
    names = dict.fromkeys([*per_image, *(name for row in run.rows for name in row.cells)])
    lines = []
    for row, published in zip(run.rows, raw_columns(run)):
        line = _facts(run, row)
        for name in names:
            cell = row.cells.get(name, Value(None))
            line |= {name: cell.value, f"{name}_low": cell.low, f"{name}_high": cell.high, f"{name}_seeds": cell.seeds}
            if per_image.get(name):
                line[f"{name}_infinite"] = cell.infinite
        lines.append(line | published)
    frame = pd.DataFrame(lines)
    # A column of nothing but None has no type of its own; a figure that no row has is still a figure.
    figures = [c for c in frame.columns if c not in _TEXTS]
    return frame.astype({c: "float64" for c in figures if frame[c].dtype == object} | {"tokens_per_image": "Int64"})


_TEXTS = (
    "tokenizer", "generator", "name", "family", "status", "settings", "training", "precision", "scale", "dataset",
    "protocol_hash",
)  # fmt: skip


def _facts(run: RunRecord, row: RowRecord) -> dict[str, object]:
    settings = {} if run.unit == "images" else {"settings": json.dumps(row.settings)}
    return {
        model_word(run): row.label,
        "name": row.name,
        "family": row.family,
        "status": row.status,
        "tokens_per_image": row.tokens_per_image,
        "bits_per_image": row.bits_per_image,
        "max_bits_per_image": row.max_bits_per_image,
        "bits_per_pixel": bits_per_pixel(row, run),
        **settings,
        "precision": row.precision,
        "training": row.training,
        "scale": run.scale,
        "dataset": run.dataset,
        run.unit: run.items,
        "refused": len(row.refused),
        "protocol_hash": run.protocol_hash,
    }


def speed_frame(run: RunRecord) -> pd.DataFrame:
    """What was timed, a line a row and step, with the machine on which it was: apart from the table, whose figures are
    the same in every run. batch, threads: all that occurred, separated by spaces."""
    columns = [model_word(run), "step", "device", "images_per_second", "batch", "threads", "peak_mib"]
    lines = [
        (row.label, step, "; ".join(s.devices), s.images_per_second, _spaced(s.batch), _spaced(s.threads), s.peak_mib)
        for row in run.rows
        for step, s in row.speed.items()
    ]
    return pd.DataFrame(lines, columns=columns)


def _spaced(values: Iterable[int]) -> str:
    return " ".join(map(str, values))
