"""The rate-distortion plot: measured bits of an image against each metric, all rows of a run on one plot."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from evals.record import ColumnRecord, RunRecord
from evals.report.symbols import ARROWS, COLOURS
from evals.report.table import is_mini

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
# Passes in which labels are moved apart.
PASSES = 100
# Inches of one metric's panel.
PANEL = (4.2, 3.2)
# Markers of the calibration rows that have a rate, in the table's order; they are grey, as in report.html.
CALIBRATION_MARKERS, CALIBRATION = ("x", "s", "^", "D"), "#7d858f"
MARKERS = ("o", "s", "D", "^", "P", "*")
INK, FAINT, LINES = "#1f2328", "#59636e", "#d1d9e0"
# Of a panel: the width that labels at the points need, and the least distance of two, as shares of its width and
# height.
LABEL_ROOM, LABEL_HEIGHT = 0.62, 0.062
# Characters of a label.
LABEL_LENGTH = 26


def rate_points(run: RunRecord, column: str) -> dict[str, list[tuple[float, float, str]]]:
    """By tokenizer name, its rows' (bits per image, value, label) by rising rate; rows without bits have no place."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    for row in run.rows:
        value = row.cells[column].value if column in row.cells else None
        if row.bits_per_image and value is not None and math.isfinite(value):
            points.setdefault(row.name, []).append((row.bits_per_image, value, row.label))
    return {name: sorted(found) for name, found in points.items()}


def rate_columns(run: RunRecord) -> list[ColumnRecord]:
    """The columns worth a panel: with a direction, of images and not of tokens, no second summary of per-image values,
    and with figures in two rows that have bits."""
    judged = [c for c in run.columns if c.better and c.kind != "token" and c.mean]
    return [c for c in judged if sum(map(len, rate_points(run, c.name).values())) > 1]


def rate_plot(run: RunRecord) -> bytes | None:
    """PNG, a panel a metric; None where fewer than two rows have a rate. Rows of one tokenizer are joined by a line."""
    columns = rate_columns(run)
    if not columns:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = min(COLUMNS, len(columns))
    high = -(-len(columns) // wide)
    most = {row.label: row.max_bits_per_image for row in run.rows}
    figure = Figure(figsize=(PANEL[0] * wide, PANEL[1] * high + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        color=INK, t=f"{run.items:,} {run.unit} of {run.dataset}, {run.protocol['name']}" + " (mini)" * is_mini(run)
    )
    calibration = dict(zip(_names(run, calibration=True), cycle(CALIBRATION_MARKERS)))
    styles = {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)])
        for i, name in enumerate(_names(run, calibration=False))
    } | {name: (CALIBRATION, marker) for name, marker in calibration.items()}
    for place, column in enumerate(columns, 1):
        axes = figure.add_subplot(high, wide, place)
        ends: list[tuple[float, float, str, str]] = []
        for name, points in rate_points(run, column.name).items():
            bits, values, _ = zip(*points)
            scale = 100 if column.unit == "%" else 1
            colour, marker = styles[name]
            line = ":" if name in calibration else "-"
            axes.plot(bits, [v * scale for v in values], label=name, marker=marker, color=colour, linestyle=line)
            ends.append((bits[-1], values[-1] * scale, name, colour))
            for spent, value, label in points:
                if (limit := most[label]) is not None and limit != spent:  # up to the most that an image can take
                    axes.plot([spent, limit], [value * scale] * 2, marker="|", color=colour, linewidth=0.6, alpha=0.6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("bits per image (mean; thin: to the maximum)" if _varies(run) else "bits per image")
        axes.set_ylabel(f"{column.name} {ARROWS[column.better]}" + (f" ({column.unit})" if column.unit else ""))
        dress(axes)
        label_ends(axes, ends)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def dress(axes: Axes) -> None:
    """The look of report.html: thin grid, no frame above and at the right, dark ink."""
    axes.grid(color=LINES, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINES)


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]], log: bool = True) -> None:
    """A label at the last point (x, value, text, colour) of each line; moved apart vertically, with a thin line to its
    point, where two would cover each other. log: whether the axis across has powers of 2."""
    (left, _), (low, top) = axes.get_xlim(), axes.get_ylim()
    right = max(end[0] for end in ends) * (1.06 if log else 1.02)
    if right <= left:  # one rate alone
        left = right / 2

    def across(x: float) -> float:
        return math.log2(x) if log else x

    start = across(left)
    width = (across(right) - start) * (1 + LABEL_ROOM)
    axes.set_xlim(left, 2 ** (start + width) if log else start + width)
    places = [(value - low) / (top - low) for _, value, _, _ in ends]
    apart = spaced(places, LABEL_HEIGHT)
    for (x, value, text, colour), place in zip(ends, apart, strict=True):
        axes.annotate(
            text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…",
            xy=(x, value),
            xytext=((across(x) - start) / width + 0.05, place),
            textcoords="axes fraction",
            color=colour,
            fontsize=7.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )


def spaced(places: Sequence[float], least: float) -> list[float]:
    """Places from 0 to 1, moved as little as makes neighbours at least `least` apart; their order stays."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(PASSES):
        for i in range(1, len(moved)):
            if (overlap := least - (moved[i] - moved[i - 1])) > 0:
                moved[i - 1 : i + 1] = [moved[i - 1] - overlap / 2, moved[i] + overlap / 2]
    for i in range(len(moved)):  # none below the axis, nor above the panel
        moved[i] = max(moved[i], least * (i + 0.5))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], 1 - least * (len(moved) - 1 - i))
    found = [0.0] * len(places)
    for i, place in zip(order, moved, strict=True):
        found[i] = place
    return found


def _varies(run: RunRecord) -> bool:
    """Whether a row spends less than its maximum."""
    limits = [(row.bits_per_image, row.max_bits_per_image) for row in run.rows]
    return any(None not in (bits, most) and bits != most for bits, most in limits)


def _names(run: RunRecord, calibration: bool) -> list[str]:
    """The names of calibration rows with a rate, or of all models under test."""
    return list(
        dict.fromkeys(
            row.name
            for row in run.rows
            if (row.calibration is not None) == calibration and (row.bits_per_image or not calibration)
        )
    )
