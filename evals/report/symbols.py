"""The symbols of tables; evals/streams.py spells them in ASCII where a console can't show them."""

from __future__ import annotations

NOTHING = "–"
ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0", None: ""}
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def superscript(number: int) -> str:
    """A footnote's number as its mark."""
    return "".join(_SUPERSCRIPTS[int(digit)] for digit in str(number))
