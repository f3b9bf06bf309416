"""A paper's table as markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from evals.engine.store import write_atomically
from evals.report.markdown import cell
from evals.report.paper import NOT_MEASURED, PaperCell, PaperTable

FORMATS = {"md": "paper.md.j2", "tex": "paper.tex.j2", "html": "paper.html.j2"}
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$", "–": "--",
    "→": r"$\to$", "×": r"$\times$", "é": r"\'e", "<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}", "]": "{]}",
}  # fmt: skip


def write_paper_table(table: PaperTable, folder: Path) -> list[Path]:
    """Write NAME.md, NAME.tex and NAME.html; returns their paths. Raises StoreError."""
    paths = [folder / f"{table.name}.{kind}" for kind in FORMATS]
    for path, kind in zip(paths, FORMATS):
        write_atomically(path, render(table, kind).encode())
    return paths


def render(table: PaperTable, kind: str) -> str:
    """The table's text. kind: "md", "tex" or "html"."""
    text = _environment().get_template(FORMATS[kind]).render(table=table, not_measured=NOT_MEASURED)
    return text.rstrip() + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evals.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": cell, "tex": tex, "html": html.escape, "sentence": sentence}
    environment.filters |= {"figure": figure_text, "published": published_text}
    return environment


def figure_text(one: PaperCell) -> str:
    """A cell's figures on one line, without footnotes: "2.41 ±0.05 (published 2.32: +0.09, beyond the interval)"; of a
    table with figures of several origins "0.41 (published 0.43, cited: −0.02, no interval)"."""
    text = " ".join(filter(None, (one.text, one.interval)))
    if not one.published:
        return text
    found = ", ".join(filter(None, (one.difference, one.verdict)))
    return f"{text} (published {published_text(one)}{': ' if found else ''}{found})"


def published_text(one: PaperCell) -> str:
    """A cell's published figure with its origin, where that is told: "0.43, cited"."""
    return ", ".join(filter(None, (one.published, one.origin)))


def sentence(text: str) -> str:
    """A line as a sentence: its first letter in upper case, a full stop at its end."""
    return f"{text[:1].upper()}{text[1:]}."


def tex(text: str) -> str:
    """Any text for LaTeX, its special characters escaped."""
    return "".join(_TEX.get(character, character) for character in " ".join(str(text).split()))
