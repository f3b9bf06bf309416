"""`python -m evals results`: docs/results.md, from the summaries that are committed under results/."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.cli.check import RowSnapshot, Snapshot, read
from evals.record import ColumnRecord, RecordError
from evals.report.symbols import ARROWS, NOTHING
from evals.report.table import number_text

HELP = """\
usage: python -m evals results [root=DIR]

Writes docs/results.md to the standard output: each table of DIR/results/mini/*.json and what DIR/results/gpu/*.json
holds, with what can be learned from them and what can't. Nothing is measured. Figures come from these files alone.
Exit status: 0 written, 2 a file can't be read.

    python -m evals results > docs/results.md
"""

HEAD = """\
# Results

Written by `python -m evals results > docs/results.md` from the summaries in `results/`; a test holds the page to them.
A summary is what `python -m evals check FILE` measures anew and compares; with `update=true` that command writes it.

**A mini table compares methods in miniature. None of its figures compares with a paper's.**
"""


@dataclass(frozen=True)
class Told:
    """What a reader may and may not conclude from a table, a paragraph each; no figures stand here."""

    title: str
    learned: tuple[str, ...]
    not_learned: tuple[str, ...]


TABLES = {
    "recon": Told(
        "Reconstruction: tokenizers in miniature",
        (
            "Whether the pipeline gives the same figures as before: the file is the reference of "
            "`python -m evals check`, which compares each figure and each token.",
            "How the miniatures rank on these tiles, each against the calibration rows: `identity` is each metric at "
            "its best, `resize-64` the loss of resizing alone, `downsample-bits[bits=N]` a thumbnail of the same rate, "
            "`mean-colour` the floor.",
        ),
        (
            "How the published tokenizers rank: the miniatures differ from them in size, training and images.",
            "Small differences: the tiles are few and come from few photographs, and this file holds no intervals "
            "(`python -m evals compare RUN all=true` tests them on a run).",
            "FD: with fewer images than dimensions it is strongly biased, and ranks at best.",
        ),
    ),
    "geneval": Told(
        "Generation: GenEval on rendered scenes",
        (
            "Whether the miniature generators place, count and colour what a prompt names, by GenEval's rules, judged "
            "on the pixels of flat rendered scenes.",
            "What the judge and the tokenizer cost: rows of rendered scenes, as they are and through a tokenizer, are "
            "the ceiling; `shuffled-prompts` is the floor.",
        ),
        (
            "How the published generators score: prompts, scenes, judge and generators are all miniatures.",
            "Anything of photographs or free text: prompts are of the scenes' own few words.",
        ),
    ),
}
OTHER = Told(
    "Another suite",
    ("Whether the pipeline gives the same figures as before: `python -m evals check` compares each of them.",),
    ("How published models rank: a mini table never says that.",),
)
FLOORS = ("mean-colour", "shuffled-prompts")


def main(argv: list[str]) -> int:
    """See HELP."""
    if any(a in ("-h", "--help", "help") for a in argv):
        print(HELP, end="")
        return 0
    given = dict(word.split("=", 1) for word in argv if "=" in word)
    if wrong := [word for word in argv if word.partition("=")[0] != "root" or "=" not in word]:
        print(f"error: unknown {wrong[0]}: python -m evals results [root=DIR]", file=sys.stderr)
        return 2
    root = Path(given.get("root", "."))
    try:
        print(page(root), end="")
    except (RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def page(root: Path) -> str:
    """The page, of the summaries below root/results and the images in root/docs/images.

    Raises RecordError for a file that is no such summary and a folder without any, OSError.
    """
    mini, gpu = (sorted((root / "results" / kind).glob("*.json")) for kind in ("mini", "gpu"))
    if not mini:
        raise RecordError(f"{root / 'results' / 'mini'} holds no summary: name the checkout by root=DIR")
    parts = [HEAD]
    for path in mini:
        parts += _section(path, read(path), root)
    for path in gpu:
        parts += _gpu_section(path)
    return "\n".join(parts)


def _section(path: Path, found: Snapshot, root: Path) -> Iterator[str]:
    told = TABLES.get(path.stem, OTHER)
    yield f"## {told.title if told is not OTHER else path.stem}\n"
    if not found.rows:
        yield f"`results/mini/{path.name}` holds settings and no figures yet: `update=true` writes them.\n"
        return
    unit = "prompts" if any("generat" in word or "geneval" in word for word in found.config) else "images"
    torch = found.versions.get("torch", "unknown")
    yield (
        f"{found.items:,} {unit}; protocol hash `{found.protocol_hash}`; {found.device}; torch {torch}. Measured by\n"
    )
    yield f"    python -m evals check results/mini/{path.name}\n"
    yield f"of the settings `{' '.join(found.config)}`.\n"
    columns = _columns(found.rows)
    yield from _table(found.rows, columns)
    image = root / "docs" / "images" / f"{path.stem}-mini.jpg"
    if image.is_file():
        yield f"![Images of this table's rows](images/{image.name})\n"
    yield "**What can be learned**\n"
    yield "\n".join(f"- {line}" for line in (*told.learned, *_facts(found.rows, columns))) + "\n"
    yield "**What can't**\n"
    yield "\n".join(f"- {line}" for line in told.not_learned) + "\n"


def _columns(rows: Mapping[str, RowSnapshot]) -> list[ColumnRecord]:
    """The columns that any row has a figure of, as their metrics describe them."""
    from evals.engine.run import column_record
    from evals.metrics.plan import UnusableMetric, metric_class
    from lactok import registry

    described: dict[str, ColumnRecord] = {}
    for name in registry.entries("metrics"):
        try:
            columns = metric_class(name).columns
        except (registry.RegistryError, UnusableMetric):  # a plugin that can't be imported describes nothing
            continue
        for column in columns:
            described.setdefault(column.name, column_record(column))
    names = dict.fromkeys(name for row in rows.values() for name in row.cells)
    return [described[name] for name in names if name in described]


def _table(rows: Mapping[str, RowSnapshot], columns: Sequence[ColumnRecord]) -> Iterator[str]:
    heads = [f"{c.name} {ARROWS[c.better]}{f' ({c.unit})' if c.unit else ''}".replace("  ", " ") for c in columns]
    lines = [f"| row | {' | '.join(head.strip() for head in heads)} |", "| :-- " + "| --: " * len(columns) + "|"]
    for label, row in rows.items():
        shown = label.replace("[", "\\[")
        status = "" if row.status == "ok" else f" **{row.status}**"
        lines.append(f"| {shown}{status} | {' | '.join(_text(row, c) for c in columns)} |")
    yield "\n".join(lines) + "\n"


def _value(row: RowSnapshot, column: ColumnRecord) -> float | None:
    found = row.cells.get(column.name)
    value = None if found is None else float(found)
    return None if value is None or math.isnan(value) else value


def _text(row: RowSnapshot, column: ColumnRecord) -> str:
    value = _value(row, column)
    return NOTHING if value is None else number_text(value, column)


def _facts(rows: Mapping[str, RowSnapshot], columns: Sequence[ColumnRecord]) -> Iterator[str]:
    """Sentences that follow from the figures: the best model in each column, and who is behind the floor."""
    from lactok.registry import entries

    calibration = entries("calibration")
    models = {label: row for label, row in rows.items() if label.partition("[")[0] not in calibration}
    models = {label: row for label, row in models.items() if row.status == "ok"}
    judged = [column for column in columns if column.better]
    coded = {label: row for label, row in models.items() if row.tokens}  # a continuous row spends any number of bits
    best = []
    for column in judged:
        figures = {
            label: value for label, row in (coded or models).items() if (value := _value(row, column)) is not None
        }
        if len(figures) > 1:
            label = min(figures, key=lambda name: _loss(figures[name], column))
            best.append(f"{column.name} {label} ({number_text(figures[label], column)})")
    if best:
        yield f"Best of the models under test{' with tokens' if coded else ''}: {'; '.join(best)}."
    for floor in FLOORS:
        if floor in rows:
            behind = [line for label, row in models.items() if (line := _behind(label, row, rows[floor], judged))]
            yield f"Not ahead of `{floor}`: {'; '.join(behind) or 'none in any column'}."


def _behind(label: str, row: RowSnapshot, floor: RowSnapshot, columns: Sequence[ColumnRecord]) -> str:
    names = []
    for column in columns:
        value, least = _value(row, column), _value(floor, column)
        if value is not None and least is not None and _loss(value, column) >= _loss(least, column):
            names.append(column.name)
    return f"{label} in {', '.join(names)}" if names else ""


def _loss(value: float, column: ColumnRecord) -> float:
    return {"higher": -value, "lower": value, "zero": abs(value)}[column.better or "lower"]


def _gpu_section(path: Path) -> Iterator[str]:
    """What a file of `benchmarks/gpu` holds: its runs and parts, and what was not measured, with the reason."""
    try:
        runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
        lines = ["| begun | card | part | results | state |", "| :-- | :-- | :-- | --: | :-- |"]
        lacking = []
        for run in runs:
            for part in run["parts"]:
                state = part["status"] + (f": {part['reason']}" if part["reason"] else "")
                cells = (run["started"], run["device"], part["name"], str(len(part["results"])), state)
                lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
                lacking += [
                    f"- {part['name']}: {_cell(one['what'])}: {_cell(one['reason'])}" for one in part["lacking"]
                ]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path} is no file of the GPU's measurements (no {error}): expected runs, their parts and results"
        ) from error
    yield f"## On a GPU: {path.name}\n"
    yield "\n".join(lines) + "\n"
    yield (
        "**What can be learned**: images and ids a second, memory and the share of the card's rate, with the card "
        "named; [speed.md](speed.md) has the tables.\n"
    )
    yield (
        "**What can't**: quality. Weights were seeded, not published ones. Parts have time boxes; what was not "
        f"measured{', with the reason' if lacking else ''}:\n"
    )
    yield "\n".join(dict.fromkeys(lacking)) + "\n" if lacking else "- nothing\n"


def _cell(text: str) -> str:
    """One line of text that markdown shows as it is."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")
