"""`python -m evals power RUN`: how many images or prompts tell a given difference, from a run's own variance."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from evals import record
from evals.cli.arguments import as_options
from evals.cli.compare import NotComparable, load, row_of, row_values

DESCRIPTION = """\
How many independent sources (images, photographs, prompts) a paired comparison needs: a two-sided test of level 0.05
finds a mean difference of that size with a probability of 0.8. The variance is that of the run's own rows: of the
differences between two rows, or, with one row, of twice its own (two systems whose values have nothing in common, the
worst case).

    python -m evals power RUN row=llamagen,lactok-h                              for the difference that was seen
    python -m evals power RUN row=llamagen,lactok-h difference=0.01
    python -m evals power RUN row=lactokgen-t-mini metric=GenEval-small-images difference=0.05

Exit status: 0 computed, 2 it can't be (no such row or metric, fewer than three sources).
"""


@dataclass(frozen=True)
class Need:
    """column: the metric; deviation: standard deviation of a source's mean difference; seen: the mean difference, None
    with one row; difference: the one to be told; needed: sources; here: sources of the run."""

    column: str
    deviation: float
    seen: float | None
    difference: float
    needed: int
    here: int


def needs(folder: Path, labels: list[str], metric: str | None, difference: float | None) -> list[Need]:
    """A line for each per-image metric, or the named one. Raises NotComparable."""
    import numpy as np

    from evals.metrics.intervals import MIN_CLUSTERS, items_needed

    run = load(folder)
    first, *rest = [row_values(run.values, row_of(run, label).label) for label in labels]
    columns = [c.name for c in run.record.columns if c.per_image and c.name in first]
    if not columns or (metric is not None and metric not in columns):
        named = f" {metric!r}" if metric else ""
        raise NotComparable(f"{folder} has no per-image metric{named}; it has {', '.join(columns) or 'none'}")
    found, too_few = [], []
    for name in [metric] if metric else columns:
        values = rest[0][name] - first[name] if rest else first[name]
        kept = np.isfinite(values.to_numpy(float))
        means = values[kept].groupby(first["cluster"][kept]).mean()
        if len(means) < MIN_CLUSTERS:
            too_few.append(f"{name}: {len(means)} source(s) with finite values, expected at least {MIN_CLUSTERS}")
            continue
        seen = float(values[kept].mean()) if rest else None
        deviation = float(means.std(ddof=1)) * (1.0 if rest else 2**0.5)
        wanted = abs(difference if difference is not None else seen or 0.0)
        if not wanted:
            if metric or difference is not None:
                raise NotComparable(f"{name}: the difference is 0; name one by difference=D")
            continue  # equal rows: nothing to tell
        found.append(Need(name, deviation, seen, wanted, items_needed(deviation, wanted), len(means)))
    if not found and too_few:
        raise NotComparable("; ".join(too_few))
    for line in too_few:
        print(line, file=sys.stderr)
    return found


def main(argv: list[str]) -> int:
    """See DESCRIPTION."""
    parser = argparse.ArgumentParser(
        prog="python -m evals power", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--row", nargs="+", required=True, metavar="NAME", help="one row, or two that are compared")
    parser.add_argument("--metric", help="one per-image column; default: all")
    parser.add_argument("--difference", type=float, help="that is to be told; default: the one between both rows")
    try:
        args = parser.parse_args(as_options(argv, ("metric", "difference"), ("row",)))
        if len(args.row) > 2:
            parser.error(f"row: {len(args.row)} names: expected one or two")
        if len(args.row) == 1 and args.difference is None:
            parser.error("with one row name the difference=D that is to be told")
    except SystemExit as done:
        return int(done.code or 0)
    try:
        lines = needs(args.run, args.row, args.metric, args.difference)
    except (NotComparable, record.RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for need in lines:
        seen = "" if need.seen is None else f"; seen {need.seen:+.4g}"
        print(
            f"{need.column}: {need.needed:,} sources tell a difference of {need.difference:.4g} (this run has "
            f"{need.here:,}; standard deviation of a source {need.deviation:.4g}{seen})"
        )
    return 0
