"""A run's table on the terminal: as many columns as fit, the rest by name."""

from __future__ import annotations

from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from evals.record import ColumnRecord, RunRecord
from evals.report.table import ARROWS, NOTHING, Cell, Row, ShownTable, is_mini, pictures_text, shown_table
from evals.streams import spelled

# Columns of an output that is no terminal.
PLAIN_WIDTH = 120


def print_run(run: RunRecord, console: Console | None = None) -> None:
    """Print the table, its footnotes, and what a reader must know of the run, on stdout unless told otherwise."""
    console = console or _console()
    table = _spelled(shown_table(run), console.encoding)
    shown = fitting(table, console.width)
    console.print()
    console.print(Text(headline(run), style="bold"))
    console.print(_drawn(table, shown))
    for number, note in enumerate(table.footnotes, 1):
        console.print(f"[dim]{number} {escape(note)}[/dim]", highlight=False)
    left = [column.name for column in table.columns[shown:]]
    if left:
        console.print(f"Not shown here, in the report: {', '.join(map(escape, left))}", highlight=False)
    for line in run.missing_metrics:
        console.print(f"Metric not computed: {escape(line)}", highlight=False)
    for line in closing(run):
        console.print(Text(line, style="dim"))
    console.print()


def _spelled(table: ShownTable, encoding: str) -> ShownTable:
    """The table's texts as that console shows them, spelled before the columns are laid out."""

    def cell(cell: Cell) -> Cell:
        texts = {name: spelled(getattr(cell, name), encoding) for name in ("text", "interval", "marks")}
        return replace(cell, **texts)

    def row(row: Row) -> Row:
        texts = {name: spelled(getattr(row, name), encoding) for name in ("label", "bits", "marks")}
        training = NOTHING if row.training == NOTHING else spelled(row.training, encoding)
        return replace(row, cells=[cell(c) for c in row.cells], training=training, **texts)

    def column(column: ColumnRecord) -> ColumnRecord:
        name, _, second = spelled(_header(column), encoding).partition("\n")
        return replace(column, name=name, unit=second, better=None)  # the arrow stands in the unit

    return replace(table, columns=[column(c) for c in table.columns], rows=[row(r) for r in table.rows])


def headline(run: RunRecord) -> str:
    """One line: suite, scale, pictures, protocol."""
    protocol = f"protocol {run.protocol['name']} ({run.protocol_hash})"
    return f"{run.suite}, scale {run.scale}: {pictures_text(run)}, {protocol}"


def closing(run: RunRecord) -> list[str]:
    """The lines below the table."""
    lines = [
        "↑ higher is better, ↓ lower, →0 closer to 0; bold: the best tokenizer (calibration rows do not compete). "
        "Below a figure: its 95 % interval; below a name: its training compute."
    ]
    if is_mini(run):
        lines.append("Mini scale: these numbers never compare with the paper's or with any other published table.")
    if not run.complete:
        lines.append("The run is not complete; the same command goes on with it.")
    return lines


def fitting(table: ShownTable, width: int) -> int:
    """How many metric columns fit into `width` characters, at least one."""
    used = _width("tokenizer", *(_name(row).plain for row in table.rows))
    used += 2 + _width("bits", *(row.bits for row in table.rows))
    for index, column in enumerate(table.columns):
        used += 2 + _width(_header(column), *(_styled(row.cells[index]).plain for row in table.rows))
        if used > width and index:
            return index
    return len(table.columns)


def _width(*texts: str) -> int:
    return max(cell_len(line) for text in texts for line in text.split("\n"))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def _drawn(table: ShownTable, shown: int) -> Table:
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
    drawn.add_column("tokenizer", no_wrap=True)
    drawn.add_column("bits", justify="right", no_wrap=True)
    for column in table.columns[:shown]:
        drawn.add_column(escape(_header(column)), justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(_name(row), row.bits, *map(_styled, row.cells[:shown]), style="" if row.status == "ok" else "red")
    return drawn


def _name(row: Row) -> Text:
    text = Text(row.label if row.status == "ok" else f"{row.label} {row.status}{row.marks}")
    if row.training != NOTHING:
        text.append(f"\n{row.training}", style="dim")
    return text


def _header(column: ColumnRecord) -> str:
    second = " ".join(part for part in (column.unit, ARROWS[column.better]) if part)
    return f"{column.name}\n{second}"


def _styled(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    text.append(cell.marks, style="dim")
    if cell.interval:
        text.append(f"\n{cell.interval}", style="dim")
    return text
