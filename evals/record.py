"""run.json: the typed record of a run. Written by the engine, read by reports; imports no torch.

Every field is plain JSON; infinities are the strings "inf" and "-inf", missing values are null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass
class ColumnRecord:
    """One column of the table: see evals.metrics.base.Column for the fields; per_image: a mean over pictures.

    A column with unit "%" holds fractions; the shown table multiplies by 100.
    """

    name: str
    better: Literal["higher", "lower", "zero"] | None
    digits: int = 3
    unit: str = ""
    note: str = ""
    per_image: bool = False


@dataclass
class Value:
    """One cell. low, high: 95 % interval, None where none was computed. count: pictures that entered.

    infinite: identical pictures whose PSNR is +inf (counted, not averaged). seeds: standard deviation over decoder
    seeds, None with one seed. note: what a reader must know of this figure ("N=208 < 2048 dims: biased").
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    infinite: int = 0
    seeds: float | None = None
    note: str = ""


@dataclass
class WeightsRecord:
    """A checkpoint that a row used: where it came from, its file's sha256, whether that was pinned or only recorded."""

    source: str
    sha256: str
    pinned: bool


@dataclass
class RowRecord:
    """One row: a tokenizer with its options.

    label: what the table shows; name: the registered name; options: non-default ones.
    status: "ok", "missing" (weights not here), "failed"; error: the message, for the last two.
    cells: column name to Value. conditions: precision, effective batch sizes, threads, seeds, device.
    input_size, output_size: native pixels, None: evaluation size. training: compute, as text.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    status: Literal["ok", "missing", "failed"] = "ok"
    error: str = ""
    family: str = ""
    ids_per_image: int | None = None
    vocabulary: int | list[int] | None = None
    bits_per_image: float | None = None
    input_size: int | None = None
    output_size: int | None = None
    deterministic: bool = True
    training: str = ""
    weights: list[WeightsRecord] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, Value] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class RunRecord:
    """A whole run: everything a table, a report or a comparison needs to know.

    missing_metrics: a line for each metric that was asked for and can't be computed here, with its reason.
    command: what was typed. ranks: processes that shared the work; device: of the first.
    """

    suite: str
    scale: str
    config_hash: str
    config: dict[str, Any]
    protocol: dict[str, Any]
    protocol_hash: str
    dataset: str
    dataset_fingerprint: str
    pictures: int
    clusters: int
    left_out: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing_metrics: list[str] = field(default_factory=list)
    command: str = ""
    columns: list[ColumnRecord] = field(default_factory=list)
    rows: list[RowRecord] = field(default_factory=list)
    device: str = ""
    ranks: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    code_revision: str = ""
    started: str = ""
    seconds: float = 0.0
    complete: bool = False


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, str) else value


def to_json(run: RunRecord) -> str:
    """The record as indented JSON text (strict JSON: no bare NaN or Infinity)."""
    return json.dumps(_plain(dataclasses.asdict(run)), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> RunRecord:
    """The record of `to_json`'s text. Raises ValueError or TypeError for another file."""
    data = json.loads(text)
    data["columns"] = [ColumnRecord(**c) for c in data["columns"]]
    rows = []
    for row in data["rows"]:
        row["weights"] = [WeightsRecord(**w) for w in row["weights"]]
        row["cells"] = {
            name: Value(**{k: v if k == "note" else _number(v) for k, v in cell.items()})
            for name, cell in row["cells"].items()
        }
        rows.append(RowRecord(**row))
    data["rows"] = rows
    return RunRecord(**data)


def read(path: str | Path) -> RunRecord:
    """Read a run.json."""
    return from_json(Path(path).read_text(encoding="utf-8"))
