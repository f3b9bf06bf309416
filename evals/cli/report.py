"""`python -m evals report TABLE`: the paper's table from the newest runs that fit each other; RUN: a run's page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from evals.cli.arguments import as_options

DESCRIPTION = """\
Puts a table of the paper together from the newest paper-scale runs in OUT/runs that share a protocol, in the paper's
layout, each figure compared with the published one; what is missing stands there as "not measured", with the command
that measures it. Writes OUT/tables/TABLE.md, .tex and .html. Exit status: 0 all measured, 1 something is missing, 2 it
could not be made.

    python -m evals report table1 out=results [protocol=HASH]

RUN, the folder of a finished run whose store OUT/cache is still there: writes its page, report.html, anew. Nothing is
measured. Exit status: 0 written, 2 it could not be.

    python -m evals report results/runs/RUN
"""


class ReportError(Exception):
    """The table can't be made; the message says what is there instead."""


def main(argv: list[str]) -> int:
    """See DESCRIPTION."""
    from evals.suites.catalog import PAPER_TABLES

    parser = argparse.ArgumentParser(
        prog="python -m evals report", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", metavar="TABLE|RUN", help=f"{', '.join(PAPER_TABLES)}, or a run's folder")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder of cache and runs [results]")
    parser.add_argument("--protocol", metavar="HASH", help="take this protocol instead of the newest run's")
    try:
        args = parser.parse_args(as_options(argv, ("out", "protocol")))
    except SystemExit as done:
        return int(done.code or 0)

    from evals.engine.store import StoreError
    from lactok.registry import unknown

    if args.table not in PAPER_TABLES and (os.sep in args.table or Path(args.table).exists()):
        return _page(Path(args.table))
    if args.table not in PAPER_TABLES:
        print(f"error: {unknown('table', args.table, list(PAPER_TABLES))}", file=sys.stderr)
        return 2
    try:
        return write(args.table, args.out, args.protocol)
    except (ReportError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _page(folder: Path) -> int:
    """Write a run's page anew and print its path."""
    from evals.cli.compare import NotComparable
    from evals.config import ConfigError
    from evals.datasets.base import DatasetError
    from evals.engine.reopen import NotReopened
    from evals.engine.store import StoreError
    from evals.record import RecordError
    from evals.report.output import page_again
    from lactok.registry import RegistryError

    try:
        print(page_again(folder))
    except (
        NotComparable, NotReopened, RecordError, ConfigError, DatasetError, RegistryError, StoreError, OSError
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(name: str, out: Path, protocol: str | None = None) -> int:
    """Write the table `name` of the runs in `out` to OUT/tables and print it; 0 when all is measured, else 1.

    protocol: the hash to take, by default the newest run's. Raises ReportError when no run has it or none can be read,
    and StoreError.
    """
    from evals.report.paper import assemble, read_runs
    from evals.report.paper_text import render, write_paper_table

    if not (out / "runs").is_dir():
        raise ReportError(f"{out} holds no runs (absolute: {out.absolute()}): name the folder that runs had as out=DIR")
    runs, unreadable = read_runs(out)
    if unreadable and not runs:
        raise ReportError("\n".join(unreadable))
    hashes = dict.fromkeys(found.run.protocol_hash for found in runs)
    if protocol and protocol not in hashes:
        raise ReportError(f"no run in {out}/runs has protocol {protocol}; there: {', '.join(hashes) or 'none'}")
    table = assemble(name, runs, protocol)
    paths = write_paper_table(table, out / "tables")
    print(render(table, "md"))
    print("\n".join(map(str, paths)))
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    total = sum(len(row.cells) for row in table.rows)
    if table.measured < total:
        print(f"{total - table.measured} of {total} figures are not measured", file=sys.stderr)
    return 0 if table.measured == total else 1
