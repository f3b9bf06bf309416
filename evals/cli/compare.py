"""`python -m evals compare RUN_A RUN_B`: paired tests between rows of two runs, or of one."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import record
from evals.cli.arguments import as_options
from evals.record import ColumnRecord, Origin, RowRecord, RunRecord, Value
from lactok.files import WriteError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DESCRIPTION = """\
Compares rows item by item (image or prompt): what changed between both (configuration, the processes that made the
artifacts, weights), and for every per-image metric the mean difference (second less first), its paired bootstrap 95 %
interval, clustered by source, and the share of items that the second one won. Figures of a whole set, such as Frechet
distances, have no paired test; both are shown. RUN_A and RUN_B are folders of runs (results/runs/...), which may be one
and the same.

    python -m evals compare RUN_A RUN_B                         every row that both runs have
    python -m evals compare RUN_A RUN_B row=llamagen            one of them
    python -m evals compare RUN row=llamagen,titok              titok against llamagen (RUN_B is RUN_A)
    python -m evals compare RUN all=true                        every pair, p-values adjusted for their number
    python -m evals compare RUN all=true out=DIR                the same as files: DIR/compare.md, .tex and .csv, the
                                                                figure compare.png, and largest.csv, the items on
                                                                which each pair differs most

Below each metric stand the items on which both differ most (images=N of them [3]; 10 in largest.csv).

A row is named as in its run's table, or as on the command line: llamagen is llamagen-mini where the run has that alone.
Exit status: 0 compared, 2 they can't be compared (another protocol, other items).
"""


# Items that differ most: named below a metric, and in largest.csv.
NAMED, IN_FILES = 3, 10


class NotComparable(ValueError):
    """Two rows between which no paired test is defined; the message says why and the way out."""


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, record, and per-image values (one line a row, an item and a seed index)."""

    folder: Path
    record: RunRecord
    values: pd.DataFrame


@dataclass(frozen=True)
class Paired:
    """Second less first over the same items. mean: of the differences, None where no item has both finite.

    low, high: its 95 % interval, p: of a test that flips the signs of whole sources; None with fewer than three.
    tied: share of items on which both are equal; won: share of items on which the second is better,
    ties half, None where the metric has no direction; infinite, refused: items left out because either is infinite, or
    was refused by either model.
    """

    column: str
    mean: float | None
    low: float | None
    high: float | None
    won: float | None
    tied: float
    p: float | None
    count: int
    infinite: int
    refused: int


@dataclass(frozen=True)
class Compared:
    """A test of a pair. holm: its p adjusted by Holm over all pairs of the column; largest: (item, value of the first,
    value of the second) where both differ most, the largest difference first."""

    first: str
    second: str
    test: Paired
    holm: float | None
    largest: list[tuple[str, float, float]]


def load(folder: Path) -> Run:
    """A run of a folder. Raises NotComparable where a file is missing or broken, RecordError for another run.json."""
    import pandas as pd

    for name in ("run.json", "per_image.parquet"):
        if not (folder / name).is_file():
            raise NotComparable(f"{folder} holds no {name}: expected the folder of a finished run (results/runs/...)")
    found = record.read(folder / "run.json")
    try:
        values = pd.read_parquet(folder / "per_image.parquet")
    except (ValueError, OSError) as error:
        raise NotComparable(f"{folder}/per_image.parquet can't be read ({error}): run its command again") from error
    expected = ["row", "item", "cluster", "seed_index"]
    if len(values) and not set(expected) <= set(values):
        raise NotComparable(
            f"{folder}/per_image.parquet has columns {', '.join(values)}: expected {', '.join(expected)} and one a "
            "metric; run its command again"
        )
    _check_values(folder, found, values)
    return Run(folder, found, values)


def _check_values(folder: Path, found: RunRecord, values: pd.DataFrame) -> None:
    """Raises NotComparable where the values are of another run than the record."""
    names = [column.name for column in found.columns if column.per_image]
    counts = values.groupby("row")["item"].nunique() if len(values) else {}
    for row in found.rows if names else ():
        empty = bool(row.cells) and all(row.cells.get(name, Value(0.0)).value is None for name in names)
        if row.status == "ok" and not empty and (seen := int(counts.get(row.label, 0))) != found.items:
            raise NotComparable(
                f"{folder}/per_image.parquet is not of this run.json: it has {seen:,} {found.unit} of the row "
                f"{row.label}, the record {found.items:,}; run its command again"
            )


def same_conditions(a: RunRecord, b: RunRecord) -> None:
    """Raises NotComparable unless both runs saw the same items in the same way."""
    if a.protocol_hash != b.protocol_hash:
        fields = [k for k in sorted({*a.protocol, *b.protocol}) if a.protocol.get(k) != b.protocol.get(k)]
        changed = ", ".join(f"{k}: {a.protocol.get(k)} and {b.protocol.get(k)}" for k in fields)
        raise NotComparable(f"protocols {a.protocol_hash} and {b.protocol_hash} differ ({changed}): run both alike")
    if a.dataset_fingerprint != b.dataset_fingerprint:
        seen = [f"{r.items:,} {r.unit} of {r.dataset}, fingerprint {r.dataset_fingerprint[:12]}" for r in (a, b)]
        raise NotComparable(f"the {a.unit} differ ({' and '.join(seen)}): run both on the same dataset with one limit")


def row_of(run: Run, label: str) -> RowRecord:
    """A measured row by its label, or by the name that a command line has for it where that is one row alone.

    Raises NotComparable for an unknown or ambiguous one and one without figures.
    """
    found = [row for row in run.record.rows if row.label == label] or _meant(run.record.rows, label)
    if len(found) > 1:
        raise NotComparable(f"{run.folder}: {label!r} is {' or '.join(row.label for row in found)}: name one of them")
    if not found:
        known = ", ".join(r.label for r in run.record.rows if r.status == "ok") or "none"
        raise NotComparable(f"{run.folder} has no row {label!r}; with figures: {known}")
    (row,) = found
    if row.status != "ok":
        raise NotComparable(f"{row.label} has no figures in {run.folder}: {row.status}: {row.error}")
    return row


def _meant(rows: Sequence[RowRecord], label: str) -> list[RowRecord]:
    """The rows of a model by another of its names: an alias, the miniature's without its ending, without options."""
    from lactok.registry import canonical

    names = {canonical("tokenizers", label), label}
    names |= {f"{name}-mini" for name in names}
    bracket = label.partition("[")
    if bracket[1]:
        return [row for row in rows if row.label == f"{bracket[0]}-mini[{bracket[2]}"]
    return [row for row in rows if row.name in names or row.label in names]


def row_values(frame: pd.DataFrame, label: str) -> pd.DataFrame:
    """A row's per-image values by item, their mean over seed indices; NaN where one of them was refused."""
    part = frame[frame["row"] == label].drop(columns=["row", "seed_index"], errors="ignore")
    if part.empty:  # of a run without a metric of single images; earlier versions wrote no clusters there
        return part.set_index("item").assign(cluster=[])
    return part.groupby(["item", "cluster"], sort=True).mean(skipna=False).reset_index("cluster")


def paired(a: pd.DataFrame, b: pd.DataFrame, columns: list[ColumnRecord]) -> list[Paired]:
    """One test a per-image column that both have. a, b: of `row_values`, over the same items."""
    if not a.index.equals(b.index):
        raise NotComparable(f"per_image.parquet: {len(a)} and {len(b)} items that are not the same: run both again")
    if not a["cluster"].equals(b["cluster"]):
        raise NotComparable("per_image.parquet: sources are other groups of images (dataset.cluster): run both again")
    return [_test(a, b, c) for c in columns if c.per_image and c.name in a and c.name in b]


def _test(a: pd.DataFrame, b: pd.DataFrame, column: ColumnRecord) -> Paired:
    import numpy as np

    from evals.metrics.intervals import cluster_bootstrap, sign_flip_p

    first, second = a[column.name].to_numpy(float), b[column.name].to_numpy(float)
    finite = np.isfinite(first) & np.isfinite(second)
    refused = int((np.isnan(first) | np.isnan(second)).sum())
    count, infinite = int(finite.sum()), int((~finite).sum()) - refused
    if not count:
        return Paired(column.name, None, None, None, None, 0.0, None, 0, infinite, refused)
    first, second = first[finite], second[finite]
    clusters = list(a["cluster"][finite])
    low, high = cluster_bootstrap(second - first, clusters)
    won, p = _won(first, second, column), sign_flip_p(second - first, clusters)
    mean, tied = float((second - first).mean()), float((first == second).mean())
    return Paired(column.name, mean, low, high, won, tied, p, count, infinite, refused)


def _won(first: np.ndarray, second: np.ndarray, column: ColumnRecord) -> float | None:
    if column.better is None:
        return None
    if column.better == "zero":
        first, second = -abs(first), -abs(second)
    gain = first - second if column.better == "lower" else second - first
    return float((gain > 0).mean() + 0.5 * (gain == 0).mean())


def changes(a: RunRecord, b: RunRecord, row_a: RowRecord, row_b: RowRecord) -> list[str]:
    """What differs in configuration, options, weights and the processes that made both rows' artifacts, a line each."""
    pairs: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (
        ("config", a.config, b.config),
        ("option", row_a.options, row_b.options),
        ("setting", row_a.settings, row_b.settings),
        ("version", made_with(row_a, _versions), made_with(row_b, _versions)),
        ("made", made_with(row_a, _facts), made_with(row_b, _facts)),
    )
    lines = [
        f"{kind} {key}: {x.get(key)} -> {y.get(key)}"
        for kind, x, y in pairs
        for key in sorted({*x, *y})
        if x.get(key) != y.get(key)
    ]
    if row_a.label != row_b.label:
        lines.insert(0, f"row: {row_a.label} -> {row_b.label}")
    if [w.sha256 for w in row_a.weights] != [w.sha256 for w in row_b.weights]:
        lines.append(f"weights: {_weights(row_a)} -> {_weights(row_b)}")
    return lines


def made_with(row: RowRecord, facts: Callable[[Origin], Mapping[str, str]]) -> dict[str, str]:
    """What the processes that made a row's artifacts say, by name; "x, y" where they differ."""
    found: dict[str, dict[str, None]] = {}
    for origin in row.origins:
        for name, value in facts(origin).items():
            found.setdefault(name, {})[value] = None
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _versions(origin: Origin) -> Mapping[str, str]:
    return origin.versions


def _facts(origin: Origin) -> Mapping[str, str]:
    return {"by code": origin.code_revision, "on device": origin.device, "with threads": str(origin.threads)}


def _weights(row: RowRecord) -> str:
    return ", ".join(f"{w.source} sha256 {w.sha256[:12]}" for w in row.weights) or "none"


def report(a: Run, b: Run, label_a: str, label_b: str, images: int = 0) -> str:
    """The comparison of two rows as text. images: how many of the items that differ most are named below a metric.

    Raises NotComparable.
    """
    row_a, row_b = row_of(a, label_a), row_of(b, label_b)
    values_a, values_b = row_values(a.values, label_a), row_values(b.values, label_b)
    tests = paired(values_a, values_b, a.record.columns)
    title = f"{label_b} less {label_a}" if label_a != label_b else label_a
    count = len(values_a) or a.record.items
    lines = [f"{title}, {count:,} {a.record.unit} of {a.record.dataset}, protocol {a.record.protocol_hash}"]
    lines += [f"  {line}" for line in changes(a.record, b.record, row_a, row_b)] or ["  nothing else changed"]
    for test in tests:
        lines.append(_line(test))
        if items := largest(values_a, values_b, test.column, images):
            shown = ", ".join(f"{item} {x:.4g} -> {y:.4g}" for item, x, y in items)
            lines.append(f"    differing most: {shown}")
    lines += [line for c in a.record.columns if not c.per_image and (line := _set_line(c, row_a, row_b))]
    return "\n".join(lines)


def _line(test: Paired) -> str:
    if test.mean is None:
        return f"  {test.column}: no item where both are finite"
    interval = "no interval: fewer than 3 sources"
    if test.low is not None:
        interval = f"95 % [{test.low:+.4g}, {test.high:+.4g}]"
    won = "" if test.won is None else f", won {100 * test.won:.1f} %"
    won += f", tied {100 * test.tied:.1f} %" if test.tied else ""
    won += f", p {test.p:.2g}" if test.p is not None else ""
    reasons = [f"{n} {why}" for n, why in ((test.infinite, "infinite"), (test.refused, "refused")) if n]
    left = f", {' and '.join(reasons)} left out" if reasons else ""
    return f"  {test.column}: {test.mean:+.4g}, {interval}{won}{left}"


def _set_line(column: ColumnRecord, row_a: RowRecord, row_b: RowRecord) -> str:
    """Both figures of a whole set, with what the record says of their worth; "" where one is missing."""
    a, b = row_a.cells.get(column.name, Value(None)), row_b.cells.get(column.name, Value(None))
    if a.value is None or b.value is None or not (math.isfinite(a.value) and math.isfinite(b.value)):
        return ""
    notes = "".join(f"; {note}" for note in dict.fromkeys((a.note, b.note)) if note)
    change = f"{a.value:.4g} -> {b.value:.4g}, {b.value - a.value:+.4g}"
    return f"  {column.name}: {change} (of the whole set: not paired{notes})"


def largest(a: pd.DataFrame, b: pd.DataFrame, column: str, count: int) -> list[tuple[str, float, float]]:
    """The `count` items on which both rows' finite values differ most: (item, first, second); equal ones are none.

    a, b: of `row_values`, over the same items.
    """
    import numpy as np

    both = np.stack([a[column].to_numpy(float), b[column].to_numpy(float)])
    kept = np.flatnonzero(np.isfinite(both).all(axis=0) & (both[0] != both[1]))
    order = kept[np.argsort(-abs(both[1, kept] - both[0, kept]), kind="stable")][:count]
    return [(str(a.index[i]), float(both[0, i]), float(both[1, i])) for i in order]


def compared(pairs: Sequence[tuple[Run, str, Run, str]], count: int) -> list[Compared]:
    """Every per-image metric of each pair (run, label of the first; of the second), by metric, with Holm's p over the
    pairs and the `count` items that differ most. Raises NotComparable."""
    from evals.metrics.intervals import holm

    found: dict[str, list[tuple[str, str, Paired, list[tuple[str, float, float]]]]] = {}
    kept: dict[tuple[Path, str], pd.DataFrame] = {}
    for a, first, b, second in pairs:
        for run, label in ((a, first), (b, second)):
            if (run.folder, label) not in kept:
                kept[run.folder, label] = row_values(run.values, label)
        one, other = kept[a.folder, first], kept[b.folder, second]
        names = (first, second) if a is b else (f"{first} of {a.folder.name}", f"{second} of {b.folder.name}")
        for test in paired(one, other, a.record.columns):
            found.setdefault(test.column, []).append((*names, test, largest(one, other, test.column, count)))
    tests = []
    for of_column in found.values():
        adjusted = iter(holm([test.p for _, _, test, _ in of_column if test.p is not None]))
        for first, second, test, items in of_column:
            tests.append(Compared(first, second, test, next(adjusted) if test.p is not None else None, items))
    return tests


def pairs_of(run: Run) -> list[tuple[Run, str, Run, str]]:
    """Every pair of a run's rows. Raises NotComparable where fewer than two have figures."""
    from itertools import combinations

    labels = [row.label for row in run.record.rows if row.status == "ok"]
    if len(labels) < 2:
        raise NotComparable(f"{run.folder} has {len(labels)} row(s) with figures: expected two or more")
    return [(run, first, run, second) for first, second in combinations(labels, 2)]


def all_pairs(run: Run, tests: Sequence[Compared]) -> str:
    """Every pair of a run's rows as text, a block a per-image metric, p-values adjusted by Holm over its pairs."""
    lines = [
        f"{run.record.items:,} {run.record.unit} of {run.record.dataset}; second less first; "
        "p adjusted by Holm over a block"
    ]
    column = ""
    for one in tests:
        if one.test.column != column:
            column = one.test.column
            lines.append(f"\n{column}")
        holms = "" if one.holm is None else f", Holm's p {one.holm:.2g}"
        lines.append(f"  {one.second} less {one.first}: {_line(one.test).partition(': ')[2]}{holms}")
    return "\n".join(lines)


def _chosen(a: Run, b: Run, names: list[str] | None) -> list[tuple[str, str]]:
    """The pairs of labels to compare. Raises NotComparable."""
    if names:
        return [(row_of(a, names[0]).label, row_of(b, names[-1]).label)]
    ok = {r.label for r in b.record.rows if r.status == "ok"}
    shared = [(r.label, r.label) for r in a.record.rows if r.status == "ok" and r.label in ok]
    if not shared:
        raise NotComparable("the runs share no row with figures: name two by row=A_NAME,B_NAME")
    return shared


def main(argv: list[str]) -> int:
    """See DESCRIPTION."""
    parser = argparse.ArgumentParser(
        prog="python -m evals compare", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A")
    parser.add_argument(
        "run_b", type=Path, metavar="RUN_B", nargs="?", help="by default RUN_A, with two rows or all=true"
    )
    parser.add_argument("--all", action="store_true", help="every pair of RUN_A's rows, with Holm-adjusted p-values")
    parser.add_argument(
        "--row",
        "--tokenizer",
        nargs="+",
        metavar="NAME",
        dest="row",
        help="a row of both runs, or one of RUN_A and one of RUN_B",
    )
    parser.add_argument("--out", type=Path, help="a new folder for the tests as tables, CSV and a figure")
    parser.add_argument("--images", type=int, default=NAMED, help="how many items that differ most are named [3]")
    try:
        args = parser.parse_args(as_options(argv, ("out", "images"), ("row", "tokenizer"), ("all",)))
        if args.images < 0:
            parser.error(f"images={args.images}: expected 0 or more")
        if args.row and len(args.row) > 2:
            parser.error(f"row: {len(args.row)} names: expected one or two")
        if args.all and (args.row or args.run_b):
            parser.error("all=true compares all rows of one run: leave RUN_B and row out")
        if not args.all and args.run_b is None:
            if len(args.row or ()) < 2:
                parser.error("RUN_B is missing: name a second run, or two rows of one by row=A,B, or all=true")
            args.run_b = args.run_a
    except SystemExit as done:
        return int(done.code or 0)
    try:
        a = load(args.run_a)
        if args.all:
            pairs = pairs_of(a)
        else:
            b = a if args.run_b == args.run_a else load(args.run_b)
            same_conditions(a.record, b.record)
            pairs = [(a, first, b, second) for first, second in _chosen(a, b, args.row)]
        tests = compared(pairs, max(args.images, IN_FILES)) if args.all or args.out else []
        if args.all:
            print(all_pairs(a, tests))
        else:
            print("\n\n".join(report(x, y, first, second, args.images) for x, first, y, second in pairs))
        if args.out:
            from evals.report.pairs import write_pairs

            title = f"{a.record.items:,} {a.record.unit} of {a.record.dataset}, protocol {a.record.protocol_hash}"
            print("\n" + "\n".join(map(str, write_pairs(tests, a.record.columns, title, args.out))))
    except (NotComparable, record.RecordError, WriteError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
