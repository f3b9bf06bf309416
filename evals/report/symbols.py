"""The symbols of tables, and what stands for them where a console can't show them."""

from __future__ import annotations

NOTHING = "–"
ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0", None: ""}
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_PLAIN = str.maketrans({
    "↑": "^", "↓": "v", "→": "->", "±": "+-", "−": "-", "–": "-", "∞": "inf", "×": "x", "…": "...", "é": "e",
    **{symbol: f"({digit})" for digit, symbol in enumerate(_SUPERSCRIPTS)},
})  # fmt: skip


def superscript(number: int) -> str:
    """A footnote's number as its mark."""
    return "".join(_SUPERSCRIPTS[int(digit)] for digit in str(number))


def shows_symbols(encoding: str) -> bool:
    """Whether text in this encoding can hold every symbol of a table."""
    try:
        "".join(map(chr, _PLAIN)).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def printable(text: str, encoding: str | None) -> str:
    """The text as a stream of this encoding takes it: symbols by ASCII, other characters that it lacks by "?"."""
    encoding = encoding or "ascii"
    if shows_symbols(encoding):
        return text
    try:
        return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    except LookupError:
        return text.translate(_PLAIN).encode("ascii", "replace").decode("ascii")
