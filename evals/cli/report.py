"""`python -m evals report TABLE`: the paper's table from the newest runs that fit each other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Puts a table of the paper together from the newest paper-scale runs in OUT/runs that share a protocol, in the paper's
layout, with the published figures beside the measured ones; what is lacking stands there as "not measured", with the
command that measures it. Writes OUT/tables/TABLE.md, .tex and .html. Exit status: 0 all measured, 1 something is
lacking, 2 it could not be made.
"""


def main(argv: list[str]) -> int:
    """See DESCRIPTION."""
    from evals.config import PAPER_TABLES

    parser = argparse.ArgumentParser(
        prog="python -m evals report", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", metavar="TABLE", help=", ".join(PAPER_TABLES))
    parser.add_argument("--out", type=Path, default=Path("results"), help="the runs' store [results]")
    parser.add_argument("--protocol", metavar="HASH", help="take this protocol instead of the newest run's")
    try:
        args = parser.parse_args(argv)
    except SystemExit as done:
        return int(done.code or 0)

    from evals.report.paper import assemble, read_runs
    from evals.report.paper_text import render, write_paper_table
    from evals.store import StoreError
    from lactok.registry import unknown

    if args.table not in PAPER_TABLES:
        print(f"error: {unknown('table', args.table, list(PAPER_TABLES))}", file=sys.stderr)
        return 2
    runs, unreadable = read_runs(args.out)
    hashes = dict.fromkeys(found.run.protocol_hash for found in runs)
    if args.protocol and args.protocol not in hashes:
        known = ", ".join(hashes) or "none"
        print(f"error: no run in {args.out}/runs has protocol {args.protocol}; there: {known}", file=sys.stderr)
        return 2
    table = assemble(args.table, runs, args.protocol)
    try:
        paths = write_paper_table(table, args.out / "tables")
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(render(table, "md"))
    print("\n".join(map(str, paths)))
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    total = sum(len(row.cells) for row in table.rows)
    if table.measured < total:
        print(f"{total - table.measured} of {total} figures are not measured", file=sys.stderr)
    return 0 if table.measured == total else 1
