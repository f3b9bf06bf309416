"""A run's table on the terminal: as many columns as fit, the rest by name."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from evals.record import ColumnRecord, RunRecord
from evals.report.symbols import ARROWS, NOTHING
from evals.report.table import Cell, Row, ShownTable, is_mini, items_text, shown_table
from evals.streams import spelled

# Columns of an output that is no terminal.
PLAIN_WIDTH = 120


def print_run(run: RunRecord, console: Console | None = None) -> None:
    """Print the table, its footnotes, and what a reader must know of the run, on stdout unless told otherwise.

    Where the console's encoding has not all symbols of a table, ASCII stands for them.
    """
    console = console or _console()
    table = _short(shown_table(run), console.encoding)
    shown = fitting(table, console.width, console.encoding)

    def tell(line: str, style: str = "") -> None:
        console.print(Text(spelled(line, console.encoding), style=style))

    console.print()
    tell(headline(run), "bold")
    console.print(_drawn(table, shown, console.encoding))
    for number, note in enumerate(table.footnotes, 1):
        tell(f"{number} {note}", "dim")
    on_the_table = [column.name for column in table.columns[:shown]]
    left = [column.name for column in run.columns if column.name not in on_the_table]
    if left:
        tell(f"Not shown here, in the report: {', '.join(left)}")
    for line in run.missing_metrics:
        tell(f"Metric not computed: {line}")
    for row in run.rows:
        if row.refused:
            tell(f"{row.label}: {len(row.refused):,} of {run.items:,} items refused; the report has the reasons")
    for line in run.notes:
        tell(f"Note: {line}")
    for line in closing(run, table.model):
        tell(line, "dim")
    console.print()


def headline(run: RunRecord) -> str:
    """One line: suite, scale, items, protocol."""
    protocol = f"protocol {run.protocol['name']} ({run.protocol_hash})"
    parameters = "".join(f", {name}={value}" for name, value in run.parameters.items())
    return f"{run.suite}, scale {run.scale}: {items_text(run)}, {protocol}{parameters}"


def closing(run: RunRecord, model: str) -> list[str]:
    """The lines below the table. model: what a row is called."""
    below = "training compute" if run.unit == "images" else "settings and training compute"
    lines = [
        f"↑ higher is better, ↓ lower, →0 closer to 0; bold: the best {model} (calibration rows do not compete). "
        f"Below a figure: its 95 % interval; below a name: its {below}."
    ]
    if is_mini(run):
        lines.append("Mini scale: these numbers never compare with the paper's or with any other published table.")
    if not run.complete:
        lines.append("The run is not complete; the same command resumes it.")
    return lines


def _short(table: ShownTable, encoding: str) -> ShownTable:
    """The columns that the record shows here, spelled as the console shows them before they are laid out."""

    def cell(cell: Cell) -> Cell:
        text, interval, marks = (spelled(text, encoding) for text in (cell.text, cell.interval, cell.marks))
        return Cell(text, interval, cell.best, marks)

    def row(row: Row) -> Row:
        label, marks = spelled(row.label, encoding), spelled(row.marks, encoding)
        facts, training = (NOTHING if t == NOTHING else spelled(t, encoding) for t in (row.facts, row.training))
        if table.facts == "bits":
            facts = spelled(facts, encoding)
        return Row(label, row.status, facts, training, [cell(row.cells[place]) for place in kept], marks)

    kept = [place for place, column in enumerate(table.columns) if column.shown]
    return ShownTable(
        table.model, [table.columns[place] for place in kept], [row(r) for r in table.rows], table.footnotes
    )


def fitting(table: ShownTable, width: int, encoding: str = "utf-8") -> int:
    """How many metric columns fit into `width` characters, at least one."""
    used = _width(table.model, *(_name(row, table).plain for row in table.rows))
    if table.facts == "bits":
        used += 2 + _width("bits", *(row.facts for row in table.rows))
    for index, column in enumerate(table.columns):
        used += 2 + _width(_header(column, encoding), *(_styled(row.cells[index]).plain for row in table.rows))
        if used > width and index:
            return index
    return len(table.columns)


def _width(*texts: str) -> int:
    return max(cell_len(line) for text in texts for line in text.split("\n"))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def _drawn(table: ShownTable, shown: int, encoding: str) -> Table:
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
    drawn.add_column(table.model, no_wrap=True)
    has_bits = table.facts == "bits"
    if has_bits:
        drawn.add_column("bits", justify="right", no_wrap=True)
    for column in table.columns[:shown]:
        drawn.add_column(escape(_header(column, encoding)), justify="right", no_wrap=True)
    for row in table.rows:
        facts = [row.facts] if has_bits else []
        style = "" if row.status == "ok" else "red"
        drawn.add_row(_name(row, table), *facts, *map(_styled, row.cells[:shown]), style=style)
    return drawn


def _name(row: Row, table: ShownTable) -> Text:
    text = Text(row.label if row.status == "ok" else f"{row.label} {row.status}{row.marks}")
    below = [row.training] if table.facts == "bits" else [*row.facts.split(", "), row.training]
    for line in below:
        if line != NOTHING:
            text.append(f"\n{line}", style="dim")
    return text


def _header(column: ColumnRecord, encoding: str) -> str:
    second = " ".join(part for part in (column.unit, ARROWS[column.better]) if part)
    return spelled(f"{column.name}\n{second}", encoding)


def _styled(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    text.append(cell.marks, style="dim")
    if cell.interval:
        text.append(f"\n{cell.interval}", style="dim")
    return text
