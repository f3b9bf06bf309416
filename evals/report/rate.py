"""The rate-distortion plot: measured bits of an image against each metric, all rows of a run on one plot."""

from __future__ import annotations

import io
import math
from itertools import cycle

from evals.record import ColumnRecord, RunRecord
from evals.report.symbols import ARROWS
from evals.report.table import is_mini

COLUMNS = 3
# Inches of one metric's panel.
PANEL = (4.2, 3.2)
# Markers and colours of the calibration rows that have a rate, in the table's order.
CALIBRATION_STYLES = (("x", "dimgrey"), ("s", "darkgrey"), ("^", "grey"), ("D", "silver"))


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
    figure.suptitle(f"{run.items:,} {run.unit} of {run.dataset}, {run.protocol['name']}" + " (mini)" * is_mini(run))
    calibration = dict(zip(_names(run, calibration=True), cycle(CALIBRATION_STYLES)))
    colours = {name: f"C{i % 10}" for i, name in enumerate(_names(run, calibration=False))}
    for place, column in enumerate(columns, 1):
        axes = figure.add_subplot(high, wide, place)
        for name, points in rate_points(run, column.name).items():
            bits, values, _ = zip(*points)
            scale = 100 if column.unit == "%" else 1
            marker, colour = calibration[name] if name in calibration else ("o", colours[name])
            line = ":" if name in calibration else "-"
            axes.plot(bits, [v * scale for v in values], label=name, marker=marker, color=colour, linestyle=line)
            for spent, value, label in points:
                if (limit := most[label]) is not None and limit != spent:  # up to the most that an image can take
                    axes.plot([spent, limit], [value * scale] * 2, marker="|", color=colour, linewidth=0.6, alpha=0.6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("bits per image (mean; thin: to the maximum)" if _varies(run) else "bits per image")
        axes.set_ylabel(f"{column.name} {ARROWS[column.better]}" + (f" ({column.unit})" if column.unit else ""))
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


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
