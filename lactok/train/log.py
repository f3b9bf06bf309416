"""What a run shows and keeps: lines or a progress bar, CSV logs, and a plot of them."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn

from lactok.files import append_line, write_atomically
from lactok.progress import bar

LOG = "log.csv"
"""Of a run's folder: the logged steps."""


class CsvLog:
    """Rows of numbers, one a logged step, appended as they come. Columns: `step` first, then those of the first row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, float]]:
        """All complete rows."""
        if not self.path.is_file():
            return []
        whole = self.path.read_bytes().rpartition(b"\n")[0].decode()  # a killed process may leave half a line
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(whole, newline=""))]

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`: a resumed run writes them again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        if not self.path.is_file():
            return
        text = io.StringIO(newline="")
        for row in kept:
            self._write(text, row, header=row is kept[0])
        write_atomically(self.path, text.getvalue().encode())

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row; it is on disk when this returns."""
        fresh = not self.path.is_file() or self.path.stat().st_size == 0
        text = io.StringIO(newline="")
        self._write(text, {"step": step, **values}, header=fresh)
        append_line(self.path, text.getvalue().encode())

    @staticmethod
    def _write(file, row: Mapping[str, float], header: bool) -> None:
        writer = csv.writer(file)
        if header:
            writer.writerow(row)
        writer.writerow([int(v) if k == "step" else f"{v:.6g}" for k, v in row.items()])


def plot(logs: list[CsvLog], target: Path) -> None:
    """One small panel a column of the logs, over steps, as a PNG; a column needs two rows to be drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [(log.path.stem, rows) for log, rows in ((log, log.rows()) for log in logs) if len(rows) > 1]
    series = [(f"{stem}: {name}", name, rows) for stem, rows in drawn for name in rows[0] if name != "step"]
    if not series:
        return
    columns = min(4, len(series))
    figure = Figure(figsize=(4 * columns, 2.6 * -(-len(series) // columns)))
    FigureCanvasAgg(figure)
    for place, (title, name, rows) in enumerate(series, start=1):
        axes = figure.add_subplot(-(-len(series) // columns), columns, place)
        axes.plot([r["step"] for r in rows], [r[name] for r in rows], linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
    figure.subplots_adjust(0.06, 0.1, 0.98, 0.93, wspace=0.3, hspace=0.6)  # tight_layout would double the time
    png = io.BytesIO()
    figure.savefig(png, dpi=80)
    write_atomically(target, png.getvalue())


class Reporter:
    """Progress for a person: a bar on a terminal, plain lines elsewhere; silent on all ranks but the first."""

    def __init__(self, total_steps: int, first_step: int, show: bool) -> None:
        self.console = Console(stderr=True, quiet=not show)
        self.total = total_steps
        self.bar = None
        if show and sys.stderr.isatty():
            values = TextColumn("{task.fields[values]}")
            self.bar = bar(self.console, MofNCompleteColumn(), values, transient=False)
            self.task = self.bar.add_task("training", total=total_steps, completed=first_step, values="")
            self.bar.start()

    def step(self, done: int) -> None:
        """`done` steps are finished."""
        if self.bar:
            self.bar.update(self.task, completed=done)

    def values(self, done: int, values: Mapping[str, float], images_per_second: float, seconds_left: float) -> None:
        """The losses of the last logged stretch, the rate and the time left."""
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        text = f"{images_per_second:.1f} images/s  {shown}"
        if self.bar:
            self.bar.update(self.task, values=text)
        else:
            left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d} left"
            self.say(f"step {done}/{self.total}  {left}  {text}")

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()
