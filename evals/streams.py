"""Output on consoles that can't show every symbol: what has no character there is spelled in ASCII."""

from __future__ import annotations

import codecs
import logging
import re
import sys

HANDLER = "lactok.spelled"
SPELLED = {
    "∞": "inf", "±": "+-", "−": "-", "–": "-", "—": "-", "→": "->", "↑": "^", "↓": "v", "×": "x", "é": "e", "…": "...",
}  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def spelled(text: str, encoding: str | None) -> str:
    """The text as a console of that encoding shows it: symbols that it lacks as ASCII, other characters as \\uXXXX."""
    encoding = encoding or "ascii"
    return text.encode(encoding, _registered()).decode(encoding)


def spell_standard_streams() -> None:
    """Let stdout and stderr spell what their encoding lacks, in place of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's or a notebook's stream may be of another kind
            stream.reconfigure(errors=_registered())


class _Stderr(logging.Handler):
    """To what sys.stderr is at the time, which a live progress display redirects."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr(level: int) -> None:
    """Show what the package logs at `level` and above: halved batches, removed entries, retried downloads, workers."""
    logger = logging.getLogger("lactok")
    logger.setLevel(level)
    logger.propagate = False
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)


def _registered() -> str:
    codecs.register_error(HANDLER, _spell)
    return HANDLER


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    marked = re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: f"[{m[0].translate(SUPERSCRIPTS)}]", error.object[error.start : error.end]
    )
    known = "".join(SPELLED.get(character, character) for character in marked)
    return known.encode("ascii", "backslashreplace").decode("ascii"), error.end
