"""What a run leaves to read: report.md, table.csv and table.parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from evals.engine.store import write_atomically
from evals.record import ColumnRecord, RowRecord, RunRecord
from evals.report.comparison import incomparable_row, incomparable_run, published_comparisons
from evals.report.rate import rate_plot
from evals.report.review import (
    costs_frame,
    costs_grid,
    costs_notes,
    drift_frame,
    drift_grids,
    drift_plot,
    parts_grid,
    steps_grid,
    steps_plot,
)
from evals.report.symbols import ARROWS, NOTHING
from evals.report.table import (
    Cell,
    ShownTable,
    bits_per_pixel,
    bits_text,
    devices_text,
    distinct_origins,
    interval_text,
    is_mini,
    items_text,
    number_text,
    raw_frame,
    settings_text,
    shown_table,
    speed_frame,
    traceback_name,
)
from evals.suites.catalog import suites
from lactok.registry import RegistryError

# Unreadable images, and refused items of a row, that the report names; run.json has them all.
MOST_LEFT_OUT = 50
MOST_REFUSED = 3


def write_report(run: RunRecord, folder: Path) -> list[Path]:
    """Write report.md, table.csv, table.parquet, speed.csv, and where the run has what they show: rate.png, costs.csv,
    few_steps.png, round_trips.csv, round_trips.png; returns their paths.

    The report shows contact.png where the folder has one. Raises StoreError when the folder can't be written.
    """
    frame = raw_frame(run)
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    contact = "contact.png" if (folder / "contact.png").is_file() else None
    plot = rate_plot(run)
    plots = {"few_steps.png": steps_plot(run), "round_trips.png": drift_plot(run)}
    shown = [name for name, content in plots.items() if content is not None]
    files = {
        folder / "report.md": render(run, contact, "rate.png" if plot else None, shown).encode(),
        folder / "table.csv": frame.to_csv(index=False, lineterminator="\n").encode(),
        folder / "table.parquet": parquet.getvalue(),
        folder / "speed.csv": speed_frame(run).to_csv(index=False, lineterminator="\n").encode(),
    }
    if plot:
        files[folder / "rate.png"] = plot
    for name, frame_of_review in (("costs.csv", costs_frame(run)), ("round_trips.csv", drift_frame(run))):
        if frame_of_review is not None:
            files[folder / name] = frame_of_review.to_csv(index=False, lineterminator="\n").encode()
    files |= {folder / name: content for name, content in plots.items() if content is not None}
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


def render(run: RunRecord, contact: str | None = None, rate: str | None = None, plots: Sequence[str] = ()) -> str:
    """The text of report.md. contact, rate: paths of the contact sheet and of the rate-distortion plot as seen from the
    report, None without one; plots: those of few_steps.png and round_trips.png that there are."""
    table = shown_table(run)
    text = _template().render(
        run=run,
        table=table,
        lines=main_table(table),
        title=f"{run_title(run.suite)}, scale {run.scale}: {run.items:,} {run.unit} of {run.dataset}",
        mini=is_mini(run),
        contact=contact,
        rate_plot=rate,
        plots=plots,
        costs=costs_grid(run),
        costs_notes=costs_notes(run),
        parts=parts_grid(run),
        few_steps=steps_grid(run),
        drift=drift_grids(run),
        items=items_text(run),
        devices=devices_text(run),
        interval_note=interval_note(run),
        tracebacks=[(row.label, traceback_name(row)) for row in run.rows if row.trace],
        refused=[line for row in run.rows if (line := _refused(row, run))],
        spreads=_spreads(run),
        published=_published(run),
        not_comparable=_not_comparable(run),
        origins=_origins(run),
        steps=_steps(run),
        versions=_versions(run.versions),
        most_left_out=MOST_LEFT_OUT,
        sizes=lambda row: _sizes(row, run.protocol["eval_size"]),
        bpp=lambda row: _or_nothing(bits_per_pixel(row, run), ".4f"),
    )
    return text.rstrip() + "\n"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("evals.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    environment.globals |= {"tokens": _tokens, "bits": bits_text, "settings": settings_text, "noise": _noise}
    return environment.get_template("report.md.j2")


def run_title(name: str) -> str:
    """A suite's title, or else the head of its summary; its name where no such suite is installed any more."""
    try:
        suite = suites().get(name)
    except RegistryError:  # another suite's plugin is broken
        suite = None
    title = name if suite is None else suite.title or suite.summary.split(":")[0]
    return title[:1].upper() + title[1:]


def cell(value: Any) -> str:
    """Any text as one cell of a markdown table: on one line, its special characters escaped."""
    text = " ".join(str(value).split())
    for character in "\\`*_|<[]":
        text = text.replace(character, "\\" + character)
    return text


def main_table(table: ShownTable) -> list[str]:
    """The table as lines of markdown."""
    names = [table.model, table.facts, *(cell(c.name) + _header(c) for c in table.columns), "training"]
    rules = [":--", "--:" if table.facts == "bits" else ":--", *["--:"] * len(table.columns), ":--"]
    lines = [names, rules]
    for row in table.rows:
        label = cell(row.label) + ("" if row.status == "ok" else f" **{row.status}**{row.marks}")
        lines.append([label, cell(row.facts), *map(_figure, row.cells), cell(row.training)])
    return [f"| {' | '.join(line)} |" for line in lines]


def _header(column: ColumnRecord) -> str:
    arrow, unit = ARROWS[column.better], f" ({column.unit})" if column.unit else ""
    return f"{' ' + arrow if arrow else ''}{unit}"


def _figure(figure: Cell) -> str:
    value = f"**{figure.text}**" if figure.best else figure.text
    return f"{value}{figure.marks}{' ' + figure.interval if figure.interval else ''}"


def interval_note(run: RunRecord) -> str:
    """What the figures' intervals are; "" where the run has none."""
    if not any(cell.low is not None for row in run.rows for cell in row.cells.values()):
        return ""
    by = f" clustered by the {run.clusters} sources" if run.clusters < run.items else ""
    return f"After a figure: its 95 % interval{by}; table.csv has both bounds."


def _refused(row: RowRecord, run: RunRecord) -> str:
    """How many items a row refused, with the first reasons; "" where none."""
    if not row.refused:
        return ""
    first = [f"{item}: {reason}" for item, reason in list(row.refused.items())[:MOST_REFUSED]]
    more = "; ... (run.json has all)" if len(row.refused) > MOST_REFUSED else ""
    return f"{row.label}: {len(row.refused):,} of {run.items:,} items refused: {'; '.join(first)}{more}"


def _spreads(run: RunRecord) -> list[str]:
    """A line for each row with several seed indices."""
    lines = []
    for row in run.rows:
        found = [f"{name} {v.seeds:.2g}" for name, v in row.cells.items() if v.seeds is not None]
        if found:
            lines.append(f"{row.label}: {', '.join(found)}")
    return lines


@dataclass(frozen=True)
class _Step:
    """A line of the table of speed."""

    label: str
    precision: str
    seeds: int
    name: str = NOTHING
    rate: str = NOTHING
    batch: str = NOTHING
    threads: str = NOTHING
    peak: str = NOTHING
    devices: str = NOTHING


def _steps(run: RunRecord) -> list[_Step]:
    """A line a measured row and timed step; one without figures for a row that was not timed."""
    lines = []
    for row in run.rows:
        if row.status != "ok":
            continue
        head = row.label, row.precision or NOTHING, row.seeds
        for name, speed in row.speed.items():
            rate, peak = f"{speed.images_per_second:,.1f}", f"{speed.peak_mib:,.0f}"
            devices = ", ".join(speed.devices) or NOTHING
            lines.append(_Step(*head, name, rate, _commas(speed.batch), _commas(speed.threads), peak, devices))
        if not row.speed:
            lines.append(_Step(*head))
    return lines


def _commas(values: list[int]) -> str:
    return ", ".join(map(str, values)) or NOTHING


def _origins(run: RunRecord) -> list[list[str]]:
    """A line for each process that made artifacts: device, threads, code, versions, rows."""
    measured = [row for row in run.rows if row.origins]
    lines = []
    for origin in distinct_origins(measured):
        rows = [row.label for row in measured if origin in row.origins]
        named = "all" if len(rows) == len(measured) else ", ".join(rows)
        lines.append([origin.device, str(origin.threads), origin.code_revision, _versions(origin.versions), named])
    return lines


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _published(run: RunRecord) -> list[list[str]]:
    """A line for each figure that the paper has too: tokenizer, metric, measured, published, difference, verdict."""
    columns = {column.name: column for column in run.columns}
    lines = []
    for row in run.rows:
        for name, one in published_comparisons(run, row).items():
            value = row.cells[name]
            if name in columns and value.value is not None:
                column = columns[name]
                measured = f"{number_text(value.value, column)} {interval_text(value, column)}".strip()
                difference = f"{'+' if one.difference > 0 else ''}{number_text(one.difference, column)}"
                lines.append([row.label, name, measured, f"{one.figure.value:g}", difference, one.verdict])
    return lines


def _not_comparable(run: RunRecord) -> list[str]:
    """At paper scale, why the run or some of its rows are compared with no published figure."""
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


def _tokens(row: RowRecord) -> str:
    if row.tokens_per_image is None:
        return NOTHING
    sizes = row.codebook_size if isinstance(row.codebook_size, list) else [row.codebook_size]
    return f"{row.tokens_per_image:,} × {' / '.join(f'{v:,}' for v in sizes if v is not None)}"


def _noise(row: RowRecord) -> str:
    if row.status != "ok" and not row.family:
        return NOTHING
    return "deterministic" if row.deterministic else "draws noise"
