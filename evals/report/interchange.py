"""A run's figures in the formats that others collect: Every Eval Ever's records, the model hub's `.eval_results`."""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from evals.record import ColumnRecord, RowRecord, RunRecord, Value
from evals.report.symbols import folder_names
from evals.report.table import one_line
from lactok.files import new_folder

# The version of https://github.com/evaleval/every_eval_ever's eval.schema.json that `every_eval_ever` writes.
EVERY_EVAL_EVER = "0.3.0"
COLLECTION = "lactok"
RELATIONSHIPS = ("first_party", "third_party", "collaborative", "other")
# A repository of the model hub in a source of weights: OWNER/NAME/FILE@REVISION.
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)/[^@]+(@[0-9a-f]+| \(revision not pinned\))")


class InterchangeError(Exception):
    """The run can't be written in that format; the message says why and the way out. Exit status 2."""


@dataclass(frozen=True)
class Written:
    """A row's file below the folder, how many figures it has, and a reason for each figure that it lacks."""

    label: str
    file: str
    figures: int
    left_out: list[str]


def every_eval_ever(
    run: RunRecord, out: Path, organization: str, relationship: str = "third_party", wanted: Sequence[str] = ()
) -> list[Written]:
    """Write data/lactok/DEVELOPER/MODEL/UUID.json of each row to the new folder `out`, whole or not at all.

    organization: who evaluated; relationship: of the evaluator to the models, one of RELATIONSHIPS; wanted: labels of
    rows, () for all models under test. A model's id is its weights' repository on the hub, else lactok/NAME. The file's
    name is derived from the run and the row, so that another export of the run replaces it. Raises InterchangeError
    and WriteError.
    """
    if relationship not in RELATIONSHIPS:
        raise InterchangeError(f"relationship={relationship}: expected one of {', '.join(RELATIONSHIPS)}")
    if not organization.strip():
        raise InterchangeError("the format names who evaluated: organization=NAME")
    files: dict[str, str] = {}
    written = []
    for row in _rows(run, wanted):
        model = _hub_id(row) or f"{COLLECTION}/{row.name}"
        record, left_out = _record_of(run, row, model, organization, relationship)
        developer, name = (re.sub(r"[^\w.+-]+", "_", part).rstrip(".") for part in model.split("/", 1))
        file = f"data/{COLLECTION}/{developer}/{name}/{_uuid(run, row)}.json"
        files[file] = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        written.append(Written(row.label, file, len(record["evaluation_results"]), left_out))
    _write(out, files)
    return written


def hub_results(
    run: RunRecord, out: Path, benchmark: str, source: str = "", wanted: Sequence[str] = ()
) -> list[Written]:
    """Write ROW/.eval_results/lactok.yaml of each row to the new folder `out`: what its model's repository on the hub
    takes. A task of the benchmark is a column's name in lower case.

    benchmark: the dataset repository on the hub, OWNER/NAME, whose leaderboard the figures are of; source: an address
    of the run's files, "" for none. Raises InterchangeError and WriteError.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from omegaconf import OmegaConf

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", benchmark):
        raise InterchangeError(f"benchmark={benchmark}: expected the dataset's repository on the hub, OWNER/NAME")
    if source and not re.match(r"https?://", source):
        raise InterchangeError(f"source={source}: expected an address, https://...")
    files: dict[str, str] = {}
    written = []
    rows = _rows(run, wanted)
    for row, folder in zip(rows, folder_names([row.label for row in rows]).values(), strict=True):
        figures, left_out = _figures(run, row)
        entries = [
            EvalResultEntry(
                dataset_id=benchmark,
                task_id=column.name.lower(),
                value=value.value,
                date=_date(run).isoformat(timespec="seconds").replace("+00:00", "Z"),
                source_url=source or None,
                source_name="LacTok run" if source else None,
                notes=_notes(run, row, column, value),
            )
            for column, value in figures
        ]
        file = f"{folder}/.eval_results/{COLLECTION}.yaml"
        files[file] = OmegaConf.to_yaml(OmegaConf.create(eval_result_entries_to_yaml(entries)))
        written.append(Written(row.label, file, len(entries), left_out))
    _write(out, files)
    return written


def _rows(run: RunRecord, wanted: Sequence[str]) -> list[RowRecord]:
    if not run.complete:
        raise InterchangeError("the run is not complete: run its command again")
    measured = [row for row in run.rows if row.status == "ok"]
    if unknown := [label for label in wanted if label not in [row.label for row in measured]]:
        known = ", ".join(row.label for row in measured)
        raise InterchangeError(f"rows={','.join(unknown)}: the run has no such row with figures; it has {known}")
    rows = [row for row in measured if (row.label in wanted if wanted else row.calibration is None)]
    if not rows:
        raise InterchangeError("the run has no model under test with figures; rows= names calibration rows as well")
    return rows


def _figures(run: RunRecord, row: RowRecord) -> tuple[list[tuple[ColumnRecord, Value]], list[str]]:
    """The figures that both formats can hold, finite and with a better side; a line for each other one."""
    found, left_out = [], []
    for column in run.columns:
        value = row.cells.get(column.name)
        if value is None or value.value is None or math.isnan(value.value):
            left_out.append(f"{column.name}: no figure{f' ({value.note})' if value and value.note else ''}")
        elif math.isinf(value.value):
            left_out.append(f"{column.name}: infinite")
        elif column.better not in ("higher", "lower"):
            best = "0 is best" if column.better == "zero" else "neither higher nor lower is better"
            left_out.append(f"{column.name}: {best}, which the format can't say")
        else:
            found.append((column, value))
    return found, left_out


def _record_of(
    run: RunRecord, row: RowRecord, model: str, organization: str, relationship: str
) -> tuple[dict[str, Any], list[str]]:
    figures, left_out = _figures(run, row)
    if not figures:
        raise InterchangeError(f"{row.label} has no figure that the format can hold: {'; '.join(left_out)}")
    measured = str(int(_date(run).timestamp()))
    settings = {"label": row.label, "scale": run.scale, "precision": row.precision, "seed": row.seed}
    options = {f"option_{name}": value for name, value in {**row.options, **row.settings}.items()}
    weights = {"weights": "; ".join(f"{w.source} sha256 {w.sha256}" for w in row.weights)}
    record = {
        "schema_version": EVERY_EVAL_EVER,
        "evaluation_id": f"{COLLECTION}/{model}/{_uuid(run, row)}/{measured}",
        "evaluation_timestamp": measured,
        "retrieved_timestamp": str(int(time.time())),
        "source_metadata": {
            "source_name": f"LacTok suite {run.suite}",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": relationship,
        },
        "eval_library": {
            "name": COLLECTION,
            "version": run.versions.get(COLLECTION, "unknown"),
            "additional_details": _texts({"code_revision": run.code_revision, "command": run.command}),
        },
        "model_info": {
            "name": row.name,
            "id": model,
            "developer": model.split("/")[0],
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights" if _hub_id(row) else "unknown",
                **_texts(settings | options | weights),
            },
        },
        "evaluation_results": [_result(run, column, value) for column, value in figures],
    }
    return record, left_out


def _result(run: RunRecord, column: ColumnRecord, value: Value) -> dict[str, Any]:
    assert value.value is not None
    share = column.unit == "%"  # such a column holds fractions
    uncertainty: dict[str, Any] = {}
    if value.low is not None and value.high is not None and math.isfinite(value.low + value.high):
        uncertainty["confidence_interval"] = {
            "lower": value.low,
            "upper": value.high,
            "confidence_level": 0.95,
            "method": f"{run.clusters:,} sources resampled or left out in turn",
        }
    if value.count is not None:
        uncertainty["num_samples"] = value.count
    details = {"note": value.note, "infinite_items_not_averaged": value.infinite or ""}
    dataset = {
        "fingerprint": run.dataset_fingerprint, "items": f"{run.items} {run.unit}", "sources": run.clusters,
        "protocol": run.protocol.get("name", ""), "protocol_hash": run.protocol_hash,
        "protocol_fields": json.dumps(run.protocol, sort_keys=True),
    }  # fmt: skip
    return {
        "evaluation_result_id": f"{run.dataset}/{column.name}",
        "evaluation_name": f"{run.suite}/{run.dataset}",
        "source_data": {"dataset_name": run.dataset, "source_type": "other", "additional_details": _texts(dataset)},
        "metric_config": {
            "metric_id": column.name,
            "metric_name": column.name,
            "metric_unit": "proportion" if share else column.unit or "none",
            "lower_is_better": column.better == "lower",
            "score_type": "continuous",
            "min_score": 0 if share else "-Infinity",
            "max_score": 1 if share else "Infinity",
        }
        | ({"evaluation_description": one_line(column.note)} if column.note else {}),
        "score_details": {
            "score": value.value,
            **({"details": shown} if (shown := _texts(details)) else {}),
            **({"uncertainty": uncertainty} if uncertainty else {}),
        },
    }


def _notes(run: RunRecord, row: RowRecord, column: ColumnRecord, value: Value) -> str:
    """What must be known of a figure, on one line."""
    interval = "" if value.low is None else f"95 % interval {value.low:.6g} to {value.high:.6g}"
    unit = "a proportion" if column.unit == "%" else column.unit and f"in {column.unit}"
    facts = [
        f"{column.name}, {column.better} is better", unit, interval, row.label, f"{run.items:,} {run.unit}",
        f"protocol {run.protocol.get('name')} {run.protocol_hash}", f"scale {run.scale}", value.note,
    ]  # fmt: skip
    return "; ".join(filter(None, facts))


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """Values as the format wants them, text all; empty ones are left out."""
    return {key: str(value) for key, value in values.items() if value not in ("", None)}


def _hub_id(row: RowRecord) -> str:
    """The hub's repository of a row's first weights; "" where they are of another place."""
    found = _HUB.fullmatch(row.weights[0].source) if row.weights else None
    return found["id"] if found else ""


def _uuid(run: RunRecord, row: RowRecord) -> uuid.UUID:
    facts = [run.config_hash, run.dataset_fingerprint, run.protocol_hash, run.started, row.label]
    return uuid.UUID(bytes=sha256(json.dumps(facts).encode()).digest()[:16], version=4)


def _date(run: RunRecord) -> datetime:
    """When the run began, UTC. Raises InterchangeError."""
    try:
        date = datetime.fromisoformat(run.started)
    except ValueError as error:
        raise InterchangeError(f"run.json: started is {run.started!r}: expected a date, 2026-01-31T12:00:00") from error
    return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)


def _write(out: Path, files: dict[str, str]) -> None:
    with new_folder(out) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, "utf-8")
