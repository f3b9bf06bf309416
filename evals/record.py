"""run.json: the typed record of a run. Written by the engine, read by reports; imports no torch.

Every field is plain JSON; infinities are the strings "Infinity" and "-Infinity", missing values are null.
"""

from __future__ import annotations

import json
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

# Raise it when a field changes its name or meaning; `read` refuses other schemas by name.
SCHEMA = 2
# What a row's status is where it should have been measured and was not.
FAULTS = ("missing", "failed")
_CONFIG = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class RecordError(Exception):
    """A file is no run.json that this version reads; the message says which it is and the way out."""


@dataclass(config=_CONFIG)
class ColumnRecord:
    """One column of the table: see evals.metrics.base.Column for the fields.

    kind: "image" (of images one by one), "set" (of the whole set) or "token". A column with unit "%" holds fractions;
    the shown table multiplies by 100.
    """

    name: str
    better: Literal["higher", "lower", "zero"] | None
    digits: int = 3
    unit: str = ""
    note: str = ""
    kind: Literal["image", "set", "token"] = "image"
    mean: bool = True
    shown: bool = True

    @property
    def per_image(self) -> bool:
        """Whether it is a mean of per-image values."""
        return self.kind == "image" and self.mean


@dataclass(config=_CONFIG)
class Value:
    """One cell. low, high: 95 % interval, None where none was computed. count: items that entered.

    infinite: identical images whose PSNR is +inf (counted, not averaged). seeds: standard deviation over seed indices,
    None with one. note: what a reader must know of this figure ("N=208 < 2048 dims: biased").
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    infinite: int = 0
    seeds: float | None = None
    note: str = ""


@dataclass(config=_CONFIG)
class WeightsRecord:
    """A checkpoint that a row used: where it came from, its file's sha256, whether that was pinned or only recorded."""

    source: str
    sha256: str
    pinned: bool


@dataclass(config=_CONFIG)
class Speed:
    """How a step of a model went: images a second (median over chunks), batch sizes, threads, devices, peak memory."""

    images_per_second: float
    batch: list[int]
    threads: list[int]
    devices: list[str]
    peak_mib: float


@dataclass(config=_CONFIG)
class CostsOfStep:
    """What a step of a model takes for one image.

    parameters: numbers that the step reads; flops: of its matrix products, convolutions and attention, a multiply-add
    being two; evaluations: most passes of the image through one of the networks that hold a fifth of these parameters
    (NFE; guidance by a second pass counts twice), None where no module was called. peak_mib: of all weights and of the
    tensors that live at once, without what kernels need inside.
    """

    parameters: int
    flops: int
    evaluations: int | None = None
    peak_mib: float | None = None


@dataclass(config=_CONFIG)
class Costs:
    """parameters: of all its networks, each number once; steps: "encode", "decode"; note: why there is no more."""

    parameters: int | None = None
    steps: dict[str, CostsOfStep] = field(default_factory=dict)
    note: str = ""


@dataclass(config=_CONFIG)
class Origin:
    """The process that made an artifact: device, threads of torch, package versions, code revision."""

    device: str
    threads: int
    versions: dict[str, str]
    code_revision: str


@dataclass(config=_CONFIG)
class RowRecord:
    """One row: a model with its options.

    label: what the table shows; name: the registered name; options: non-default ones.
    status: "ok", "missing" (weights not here), "failed", or of a reference row "unavailable" (an optional package is
    not here) or "unreachable" (it can't spend as little); error: the message of all but "ok"; trace: the traceback.
    bits_per_image: mean over the measured images of the bits of their tokens, None where none were measured or it has
    no tokens; max_bits_per_image: of an image whose tokens all count.
    cells: column name to Value. refused: item id to reason, for items that the model refused.
    input_size, output_size: native pixels, None: evaluation size. training: compute, as text.
    calibration: its place among the calibration rows, None for a model under test.
    settings: what a generator samples with. origins: the processes that made its artifacts, each once.
    costs: with costs=true; drift: with drift=N, by column its figure after 1 to N round trips.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    status: Literal["ok", "missing", "failed", "unavailable", "unreachable"] = "ok"
    error: str = ""
    trace: str = ""
    family: str = ""
    calibration: int | None = None
    tokens_per_image: int | None = None
    codebook_size: int | list[int] | None = None
    bits_per_image: float | None = None
    max_bits_per_image: float | None = None
    rate_parts: dict[str, float] = field(default_factory=dict)
    input_size: int | None = None
    output_size: int | None = None
    deterministic: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    training: str = ""
    weights: list[WeightsRecord] = field(default_factory=list)
    precision: str = ""
    seed: int = 0
    seeds: int = 1
    speed: dict[str, Speed] = field(default_factory=dict)
    origins: list[Origin] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    cells: dict[str, Value] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    costs: Costs | None = None
    drift: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(config=_CONFIG)
class RunRecord:
    """A whole run: everything a table, a report or a comparison needs to know.

    schema: version of this record. items: how many images or prompts; unit: which of the two; parameters: the task's
    own that differ from their defaults ("round_trips").
    missing_metrics: a line for each metric that was asked for and can't be computed, with its reason.
    command: what was typed. ranks: processes that shared the work; device: of the first.
    """

    suite: str
    task: str
    scale: str
    config_hash: str
    config: dict[str, Any]
    protocol: dict[str, Any]
    protocol_hash: str
    dataset: str
    dataset_fingerprint: str
    items: int
    clusters: int
    unit: Literal["images", "prompts"] = "images"
    parameters: dict[str, Any] = field(default_factory=dict)
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
    schema: int = SCHEMA


_RUN = TypeAdapter(RunRecord)


def to_json(run: RunRecord) -> str:
    """The record as indented JSON text (strict JSON: no bare NaN or Infinity)."""
    return _RUN.dump_json(run, indent=1).decode() + "\n"


def from_json(text: str, source: str = "the text") -> RunRecord:
    """The record of `to_json`'s text. source: its name in messages. Raises RecordError for anything else."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RecordError(
            f"{source} is no JSON ({error}): another file, or one that is cut short; of a run, run its command again"
        ) from error
    schema = data.get("schema", 1) if isinstance(data, dict) and "suite" in data and "rows" in data else None
    if not isinstance(schema, int):
        raise RecordError(f"{source} is no run's record: expected the run.json of a folder under OUT/runs")
    if schema > SCHEMA:
        raise RecordError(
            f"{source} has schema {schema}, written by a newer version of lactok; this one reads schema {SCHEMA}: "
            "update lactok"
        )
    if schema < SCHEMA:
        raise RecordError(
            f"{source} has schema {schema}, of an earlier version of lactok; this one reads schema {SCHEMA}: run its "
            "command again"
        )
    try:
        run = _RUN.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordError(f"{source} is damaged: {where}: {first['msg']} ({error.error_count()} such)") from error
    for what, names in (
        ("rows", [row.label for row in run.rows]),
        ("columns", [column.name for column in run.columns]),
    ):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecordError(f"{source} is damaged: {what}: {', '.join(twice)} more than once: expected each once")
    return run


def read(path: str | Path) -> RunRecord:
    """Read a run.json. Raises RecordError; OSError when the file can't be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is no UTF-8 text: {error}") from error
    return from_json(text, str(path))


def of_folder(folder: Path) -> RunRecord:
    """The record of a finished run's folder. Raises RecordError, for a folder that is none, too."""
    path = folder / "run.json"
    if not path.is_file():
        what = "holds no run.json" if folder.is_dir() else "is no folder"
        raise RecordError(f"{folder} {what}: expected the folder of a finished run (results/runs/...)")
    try:
        return read(path)
    except OSError as error:
        raise RecordError(f"{path} can't be read: {error.strerror or error}") from error
