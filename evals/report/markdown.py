"""What a run leaves to read: report.md, table.csv and table.parquet."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from evals.engine.store import write_atomically
from evals.record import ColumnRecord, RowRecord, RunRecord
from evals.report.beside import beside, incomparable_row, incomparable_run
from evals.report.rate import rate_picture
from evals.report.table import (
    ARROWS,
    NOTHING,
    Cell,
    ShownTable,
    bits_per_pixel,
    bits_text,
    interval_text,
    is_mini,
    number_text,
    pictures_text,
    raw_frame,
    shown_table,
    speed_frame,
    timed_on,
)

# Unreadable pictures that the report names; run.json has them all.
MOST_LEFT_OUT = 50
TITLES = {"recon": "Reconstruction"}


def write_report(run: RunRecord, folder: Path) -> list[Path]:
    """Write report.md, table.csv, table.parquet, speed.csv, and rate.png where rows have rates; returns their paths.

    The report shows contact.png where the folder has one. Raises StoreError when the folder can't be written.
    """
    frame = raw_frame(run)
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    contact = "contact.png" if (folder / "contact.png").is_file() else None
    picture = rate_picture(run)
    files = {
        folder / "report.md": render(run, contact, "rate.png" if picture else None).encode(),
        folder / "table.csv": frame.to_csv(index=False, lineterminator="\n").encode(),
        folder / "table.parquet": parquet.getvalue(),
        folder / "speed.csv": speed_frame(run).to_csv(index=False, lineterminator="\n").encode(),
    }
    if picture:
        files[folder / "rate.png"] = picture
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


def render(run: RunRecord, contact: str | None = None, rate: str | None = None) -> str:
    """The text of report.md. contact, rate: paths of the contact sheet and of the rate-distortion picture as seen
    from the report, None without one."""
    table = shown_table(run)
    text = _template().render(
        run=run,
        table=table,
        lines=main_table(table),
        title=f"{TITLES.get(run.suite, run.suite)}, scale {run.scale}: {run.pictures:,} pictures of {run.dataset}",
        mini=is_mini(run),
        contact=contact,
        rate_picture=rate,
        pictures=pictures_text(run),
        interval_note=_interval_note(run),
        spreads=_spreads(run),
        published=_published(run),
        not_comparable=_not_comparable(run),
        versions=", ".join(f"{name} {version}" for name, version in run.versions.items()),
        most_left_out=MOST_LEFT_OUT,
        sizes=lambda row: _sizes(row, run.protocol["eval_size"]),
        bpp=lambda row: _or_nothing(bits_per_pixel(row, run), ".4f"),
    )
    return text.rstrip() + "\n"


@cache
def _template():
    environment = Environment(
        loader=PackageLoader("evals.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    environment.globals |= {
        "ids": _ids, "bits": bits_text, "decoding": _decoding,
        "known": _known, "rate": _rate, "peak": _peak, "timed_on": timed_on,
    }  # fmt: skip
    return environment.get_template("report.md.j2")


def cell(value: Any) -> str:
    """Any text as one cell of a markdown table: on one line, its special characters escaped."""
    text = " ".join(str(value).split())
    for character in "\\`*_|<[]":
        text = text.replace(character, "\\" + character)
    return text


def main_table(table: ShownTable) -> list[str]:
    """The table as lines of markdown."""
    names = ["tokenizer", "bits", *(cell(column.name) + _header(column) for column in table.columns), "training"]
    rules = [":--", "--:", *["--:"] * len(table.columns), ":--"]
    lines = [names, rules]
    for row in table.rows:
        label = cell(row.label) + ("" if row.status == "ok" else f" **{row.status}**{row.marks}")
        lines.append([label, row.bits, *map(_figure, row.cells), cell(row.training)])
    return [f"| {' | '.join(line)} |" for line in lines]


def _header(column: ColumnRecord) -> str:
    arrow, unit = ARROWS[column.better], f" ({column.unit})" if column.unit else ""
    return f"{' ' + arrow if arrow else ''}{unit}"


def _figure(figure: Cell) -> str:
    value = f"**{figure.text}**" if figure.best else figure.text
    return f"{value}{figure.marks}{' ' + figure.interval if figure.interval else ''}"


def _interval_note(run: RunRecord) -> str:
    if not any(cell.low is not None for row in run.rows for cell in row.cells.values()):
        return ""
    by = f" clustered by the {run.clusters} sources" if run.clusters < run.pictures else ""
    return f"After a figure: its 95 % interval{by}; table.csv has both bounds."


def _spreads(run: RunRecord) -> list[str]:
    """A line for each row that was decoded several times."""
    lines = []
    for row in run.rows:
        found = [f"{name} {v.seeds:.2g}" for name, v in row.cells.items() if v.seeds is not None]
        if found:
            lines.append(f"{row.label}: {', '.join(found)}")
    return lines


def _published(run: RunRecord) -> list[list[str]]:
    """A line for each figure that the paper has too: tokenizer, metric, measured, published, difference, verdict."""
    columns = {column.name: column for column in run.columns}
    lines = []
    for row in run.rows:
        for name, one in beside(run, row).items():
            if name in columns:
                column, value = columns[name], row.cells[name]
                measured = f"{number_text(value.value, column)} {interval_text(value, column)}".strip()
                difference = f"{'+' if one.difference > 0 else ''}{number_text(one.difference, column)}"
                lines.append([row.label, name, measured, f"{one.figure.value:g}", difference, one.verdict])
    return lines


def _not_comparable(run: RunRecord) -> list[str]:
    """At paper scale, why the run or some of its rows stand beside no published figure."""
    if is_mini(run):
        return []
    if reason := incomparable_run(run):
        return [reason]
    return [f"{row.label}: {reason}" for row in run.rows if (reason := incomparable_row(row))]


def _or_nothing(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _sizes(row: RowRecord, evaluation: int) -> str:
    """Native sizes; a tokenizer without one of its own takes or gives the evaluation size."""
    if row.status != "ok" and not row.family:
        return NOTHING
    return f"{row.input_size or evaluation} → {row.output_size or evaluation}"


def _ids(row: RowRecord) -> str:
    if row.ids_per_image is None:
        return NOTHING
    sizes = row.vocabulary if isinstance(row.vocabulary, list) else [row.vocabulary]
    return f"{row.ids_per_image:,} × {' / '.join(f'{v:,}' for v in sizes if v is not None)}"


def _decoding(row: RowRecord) -> str:
    if row.status != "ok" and not row.family:
        return NOTHING
    return "deterministic" if row.deterministic else "draws noise"


def _known(row: RowRecord, name: str) -> str:
    value = row.conditions.get(name)
    if value is None:
        return NOTHING
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rate(row: RowRecord, step: str) -> str:
    return _or_nothing(row.conditions.get(f"{step}_images_per_second"), ",.1f")


def _peak(row: RowRecord) -> str:
    return _or_nothing(row.conditions.get("peak_mib"), ",.0f")
