"""What `python -m evals list` prints: columns where they fit the terminal, else a block a name. No word is cut."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

# Lines that a cell of a table may take; with two columns, the name and a text, any number.
MOST_LINES = 3
# Characters of a fact that stands beside the name in a block.
SHORT = 24
# Columns of prose, which stands in a block without its heading.
PROSE = ("what", "meaning")
GAP = "  "
INDENT = "    "
# A command in backquotes holds spaces and is to be copied whole.
_WHOLE = re.compile(r"`[^`]*`\S*|\S+")


@dataclass
class Listing:
    """columns: the headings, the first one of the names to type; rows: a text for each column, lines of them as they
    are."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """One more row."""
        self.rows.append(cells)

    def show(self) -> None:
        """Print it to the width of the terminal (80 where there is none), and an empty line."""
        console = Console(highlight=False)
        for line in [Text(self.title, "bold"), *self.lines(console.width), Text()]:
            console.print(line, soft_wrap=True)

    def lines(self, width: int) -> list[Text]:
        """The lines below the title. One that is longer than `width` is a single word."""
        widths = self._widths(width)
        if widths is None:
            return [line for row in self.rows for line in self._block(row, width)]
        heading = [Text(line, "bold") for line in _side_by_side(self.columns, widths)]
        return heading + [Text(line) for row in self.rows for line in _side_by_side(row, widths)]

    def _widths(self, width: int) -> list[int] | None:
        """Of the columns; None where they would cut a word or make the table long."""
        cells = [
            [wrapped for row in (self.columns, *self.rows) for wrapped in row[i].split("\n")]
            for i in range(len(self.columns))
        ]
        most = [max(map(len, texts)) for texts in cells]
        least = [most[0], *(max(len(word) for text in texts for word in text.split() or [""]) for texts in cells[1:])]
        left = width - len(GAP) * (len(cells) - 1) - sum(least)
        if left < 0:
            return None
        widths = least
        while left and (lacking := [i for i in range(len(cells)) if widths[i] < most[i]]):
            i = max(lacking, key=lambda i: most[i] / widths[i])  # the one that takes the most lines
            widths[i], left = widths[i] + 1, left - 1
        lines = max(len(_side_by_side(row, widths)) for row in self.rows) if self.rows else 1
        named = max((row[0].count("\n") + 1 for row in self.rows), default=1)
        return widths if len(cells) <= 2 or lines <= max(MOST_LINES, named) else None

    def _block(self, row: tuple[str, ...], width: int) -> list[Text]:
        """The name with what is short, and a paragraph for each of the others."""
        told = [(column, cell) for column, cell in zip(self.columns[1:], row[1:], strict=True) if cell]
        beside = [column for column, cell in told if len(cell) <= SHORT and "\n" not in cell and column not in PROSE]
        short = [f"{column} {cell}" for column, cell in told if column in beside]
        name = row[0].replace("\n", ", ")
        first = wrapped(f"{name} ({', '.join(short)})" if short else name, width, INDENT)
        lines = [Text(line) for line in first]
        lines[0].stylize("bold", 0, len(name))
        for column, cell in told:
            if "\n" in cell:
                lines.append(Text(f"{INDENT}{column}:"))
                parts = [f"{INDENT}{GAP}{part}" for part in cell.split("\n")]
            else:
                named = "" if column in PROSE else f"{column}: "
                parts = [] if column in beside else [f"{INDENT}{named}{cell}"]
            deeper = INDENT + GAP * (2 if "\n" in cell else 1)
            lines += [Text(line) for part in parts for line in wrapped(part, width, deeper)]
        return lines


def wrapped(text: str, width: int, indent: str) -> list[str]:
    """The text in lines of at most `width`, later ones indented; no word is cut, nor a command in backquotes."""
    begun = text[: len(text) - len(text.lstrip())]
    lines, line = [], begun
    for word in _WHOLE.findall(text):
        if line.strip() and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = indent
        line += word if not line.strip() else f" {word}"
    return [*lines, line]


def _side_by_side(cells: Iterable[str], widths: list[int]) -> list[str]:
    """A row's lines."""
    columns = [
        [
            line
            for part in cell.split("\n")
            for line in textwrap.wrap(part, size, break_long_words=False, break_on_hyphens=False) or [""]
        ]
        for cell, size in zip(cells, widths, strict=True)
    ]
    high = max(map(len, columns))
    filled = [[*lines, *[""] * (high - len(lines))] for lines in columns]
    return [GAP.join(part.ljust(size) for part, size in zip(line, widths)).rstrip() for line in zip(*filled)]
