"""`python -m evals compare RUN_A RUN_B`: paired tests between tokenizers' rows of two runs, or of one."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evals import record
from evals.record import ColumnRecord, RowRecord, RunRecord

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DESCRIPTION = """\
Compares tokenizers picture by picture: what changed between both rows (configuration, versions, weights), and for every
per-picture metric the mean difference (second less first), its paired bootstrap 95 % interval, clustered by source, and
the share of pictures that the second one won. Distances between sets, such as rFID, have no paired test; both figures
are shown. RUN_A and RUN_B are folders of runs (results/runs/...), which may be one and the same.

    python -m evals compare RUN_A RUN_B                              every tokenizer that both runs have
    python -m evals compare RUN_A RUN_B --tokenizer llamagen         one of them
    python -m evals compare RUN RUN --tokenizer llamagen titok       titok against llamagen

Exit status: 0 compared, 2 they can't be compared (other protocol, other pictures).
"""


class NotComparable(ValueError):
    """Two rows between which no paired test is defined; the message says why and the way out."""


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, record, and per-picture values (one line a row, a sample and a decoding)."""

    folder: Path
    record: RunRecord
    values: pd.DataFrame


@dataclass(frozen=True)
class Paired:
    """Second less first over the same pictures. mean: of the differences, None where no picture has both finite.

    low, high: its 95 % interval, None with fewer than three sources; won: share of pictures on which the second is
    better, ties half, None where the metric has no direction; left_out: pictures where either is infinite.
    """

    column: str
    mean: float | None
    low: float | None
    high: float | None
    won: float | None
    count: int
    left_out: int


def load(folder: Path) -> Run:
    """A run of a folder. Raises NotComparable where a file is missing or broken."""
    import pandas as pd

    for name in ("run.json", "per_image.parquet"):
        if not (folder / name).is_file():
            raise NotComparable(f"{folder} holds no {name}: expected the folder of a finished run (results/runs/...)")
    try:
        return Run(folder, record.read(folder / "run.json"), pd.read_parquet(folder / "per_image.parquet"))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise NotComparable(f"{folder} can't be read ({error}): give the run's command again") from error


def same_conditions(a: RunRecord, b: RunRecord) -> None:
    """Raises NotComparable unless both runs saw the same pictures in the same way."""
    if a.protocol_hash != b.protocol_hash:
        fields = [k for k in sorted({*a.protocol, *b.protocol}) if a.protocol.get(k) != b.protocol.get(k)]
        changed = ", ".join(f"{k}: {a.protocol.get(k)} and {b.protocol.get(k)}" for k in fields)
        raise NotComparable(f"protocols {a.protocol_hash} and {b.protocol_hash} differ ({changed}): run both alike")
    if a.dataset_fingerprint != b.dataset_fingerprint:
        seen = [f"{r.pictures:,} of {r.dataset}, fingerprint {r.dataset_fingerprint[:12]}" for r in (a, b)]
        raise NotComparable(f"the pictures differ ({' and '.join(seen)}): run both on the same dataset with one limit")


def row_of(run: Run, label: str) -> RowRecord:
    """A measured row by its label. Raises NotComparable for an unknown one and one without figures."""
    for row in run.record.rows:
        if row.label == label:
            if row.status != "ok":
                raise NotComparable(f"{label} has no figures in {run.folder}: {row.status}: {row.error}")
            return row
    known = ", ".join(r.label for r in run.record.rows if r.status == "ok") or "none"
    raise NotComparable(f"{run.folder} has no row {label!r}; with figures: {known}")


def row_values(frame: pd.DataFrame, label: str) -> pd.DataFrame:
    """A row's per-picture values by sample, their mean over decodings."""
    part = frame[frame["row"] == label].drop(columns=["row", "decoding"])
    return part.groupby(["sample", "cluster"], sort=True).mean().reset_index("cluster")


def paired(a: pd.DataFrame, b: pd.DataFrame, columns: list[ColumnRecord]) -> list[Paired]:
    """One test a per-picture column that both have. a, b: of `row_values`, over the same samples."""
    if not a.index.equals(b.index):
        raise NotComparable(f"per_image.parquet: {len(a)} and {len(b)} pictures that are not the same: run both again")
    return [_test(a, b, c) for c in columns if c.per_image and c.name in a and c.name in b]


def _test(a: pd.DataFrame, b: pd.DataFrame, column: ColumnRecord) -> Paired:
    import numpy as np

    from evals.metrics.intervals import cluster_bootstrap

    first, second = a[column.name].to_numpy(float), b[column.name].to_numpy(float)
    finite = np.isfinite(first) & np.isfinite(second)
    count, left_out = int(finite.sum()), int((~finite).sum())
    if not count:
        return Paired(column.name, None, None, None, None, 0, left_out)
    first, second = first[finite], second[finite]
    low, high = cluster_bootstrap(second - first, list(a["cluster"][finite]))
    return Paired(column.name, float((second - first).mean()), low, high, _won(first, second, column), count, left_out)


def _won(first: np.ndarray, second: np.ndarray, column: ColumnRecord) -> float | None:
    if column.better is None:
        return None
    if column.better == "zero":
        first, second = -abs(first), -abs(second)
    gain = first - second if column.better == "lower" else second - first
    return float((gain > 0).mean() + 0.5 * (gain == 0).mean())


def changes(a: RunRecord, b: RunRecord, row_a: RowRecord, row_b: RowRecord) -> list[str]:
    """What differs in configuration, versions, options, weights, code and device, a line each."""
    pairs = (
        ("config", a.config, b.config),
        ("version", a.versions, b.versions),
        ("option", row_a.options, row_b.options),
    )
    lines = [
        f"{kind} {key}: {x.get(key)} -> {y.get(key)}"
        for kind, x, y in pairs
        for key in sorted({*x, *y})
        if x.get(key) != y.get(key)
    ]
    if row_a.label != row_b.label:
        lines.insert(0, f"tokenizer: {row_a.label} -> {row_b.label}")
    if [w.sha256 for w in row_a.weights] != [w.sha256 for w in row_b.weights]:
        lines.append(f"weights: {_weights(row_a)} -> {_weights(row_b)}")
    for name in ("code_revision", "device"):
        if getattr(a, name) != getattr(b, name):
            lines.append(f"{name}: {getattr(a, name)} -> {getattr(b, name)}")
    return lines


def _weights(row: RowRecord) -> str:
    return ", ".join(f"{w.source} sha256 {w.sha256[:12]}" for w in row.weights) or "none"


def report(a: Run, b: Run, label_a: str, label_b: str) -> str:
    """The comparison of two rows as text. Raises NotComparable."""
    row_a, row_b = row_of(a, label_a), row_of(b, label_b)
    values_a, values_b = row_values(a.values, label_a), row_values(b.values, label_b)
    tests = paired(values_a, values_b, a.record.columns)
    title = f"{label_b} less {label_a}" if label_a != label_b else label_a
    lines = [f"{title}, {len(values_a):,} pictures of {a.record.dataset}, protocol {a.record.protocol_hash}"]
    lines += [f"  {line}" for line in changes(a.record, b.record, row_a, row_b)] or ["  nothing else changed"]
    lines += [_line(test) for test in tests]
    lines += [line for c in a.record.columns if not c.per_image and (line := _set_line(c, row_a, row_b))]
    return "\n".join(lines)


def _line(test: Paired) -> str:
    if test.mean is None:
        return f"  {test.column}: no picture where both are finite"
    interval = "no interval: fewer than 3 sources"
    if test.low is not None:
        interval = f"95 % [{test.low:+.4g}, {test.high:+.4g}]"
    won = "" if test.won is None else f", won {100 * test.won:.1f} %"
    left = f", {test.left_out} infinite left out" if test.left_out else ""
    return f"  {test.column}: {test.mean:+.4g}, {interval}{won}{left}"


def _set_line(column: ColumnRecord, row_a: RowRecord, row_b: RowRecord) -> str:
    from evals.metrics.intervals import RFID_EVIDENCE, RFID_EVIDENCE_N

    a, b = row_a.cells.get(column.name), row_b.cells.get(column.name)
    if a is None or b is None or not all(v.value is not None and math.isfinite(v.value) for v in (a, b)):
        return ""
    difference = b.value - a.value
    small = column.name == "rFID" and (a.count or 0) <= RFID_EVIDENCE_N and abs(difference) < RFID_EVIDENCE
    weak = f"; no evidence, under {RFID_EVIDENCE} at N = {a.count}" if small else ""
    return f"  {column.name}: {a.value:.4g} -> {b.value:.4g}, {difference:+.4g} (of the whole set: not paired{weak})"


def _chosen(a: Run, b: Run, names: list[str] | None) -> list[tuple[str, str]]:
    """The pairs of labels to compare. Raises NotComparable."""
    if names:
        return [(names[0], names[-1])]
    ok = {r.label for r in b.record.rows if r.status == "ok"}
    shared = [(r.label, r.label) for r in a.record.rows if r.status == "ok" and r.label in ok]
    if not shared:
        raise NotComparable("the runs share no row with figures: name two by --tokenizer A_NAME B_NAME")
    return shared


def main(argv: list[str]) -> int:
    """See DESCRIPTION."""
    parser = argparse.ArgumentParser(
        prog="python -m evals compare", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A")
    parser.add_argument("run_b", type=Path, metavar="RUN_B")
    parser.add_argument(
        "--tokenizer", nargs="+", metavar="NAME", help="a row of both runs, or one of RUN_A and one of RUN_B"
    )
    try:
        args = parser.parse_args(argv)
        if args.tokenizer and len(args.tokenizer) > 2:
            parser.error(f"--tokenizer: {len(args.tokenizer)} names: expected one or two")
    except SystemExit as done:
        return int(done.code or 0)
    try:
        a = load(args.run_a)
        b = a if args.run_b == args.run_a else load(args.run_b)
        same_conditions(a.record, b.record)
        print("\n\n".join(report(a, b, *labels) for labels in _chosen(a, b, args.tokenizer)))
    except NotComparable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
