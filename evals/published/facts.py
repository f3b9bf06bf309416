"""The findings of facts.csv: where the paper disagrees with itself or with what its authors released."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

VERDICTS = ("holds", "holds in part", "does not hold", "differs", "open")
COLUMNS = ("finding", "check", "where", "says", "found", "verdict", "source")


class FactsError(ValueError):
    """facts.csv is malformed; the message names the line and what was expected."""


@dataclass(frozen=True)
class Fact:
    """One finding. where, says: the place in the paper and its statement; found: what stands against it; verdict: one
    of VERDICTS; source: of what was found; check: "computed" here, or "stated"."""

    finding: str
    check: Literal["computed", "stated"]
    where: str
    says: str
    found: str
    verdict: str
    source: str


@cache
def facts() -> tuple[Fact, ...]:
    """All findings, in file order. Raises FactsError."""
    return parse((files("evals.published") / "facts.csv").read_text(encoding="utf-8"))


def parse(text: str) -> tuple[Fact, ...]:
    """The findings in a file's text. Raises FactsError naming the line (1 is the header) that is wrong."""
    reader = csv.DictReader(io.StringIO(text), strict=True)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise FactsError(f"facts.csv: columns {reader.fieldnames}: expected {list(COLUMNS)}")
    found: dict[str, Fact] = {}
    for line in reader:
        place = f"facts.csv, line {reader.line_num}"
        if None in line or not all(line.values()):
            raise FactsError(f"{place}: expected {len(COLUMNS)} fields, none of them empty")
        fields: dict[str, Any] = line
        fact = Fact(**fields)
        if fact.check not in ("computed", "stated"):
            raise FactsError(f"{place}: check {fact.check!r}: expected computed or stated")
        if fact.verdict not in VERDICTS:
            raise FactsError(f"{place}: verdict {fact.verdict!r}: expected one of {', '.join(VERDICTS)}")
        if fact.finding in found:
            raise FactsError(f"{place}: a second finding {fact.finding}")
        found[fact.finding] = fact
    return tuple(found.values())
