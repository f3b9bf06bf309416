"""The paper's reconstruction tables (1, 2, 4, 5) put together from the newest runs that fit each other.

The layout (rows, columns, published figures) is that of evals/published. All figures of a table come from one protocol,
and all of a dataset from the same images; what was measured otherwise is left out and named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evals import record
from evals.published.tables import PublishedFigure, published
from evals.record import ColumnRecord, RowRecord, RunRecord
from evals.report.comparison import incomparable_row, incomparable_run, published_comparisons, row_key
from evals.report.table import devices_text, interval_text, number_text, one_line
from evals.suites.catalog import PAPER_TABLES, Suite

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Found:
    """A run's record and the folder that it was read from."""

    run: RunRecord
    folder: Path


@dataclass(frozen=True)
class PaperCell:
    """One figure as text. published: as the paper prints it, "" where it does not compare with the measured one;
    difference, verdict: of measured less published, "" where there is no such; notes: numbers of footnotes, from 1."""

    text: str
    interval: str = ""
    published: str = ""
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
    """A table ready to be written. columns: (dataset, metric) as the paper prints them; measured: how many cells have
    a figure.

    warnings: why figures are not the paper's; left_out: runs that do not fit the chosen ones; runs: those it is from.
    """

    name: str
    title: str
    protocol: str
    columns: list[tuple[str, str]]
    rows: list[PaperRow]
    footnotes: list[str]
    warnings: list[str]
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
    assert suite.table is not None
    figures = published(suite.table)
    rows = list(dict.fromkeys((f.row, f.tokenizer) for f in figures))
    columns = list(dict.fromkeys((f.dataset, f.metric) for f in figures))
    wanted = {key for _, key in rows}
    fitting = [
        f for f in runs if f.run.scale == "paper" and f.run.dataset in suite.datasets and _has_rows(f.run, wanted)
    ]
    chosen_hash = protocol or (fitting[0].run.protocol_hash if fitting else "")
    chosen, left_out = _chosen(fitting, chosen_hash)
    notes, warnings = _Notes(), dict[str, None]()
    by_key = {(f.tokenizer, f.dataset, f.metric): f for f in figures}
    lines = [_row(suite, label, key, columns, chosen, by_key, notes) for label, key in rows]
    for one in chosen:
        if reason := incomparable_run(one.run):
            warnings.setdefault(reason, None)
    return PaperTable(
        name=name,
        title=suite.title,
        protocol=f"{chosen[0].run.protocol['name']}, hash {chosen_hash}" if chosen else "nothing measured",
        columns=[(suite.datasets[dataset], metric) for dataset, metric in columns],
        rows=lines,
        footnotes=notes.texts,
        warnings=list(warnings),
        left_out=left_out,
        runs=[_source(f) for f in chosen],
        measured=sum(cell.text != NOT_MEASURED for row in lines for cell in row.cells),
    )


def _has_rows(run: RunRecord, wanted: set[str]) -> bool:
    return any(row_key(row) in wanted for row in run.rows)


def _chosen(runs: list[Found], protocol: str) -> tuple[list[Found], list[str]]:
    """The runs that fit each other, the newest first, and a line for each that does not."""
    taken: list[Found] = []
    left_out: list[str] = []
    best: dict[str, RunRecord] = {}
    for one in runs:
        run = one.run
        if run.protocol_hash == protocol and (run.dataset not in best or run.items > best[run.dataset].items):
            best[run.dataset] = run
    for one in runs:
        run = one.run
        if run.protocol_hash != protocol:
            left_out.append(f"{one.folder.name}: protocol {run.protocol['name']} ({run.protocol_hash})")
        elif run.dataset_fingerprint != best[run.dataset].dataset_fingerprint:
            left_out.append(f"{one.folder.name}: {run.items:,} other {run.unit} of {run.dataset}")
        else:
            taken.append(one)
    return taken, left_out


def _source(found: Found) -> str:
    run = found.run
    return f"{found.folder.name}: {run.items:,} {run.unit} of {run.dataset}, {run.started}, {devices_text(run)}"


def _row(
    suite: Suite,
    label: str,
    key: str,
    columns: list[tuple[str, str]],
    runs: list[Found],
    figures: Mapping[tuple[str, str, str], PublishedFigure],
    notes: _Notes,
) -> PaperRow:
    newest = {dataset: _newest(runs, key, dataset) for dataset in dict.fromkeys(d for d, _ in columns)}
    cells = []
    for dataset, metric in columns:
        figure = figures[key, dataset, metric]
        found = newest[dataset]
        if found is None or found[1].status != "ok" or _unknown(found[1], figure.column):
            cells.append(_missing_cell(suite.name, figure, found, notes))
        else:
            cells.append(_measured(*found, figure, notes))
    reasons = dict.fromkeys(incomparable_row(found[1]) for found in newest.values() if found)
    return PaperRow(label, key, cells, tuple(notes.number(f"{key}: {reason}") for reason in reasons if reason))


def _newest(runs: list[Found], key: str, dataset: str) -> tuple[RunRecord, RowRecord] | None:
    """The newest measured row of that name; where there is none, the newest that could not be measured."""
    found = [(f.run, row) for f in runs if f.run.dataset == dataset for row in f.run.rows if row_key(row) == key]
    return next((pair for pair in found if pair[1].status == "ok"), found[0] if found else None)


def _unknown(row: RowRecord, metric: str) -> bool:
    value = row.cells.get(metric)
    return value is None or value.value is None or math.isnan(value.value)


def _missing_cell(
    suite: str, figure: PublishedFigure, found: tuple[RunRecord, RowRecord] | None, notes: _Notes
) -> PaperCell:
    text = f"{NOT_MEASURED}: {command(suite, figure.tokenizer, figure.dataset)}"
    if found is not None:
        run, row = found
        if row.status != "ok":
            text += f" ({row.status}: {one_line(row.error)})"
        else:
            reasons = [line for line in run.missing_metrics if line.lower().startswith(figure.column.lower())]
            text += f" ({one_line(reasons[0]) if reasons else f'the run has no {figure.column}'})"
    number = notes.number(text)
    return PaperCell(NOT_MEASURED, published=figure.printed, notes=(number, *_of_figure(figure, notes)))


def _measured(run: RunRecord, row: RowRecord, figure: PublishedFigure, notes: _Notes) -> PaperCell:
    name = figure.column
    column = next((c for c in run.columns if c.name == name), ColumnRecord(name, None))
    value = row.cells[name]
    one = published_comparisons(run, row).get(name)
    assert value.value is not None
    numbers = [notes.number(value.note)] if value.note else []
    numbers += _of_figure(figure, notes) if one or figure.value is None else []
    return PaperCell(
        number_text(value.value, column),
        interval_text(value, column),
        one.figure.printed if one else "",
        f"{'+' if one.difference > 0 else ''}{number_text(one.difference, column)}" if one else "",
        one.verdict if one else "",
        tuple(numbers),
    )


def _of_figure(figure: PublishedFigure, notes: _Notes) -> list[int]:
    """The footnotes of a published figure: its own, and why it has no value."""
    texts = [figure.footnote] if figure.footnote else []
    if figure.missing:
        texts.append(f"published {figure.metric}: {figure.missing}")
    return [notes.number(text) for text in texts]


def command(name: str, key: str, dataset: str) -> str:
    """What measures a row of a table on a dataset."""
    return f"python -m evals.run suite={name} tokenizers={key.split('[')[0]} dataset={dataset} dataset.root=DIR"
