"""`python -m evals lint-paper`: where the paper disagrees with itself or its release, computed anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evals.cli.arguments import as_options

if TYPE_CHECKING:
    from evals.published.facts import Fact

DESCRIPTION = """\
Computes every finding on the paper that can be computed (evals/published/findings.py) and prints a line a finding: what
the paper says, what is found, the verdict. Exit status: 0 the computed findings are those of evals/published/facts.csv
and docs/paper.md shows each of them, 1 one differs or is not shown, 2 the file of facts can't be read.
"""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "paper.md"


def main(argv: list[str]) -> int:
    """See DESCRIPTION."""
    parser = argparse.ArgumentParser(
        prog="python -m evals lint-paper", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that shows the findings [docs/paper.md]")
    try:
        args = parser.parse_args(as_options(argv, ("page",)))
    except SystemExit as done:
        return int(done.code or 0)

    from evals.published.facts import FactsError, facts
    from evals.published.findings import disagreements

    try:
        listed = facts()
    except FactsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for fact in listed:
        print(f"{fact.finding} ({fact.where}): says {fact.says} | {fact.check} {fact.found} | {fact.verdict}")
    wrong = disagreements(listed)
    if args.page.is_file():
        text = args.page.read_text(encoding="utf-8")
        hidden = [fact.finding for fact in listed if line(fact) not in text]
        wrong += [f"{args.page.name} does not show {finding} as facts.csv has it" for finding in hidden]
    else:
        print(f"{args.page} is not here: the findings were held against facts.csv alone", file=sys.stderr)
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if wrong else 0


def line(fact: Fact) -> str:
    """A finding as a line of the page's table."""
    cells = (f"`{fact.finding}`", fact.where, fact.says, fact.found, fact.verdict, fact.source)
    return "| " + " | ".join(cell.replace("*", "\\*").replace("|", "\\|") for cell in cells) + " |"
