"""What tables and plots share: symbols (evals/streams.py spells them in ASCII where a console can't show them), colours
that the colour-blind tell apart, and labels short enough to stand beside a row or a line, or fit to name its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence

NOTHING = "–"
ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0", None: ""}
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
# Okabe and Ito's palette; its yellow and black are left out, which a light and a dark ground swallow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Characters of a line of options below a name, and lines.
OPTION_LINE, OPTION_LINES = 30, 2


def superscript(number: int) -> str:
    """A footnote's number as its mark."""
    return "".join(_SUPERSCRIPTS[int(digit)] for digit in str(number))


def short_labels(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Each label NAME[OPTION=VALUE,...] as its name and at most two lines of the options that tell the rows of this
    name apart. Different labels stay different: where lines are cut to the same text, a number follows.
    """
    split = [_split(label) for label in labels]
    found: list[tuple[str, ...]] = []
    for name, options in split:
        others = [set(told) for other, told in split if other == name]
        shared = set.intersection(*others) if len(others) > 1 else set()
        lines = _lines([option for option in options if option not in shared])
        short, number = (name, *lines), 1
        while short in found:
            number += 1
            short = (f"{name} ({number})", *lines)
        found.append(short)
    return found


def folder_names(labels: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """A folder's name for each row, fit for a command line. taken: names that none may have."""
    found: dict[str, str] = {}
    for label in labels:
        name = re.sub(r"[^\w.+-]+", "_", label).strip("_.") or "row"
        unique, number = name, 2
        while unique in (*taken, *found.values()):
            unique, number = f"{name}-{number}", number + 1
        found[label] = unique
    return found


def _split(label: str) -> tuple[str, list[str]]:
    """A label's name and options; commas within brackets do not part options."""
    name, opened, rest = label.partition("[")
    if not opened or not rest.endswith("]"):
        return label, []
    options, depth = [""], 0
    for character in rest[:-1]:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and not depth:
            options.append("")
        else:
            options[-1] += character
    return name, options


def _lines(options: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for place, option in enumerate(options):
        if lines and len(lines[-1]) + len(option) + 2 <= OPTION_LINE:
            lines[-1] += f", {option}"
        elif len(lines) < OPTION_LINES:
            lines.append(option if len(option) <= OPTION_LINE else option[: OPTION_LINE - 1] + "…")
        else:
            left = len(options) - place
            lines[-1] = lines[-1][: OPTION_LINE - 4].rstrip("…") + f"… +{left}"
            break
    return lines
