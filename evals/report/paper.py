"""The paper's tables put together from the newest runs that fit each other.

The layout (rows, columns, published figures) is that of evals/report/layout.py. All figures of a table come from one
protocol, and all of a dataset from the same images, or as many images of the same prompts; what was measured otherwise
is left out and named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evals import record
from evals.published.tables import PublishedFigure
from evals.record import ColumnRecord, RowRecord, RunRecord
from evals.report.comparison import (
    images_a_prompt,
    images_text,
    incomparable_row,
    incomparable_run,
    published_comparisons,
    row_key,
)
from evals.report.layout import NOT_A_ROW, SECONDS, Layout, PaperColumn, layout
from evals.report.table import devices_text, interval_text, number_text, one_line
from evals.suites.catalog import PAPER_TABLES, Suite

NOT_MEASURED = "not measured"
ORIGINS_NOTE = (
    "a published figure was cited by the paper from elsewhere, measured by its authors, or it is unclear which of both"
)
_Pair = tuple[RunRecord, RowRecord]


@dataclass(frozen=True)
class Found:
    """A run's record and the folder that it was read from."""

    run: RunRecord
    folder: Path


@dataclass(frozen=True)
class PaperCell:
    """One figure as text. published: as the paper prints it, "" where it does not compare with the measured one;
    origin: of that, where the table's are marked; difference, verdict: of measured less published,
    "" where there is no such; notes: numbers of footnotes, from 1."""

    text: str
    interval: str = ""
    published: str = ""
    origin: str = ""
    difference: str = ""
    verdict: str = ""
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class PaperRow:
    """One line: the paper's label, our row's label, and a cell a column."""

    label: str
    tokenizer: str
    cells: list[PaperCell]
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """A table ready to be written. columns: (dataset, metric) as they are shown; measured: how many cells have a
    figure; model: what a row is called.

    warnings: why figures are not the paper's; remarks: what else a reader must know of all of them; left_out: runs that
    do not fit the chosen ones; runs: those it is from.
    """

    name: str
    title: str
    model: str
    protocol: str
    columns: list[tuple[str, str]]
    rows: list[PaperRow]
    footnotes: list[str]
    warnings: list[str]
    remarks: list[str]
    left_out: list[str]
    runs: list[str]
    measured: int

    @property
    def datasets(self) -> list[tuple[str, int]]:
        """Each dataset with its number of columns, in order."""
        counts: dict[str, int] = {}
        for dataset, _ in self.columns:
            counts[dataset] = counts.get(dataset, 0) + 1
        return list(counts.items())


@dataclass
class _Notes:
    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        """The footnote's number; one text has one."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def read_runs(out: Path) -> tuple[list[Found], list[str]]:
    """All runs below OUT/runs, the newest first, and a line for each record that can't be read."""
    found: list[Found] = []
    unreadable: list[str] = []
    for path in sorted(out.glob("runs/*/run.json")):
        try:
            found.append(Found(record.read(path), path.parent))
        except record.RecordError as error:  # names its file
            unreadable.append(str(error))
        except OSError as error:
            unreadable.append(f"{path} can't be read: {error}")
    return sorted(found, key=lambda f: f.run.started, reverse=True), unreadable


def assemble(name: str, runs: Sequence[Found], protocol: str | None = None) -> PaperTable:
    """The table `name` ("table1"...) from runs, the newest first.

    protocol: the hash to take; by default that of the newest run with a row of the table. Of each dataset the runs over
    the largest set of images are taken, the newest of these where several sets are equally large.
    """
    suite = PAPER_TABLES[name]
    shown = layout(suite)
    wanted = {key for _, key in shown.rows}
    of_suite = [f for f in runs if f.run.scale == "paper" and f.run.dataset in suite.datasets]
    fitting = [f for f in of_suite if _has_rows(suite, f.run, wanted)]
    chosen_hash = protocol or (fitting[0].run.protocol_hash if fitting else "")
    chosen, left_out = _chosen(fitting, chosen_hash)
    notes, warnings = _Notes(), dict[str, None]()
    table = _Table(suite, shown, chosen, notes)
    lines = [table.row(label, key) for label, key in shown.rows]
    for one in chosen:
        if reason := incomparable_run(one.run):
            warnings.setdefault(reason, None)
    return PaperTable(
        name=name,
        title=suite.title,
        model="generator" if suite.task == "generation" else "tokenizer",
        protocol=f"{chosen[0].run.protocol['name']}, hash {chosen_hash}" if chosen else "nothing measured",
        columns=[(suite.datasets.get(c.dataset, "seconds"), c.shown) for c in shown.columns],
        rows=lines,
        footnotes=notes.texts,
        warnings=list(warnings),
        remarks=[*([ORIGINS_NOTE] if shown.marked else []), *shown.remarks],
        left_out=left_out,
        runs=[_source(f) for f in chosen],
        measured=sum(cell.text != NOT_MEASURED for row in lines for cell in row.cells),
    )


def _has_rows(suite: Suite, run: RunRecord, wanted: set[str]) -> bool:
    return any(row_key(row, suite, run.dataset) in wanted for row in run.rows)


def _chosen(runs: list[Found], protocol: str) -> tuple[list[Found], list[str]]:
    """The runs that fit each other, the newest first, and a line for each that does not."""
    taken: list[Found] = []
    left_out: list[str] = []
    best: dict[str, RunRecord] = {}
    for one in runs:
        run = one.run
        if run.protocol_hash == protocol and (run.dataset not in best or _size(run) > _size(best[run.dataset])):
            best[run.dataset] = run
    for one in runs:
        run = one.run
        if run.protocol_hash != protocol:
            left_out.append(f"{one.folder.name}: protocol {run.protocol['name']} ({run.protocol_hash})")
        elif run.dataset_fingerprint != best[run.dataset].dataset_fingerprint:
            left_out.append(f"{one.folder.name}: {run.items:,} other {run.unit} of {run.dataset}")
        elif (made := images_a_prompt(run)) != (others := images_a_prompt(best[run.dataset])):
            left_out.append(f"{one.folder.name}: {images_text(made)} of each prompt of {run.dataset}, not {others}")
        else:
            taken.append(one)
    return taken, left_out


def _size(run: RunRecord) -> tuple[int, int]:
    return run.items, images_a_prompt(run)


def _source(found: Found) -> str:
    run = found.run
    return f"{found.folder.name}: {run.items:,} {run.unit} of {run.dataset}, {run.started}, {devices_text(run)}"


@dataclass
class _Table:
    """Cells of a table, whose footnotes go to `notes`. runs: those that fit each other, the newest first."""

    suite: Suite
    layout: Layout
    runs: list[Found]
    notes: _Notes

    def row(self, label: str, key: str) -> PaperRow:
        """The line of a row. label: the paper's; key: ours."""
        newest = {dataset: self._newest(key, dataset) for dataset in self.suite.datasets}
        cells = [self._cell(key, column, newest) for column in self.layout.columns]
        reasons = dict.fromkeys(incomparable_row(found[1]) for found in newest.values() if found)
        numbers = [self.notes.number(f"{key}: {reason}") for reason in reasons if reason]
        if not any(figure_key[0] == key for figure_key in self.layout.figures):
            numbers.insert(0, self.notes.number(NOT_A_ROW))
        return PaperRow(label, key, cells, tuple(numbers))

    def _newest(self, key: str, dataset: str) -> _Pair | None:
        """The newest measured row of that name; where there is none, the newest that could not be measured."""
        found = [
            (one.run, row)
            for one in self.runs
            if one.run.dataset == dataset
            for row in one.run.rows
            if row_key(row, self.suite, dataset) == key
        ]
        return next((pair for pair in found if pair[1].status == "ok"), found[0] if found else None)

    def _cell(self, key: str, column: PaperColumn, newest: dict[str, _Pair | None]) -> PaperCell:
        if not column.dataset:
            return self._seconds(key, newest)
        figure = self.layout.figures.get((key, column.dataset, column.metric))
        found = newest[column.dataset]
        if found is None or found[1].status != "ok" or _unknown(found[1], column.column):
            return self._missing(key, column, figure, found)
        return self._measured(*found, column, figure)

    def _missing(self, key: str, column: PaperColumn, figure: PublishedFigure | None, found: _Pair | None) -> PaperCell:
        dataset = column.dataset or next(iter(self.suite.datasets))
        text = f"{NOT_MEASURED}: {command(self.suite, key, dataset)}"
        if found is not None:
            run, row = found
            if row.status != "ok":
                text += f" ({row.status}: {one_line(row.error)})"
            else:
                reasons = [line for line in run.missing_metrics if line.lower().startswith(column.column.lower())]
                text += f" ({one_line(reasons[0]) if reasons else f'the run has no {column.column}'})"
        number = self.notes.number(text)
        if figure is None:
            return PaperCell(NOT_MEASURED, notes=(number,))
        numbers = (number, *self._of_figure(figure))
        return PaperCell(NOT_MEASURED, published=figure.printed, origin=self._origin(figure), notes=numbers)

    def _measured(
        self, run: RunRecord, row: RowRecord, column: PaperColumn, figure: PublishedFigure | None
    ) -> PaperCell:
        name = column.column
        record_of = next((c for c in run.columns if c.name == name), ColumnRecord(name, None))
        value = row.cells[name]
        one = published_comparisons(run, row, self.suite).get(name) if figure else None
        assert value.value is not None
        numbers = [self.notes.number(value.note)] if value.note else []
        # What is said of a cited figure is of that figure alone; of the paper's own ones, of their rows and metrics.
        if figure and (one or figure.value is None or figure.origin == "measured"):
            numbers += self._of_figure(figure)
        return PaperCell(
            number_text(value.value, record_of),
            interval_text(value, record_of),
            one.figure.printed if one else "",
            self._origin(one.figure) if one else "",
            f"{'+' if one.difference > 0 else ''}{number_text(one.difference, record_of)}" if one else "",
            one.verdict if one else "",
            tuple(numbers),
        )

    def _seconds(self, key: str, newest: dict[str, _Pair | None]) -> PaperCell:
        """How long an image took, on the last of the table's datasets that was timed."""
        for dataset, found in reversed(newest.items()):
            if found and found[1].status == "ok" and (speed := found[1].speed.get("generate")):
                how = [*speed.devices, f"batch {' or '.join(map(str, speed.batch))}", found[1].precision]
                note = f"{SECONDS} of {dataset}, timed on {', '.join(filter(None, how))}"
                return PaperCell(f"{1 / speed.images_per_second:.3g}", notes=(self.notes.number(note),))
        found = next((pair for pair in reversed(newest.values()) if pair), None)
        return self._missing(key, PaperColumn("", "timing", "", ""), None, found)

    def _origin(self, figure: PublishedFigure) -> str:
        return figure.origin if self.layout.marked else ""

    def _of_figure(self, figure: PublishedFigure) -> list[int]:
        """The footnotes of a published figure: where it is quoted from, its own, and why it has no value."""
        texts = [figure.footnote] if figure.footnote else []
        if "; quoted from " in figure.source:
            texts.insert(0, figure.source.split("; ", 1)[1])
        if figure.missing:
            texts.append(f"published {figure.metric}: {figure.missing}")
        return [self.notes.number(text) for text in texts]


def _unknown(row: RowRecord, metric: str) -> bool:
    value = row.cells.get(metric)
    return value is None or value.value is None or math.isnan(value.value)


def command(suite: Suite, key: str, dataset: str) -> str:
    """What measures a row of a table on a dataset. Published prompts lie in data/NAME unless a root is given."""
    name = key.split("[")[0]
    if suite.task == "generation":
        return f"python -m evals.run suite={suite.name} generators={name} dataset={dataset}"
    return f"python -m evals.run suite={suite.name} tokenizers={name} dataset={dataset} dataset.root=DIR"
