"""What the LacTok paper (arXiv 2503.08377) printed: the 226 cells of its Tables 1 to 6, a CSV file a table.

Lines stand in the paper's order: rows from top to bottom, in each its cells from left to right. A cell that holds no
number ("nan", "-") is a line without a value and with the reason. A figure that stands in none of the paper's tables is
a line without printed text, and its origin is "second hand".
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

TABLES = (1, 2, 3, 4, 5, 6)
SECOND_HAND = "second hand"
ORIGINS = ("cited", "measured", "unclear", SECOND_HAND)
COLUMNS = (
    "table", "row", "tokenizer", "dataset", "metric", "printed", "value", "origin", "footnote", "source", "missing"
)  # fmt: skip
OURS = {
    "LPIPS": "LPIPS-alex",
    "HPSv2": "HPSv2-2.1",
    "GenEval two objects": "GenEval-two_object",
    "GenEval position": "GenEval-position",
    "GenEval colour attribution": "GenEval-color_attr",
    "GenEval overall": "GenEval",
}
"""Our columns by the paper's metrics, where names differ. The paper names neither LPIPS's network (AlexNet is the
default of the `lpips` package) nor HPSv2's version (2.1 is the newer one)."""


class PublishedError(ValueError):
    """A file of published figures is malformed; the message names file, line and what was expected."""


@dataclass(frozen=True)
class PublishedFigure:
    """One figure of the paper.

    row: the paper's label; tokenizer: our row's label ("lactok-h[input_size=224]"), "" where it is none of ours;
    printed: the cell's text, "" for a figure of no table; value: None where `missing` says why.
    origin: "measured" by the paper's authors, "cited" by them from elsewhere, "unclear" which of both, or
    "second hand": not of the paper's tables, known from others.
    footnote: what a reader must know of the figure; source: where it stands.
    """

    table: int
    row: str
    tokenizer: str
    dataset: str
    metric: str
    printed: str
    value: float | None
    origin: Literal["cited", "measured", "unclear", "second hand"]
    footnote: str
    source: str
    missing: str

    @property
    def number(self) -> float:
        """The value. Raises PublishedError where the figure has none."""
        if self.value is None:
            raise PublishedError(f"table {self.table}, {self.row}, {self.metric}: no number ({self.missing})")
        return self.value

    @property
    def column(self) -> str:
        """The column of ours that it is set beside."""
        return OURS.get(self.metric, self.metric)


@cache
def published(table: int) -> tuple[PublishedFigure, ...]:
    """The figures of the paper's table 1 to 6, in file order. Raises PublishedError."""
    if table not in TABLES:
        raise PublishedError(f"table {table}: expected one of {', '.join(map(str, TABLES))}")
    name = f"table{table}.csv"
    return parse((files("evals.published") / name).read_text(encoding="utf-8"), table, name)


def parse(text: str, table: int, name: str) -> tuple[PublishedFigure, ...]:
    """The figures of a file's text. Raises PublishedError naming the line (1 is the header) that is wrong."""
    reader = csv.DictReader(io.StringIO(text), strict=True)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise PublishedError(f"{name}: columns {reader.fieldnames}: expected {list(COLUMNS)}")
    found: dict[tuple[str, str, str], PublishedFigure] = {}
    for line in reader:
        place = f"{name}, line {reader.line_num}"
        figure = _figure(line, place)
        if figure.table != table:
            raise PublishedError(f"{place}: table {figure.table}: expected {table}")
        key = (figure.row, figure.dataset, figure.metric)
        if key in found:
            raise PublishedError(f"{place}: a second figure of {', '.join(key)}")
        found[key] = figure
    return tuple(found.values())


def _figure(line: Mapping[str, str], place: str) -> PublishedFigure:
    if None in line or None in line.values():
        raise PublishedError(f"{place}: expected {len(COLUMNS)} fields")
    for name in ("row", "dataset", "metric", "source"):
        if not line[name]:
            raise PublishedError(f"{place}: no {name}")
    if line["origin"] not in ORIGINS:
        raise PublishedError(f"{place}: origin {line['origin']!r}: expected one of {', '.join(ORIGINS)}")
    if bool(line["value"]) == bool(line["missing"]):
        raise PublishedError(
            f"{place}: value {line['value']!r} and missing {line['missing']!r}: expected exactly one of them"
        )
    if bool(line["printed"]) == (line["origin"] == SECOND_HAND):
        raise PublishedError(
            f"{place}: printed {line['printed']!r} and origin {line['origin']}: expected printed text, or none and "
            f"{SECOND_HAND!r}"
        )
    try:
        table, value = int(line["table"]), float(line["value"]) if line["value"] else None
    except ValueError as error:
        raise PublishedError(f"{place}: {error}: expected a number") from error
    if value is not None and not math.isfinite(value):
        raise PublishedError(f"{place}: value {line['value']}: expected a finite number, or none and the reason")
    if value is not None and line["printed"] and float(line["printed"]) != value:
        raise PublishedError(f"{place}: value {line['value']}: expected the printed {line['printed']}")
    fields: dict[str, Any] = {**line, "table": table, "value": value}
    return PublishedFigure(**fields)
