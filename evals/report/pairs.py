"""Paired tests as files: a table in markdown and LaTeX, all tests and the items that differ most as CSV, a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from evals.cli.compare import Compared
from evals.record import ColumnRecord
from evals.report.markdown import cell
from evals.report.paper_text import tex
from evals.report.symbols import ARROWS, COLOURS, NOTHING
from lactok.files import new_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL = 0.05
COLUMNS = 3
GREY, INK = "#7d858f", "#1f2328"
NOTE = (
    "Second less first, with the paired 95 % interval; * where Holm's p over the pairs of a metric is below 0.05, "
    "– where none can be computed"
)


def write_pairs(found: Sequence[Compared], columns: Sequence[ColumnRecord], title: str, out: Path) -> list[Path]:
    """Write compare.md, compare.tex, compare.csv, largest.csv and compare.png to the new folder `out`.

    found: of `evals.cli.compare.compared`; columns: the run's. Returns the paths. Raises WriteError.
    """
    shown = [column for column in columns if any(one.test.column == column.name for one in found)]
    files = {
        "compare.md": _markdown(found, shown, title).encode(),
        "compare.tex": _latex(found, shown, title).encode(),
        "compare.csv": _tests(found).to_csv(index=False, lineterminator="\n").encode(),
        "largest.csv": _largest(found).to_csv(index=False, lineterminator="\n").encode(),
    }
    if shown:
        files["compare.png"] = figure(found, shown)
    with new_folder(out) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return [out / name for name in files]


def _pairs(found: Sequence[Compared]) -> dict[tuple[str, str], dict[str, Compared]]:
    """The tests by pair and column."""
    pairs: dict[tuple[str, str], dict[str, Compared]] = {}
    for one in found:
        pairs.setdefault((one.first, one.second), {})[one.test.column] = one
    return pairs


def _figure_text(one: Compared | None, column: ColumnRecord) -> str:
    """A difference as text: "+0.512 [+0.400, +0.650]*"."""
    if one is None or one.test.mean is None:
        return NOTHING
    scale = 100 if column.unit == "%" else 1
    mean, low, high = (
        None if value is None else f"{value * scale:+.{column.digits}f}".replace("-", "−")
        for value in (one.test.mean, one.test.low, one.test.high)
    )
    interval = "" if low is None else f" [{low}, {high}]"
    return f"{mean}{interval}{'*' if one.holm is not None and one.holm < LEVEL else ''}"


def _heads(columns: Sequence[ColumnRecord]) -> list[str]:
    return [f"{c.name} {ARROWS[c.better]}".strip() + (f" ({c.unit})" if c.unit else "") for c in columns]


def _markdown(found: Sequence[Compared], columns: Sequence[ColumnRecord], title: str) -> str:
    lines = [["first", "second", *map(cell, _heads(columns))], [":--", ":--", *["--:"] * len(columns)]]
    for (first, second), tests in _pairs(found).items():
        figures = [cell(_figure_text(tests.get(column.name), column)) for column in columns]
        lines.append([cell(first), cell(second), *figures])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# {cell(title)}\n\n{table}\n\n{cell(NOTE)}.\n\n![Differences with their intervals](compare.png)\n"


def _latex(found: Sequence[Compared], columns: Sequence[ColumnRecord], title: str) -> str:
    """In the layout of the paper's tables: booktabs, a line a pair."""
    arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→0": r"$\to 0$"}
    heads = [tex(head) for head in _heads(columns)]
    for arrow, command in arrows.items():
        heads = [head.replace(tex(arrow), command) for head in heads]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{tex(title)}. {tex(NOTE)}.}}",
        rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        r"\toprule",
        rf"{' & '.join(['first', 'second', *heads])} \\",
        r"\midrule",
    ]
    for (first, second), tests in _pairs(found).items():
        figures = [tex(_figure_text(tests.get(column.name), column)) for column in columns]
        lines.append(rf"{' & '.join([tex(first), tex(second), *figures])} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _tests(found: Sequence[Compared]) -> pd.DataFrame:
    """A line a pair and metric, unrounded."""
    names = ["metric", "first", "second", "mean", "low", "high", "won", "tied", "p", "holm_p", "count", "infinite"]
    lines = [
        (t.column, one.first, one.second, t.mean, t.low, t.high, t.won, t.tied, t.p, one.holm, t.count, t.infinite)
        for one in found
        for t in [one.test]
    ]
    return pd.DataFrame(lines, columns=names)


def _largest(found: Sequence[Compared]) -> pd.DataFrame:
    """A line an item among those that differ most, the largest difference first."""
    lines = [
        (one.test.column, one.first, one.second, rank, item, first, second, second - first)
        for one in found
        for rank, (item, first, second) in enumerate(one.largest, 1)
    ]
    names = ["metric", "first", "second", "rank", "item", "value_first", "value_second", "difference"]
    return pd.DataFrame(lines, columns=names)


def figure(found: Sequence[Compared], columns: Sequence[ColumnRecord]) -> bytes:
    """PNG: a panel a metric, a line a pair, the mean difference with its interval; coloured where Holm's p is below
    0.05, by whether the second one is better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = _pairs(found)
    wide = min(COLUMNS, len(columns))
    high = -(-len(columns) // wide)
    page = Figure(figsize=(2.2 + 3.2 * wide, high * (1.4 + 0.3 * len(pairs))), layout="constrained")
    FigureCanvasAgg(page)
    axes = page.subplots(high, wide, squeeze=False, sharey=True).flatten()
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    for axis, column in zip(axes, columns):
        _panel(axis, column, [tests.get(column.name) for tests in pairs.values()])
    for axis in axes[::wide]:
        axis.set_yticks(range(len(pairs)), [f"{second}\nless {first}" for first, second in pairs], fontsize=6)
    axes[0].invert_yaxis()
    page.supxlabel("blue: the second is better, orange: worse (Holm's p < 0.05); grey: not told apart", fontsize=7)
    buffer = io.BytesIO()
    page.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _panel(axis: Axes, column: ColumnRecord, tests: Sequence[Compared | None]) -> None:
    axis.axvline(0, color=INK, linewidth=0.8)
    for place, one in enumerate(tests):
        if one is None or one.test.mean is None:
            continue
        middle, low, high = one.test.mean, one.test.low, one.test.high
        if low is not None and high is not None:
            ends: list[float] = [low, high]
            axis.plot(ends, [place, place], color=_colour(one, column), linewidth=1.6)
        axis.plot(middle, place, marker="o", markersize=4, color=_colour(one, column))
    axis.set_title(_heads([column])[0], fontsize=8)
    axis.tick_params(labelsize=6)
    axis.grid(axis="x", linewidth=0.4)


def _colour(one: Compared, column: ColumnRecord) -> str:
    if one.holm is None or one.holm >= LEVEL or one.test.mean is None or one.test.won is None:
        return GREY
    better = {"higher": one.test.mean > 0, "lower": one.test.mean < 0}.get(column.better or "", one.test.won > 0.5)
    return COLOURS[0] if better else COLOURS[1]
