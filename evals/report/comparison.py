"""Comparison with published figures: the difference, and whether the measurement's interval covers it.

Only what can be compared is: published weights on all of the paper's images under the protocol `paper-1024`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from evals.metrics.intervals import RFID_EVIDENCE, RFID_EVIDENCE_N
from evals.published.tables import PublishedFigure, published
from evals.record import RowRecord, RunRecord, Value
from evals.tasks.protocol import ReconstructionProtocol
from lactok import registry

# The reconstruction tables; Tables 3 and 6 are of text-to-image systems.
RECONSTRUCTION = (1, 2, 4, 5)
# How many images the paper's datasets have.
IMAGES = {"imagenet-val": 50_000, "coco-val2017": 5_000, "mjhq-5k": 5_000, "flux-5k": 5_000}
# Datasets whose images the paper drew or made itself, without saying which: ours are others of the same kind.
OTHER_IMAGES = ("mjhq-5k", "flux-5k")


@dataclass(frozen=True)
class Comparison:
    """figure: the published one; difference: measured less published; beyond: whether the published value lies outside
    the measured figure's 95 % interval, None without an interval; verdict: that in words."""

    figure: PublishedFigure
    difference: float
    beyond: bool | None
    verdict: str


@cache
def paper_protocol() -> ReconstructionProtocol:
    """The protocol that stands for the paper's."""
    from importlib.resources import files

    from omegaconf import OmegaConf

    fields = OmegaConf.to_container(
        OmegaConf.create((files("evals.conf") / "protocol" / "paper-1024.yaml").read_text())
    )
    assert isinstance(fields, dict)
    return ReconstructionProtocol(**{str(name): value for name, value in fields.items()})


def row_key(row: RowRecord) -> str:
    """A row's label without the options that only say where its weights lie: what published figures are named by."""
    paths = _path_options(row)
    shown = ",".join(f"{k}={v}" for k, v in row.options.items() if k not in paths)
    return row.name + (f"[{shown}]" if shown else "")


def _path_options(row: RowRecord) -> tuple[str, ...]:
    if not row.options:
        return ()
    for group in ("tokenizers", "generators", "calibration"):
        try:
            return registry.load(group, row.name).path_options
        except registry.RegistryError:
            continue
    return ("weights",)  # a plugin that is no longer installed


def incomparable_run(run: RunRecord) -> str:
    """Why no row of a run compares with the paper, "" where rows may."""
    if run.scale != "paper" or run.config.get("weights") != "paper":
        return "a miniature"
    if run.task != "reconstruction":
        return f"task {run.task}; published figures are compared for reconstruction alone"
    if run.protocol_hash != paper_protocol().hash:
        return f"protocol {run.protocol['name']} ({run.protocol_hash}), not paper-1024 ({paper_protocol().hash})"
    if run.parameters:
        return ", ".join(f"{name}={value}" for name, value in run.parameters.items())
    if run.dataset not in IMAGES:
        return f"dataset {run.dataset} is none of the paper's ({', '.join(IMAGES)})"
    if run.items != IMAGES[run.dataset]:
        return f"{run.items:,} {run.unit} of {run.dataset}; the paper has {IMAGES[run.dataset]:,}"
    if run.dataset in OTHER_IMAGES:
        return f"which images the paper's {run.dataset} holds is not known"
    return ""


def incomparable_row(row: RowRecord) -> str:
    """Why a row compares with no published figure, "" where it may."""
    named = [key for key in _path_options(row) if row.options.get(key) is not None]
    if named:
        return f"its weights were named by {' and '.join(named)}, so they may not be the published ones"
    return ""


def published_comparisons(run: RunRecord, row: RowRecord) -> dict[str, Comparison]:
    """By column name, a row's figures compared with the paper's; empty where nothing can be compared."""
    if row.status != "ok" or incomparable_run(run) or incomparable_row(row):
        return {}
    figures = {figure.column: figure for figure in figures_of(row_key(row), run.dataset).values()}
    return {
        name: compared(value, figures[name])
        for name, value in row.cells.items()
        if name in figures and _is_number(value.value) and figures[name].value is not None
    }


def figures_of(key: str, dataset: str, tables: Iterable[int] = RECONSTRUCTION) -> dict[str, PublishedFigure]:
    """By metric, the first table's published figures of a row on a dataset, those with a value before those without."""
    found: dict[str, PublishedFigure] = {}
    for figure in (f for table in tables for f in published(table)):
        if (figure.tokenizer, figure.dataset) == (key, dataset):
            kept = found.get(figure.metric)
            if kept is None or (kept.value is None and figure.value is not None):
                found[figure.metric] = figure
    return found


def compared(value: Value, figure: PublishedFigure) -> Comparison:
    """The measured value against a published one (both with a number)."""
    assert value.value is not None
    assert figure.value is not None
    difference = value.value - figure.value
    beyond = None if value.low is None or value.high is None else not value.low <= figure.value <= value.high
    small = figure.metric == "rFID" and (value.count or 0) <= RFID_EVIDENCE_N and abs(difference) < RFID_EVIDENCE
    if small:
        verdict = f"no evidence: under {RFID_EVIDENCE} at N = {value.count:,}" if value.count else "no evidence"
    else:
        verdict = {None: "no interval", True: "beyond the interval", False: "within the interval"}[beyond]
    return Comparison(figure, difference, beyond, verdict)


def raw_columns(run: RunRecord) -> list[dict[str, Any]]:
    """For each row, X_published, X_difference and X_beyond (1 or 0) of each column X that has a published figure."""
    found = [published_comparisons(run, row) for row in run.rows]
    names = dict.fromkeys(name for row in found for name in row)
    lines = []
    for row in found:
        line: dict[str, Any] = {}
        for name in names:
            one = row.get(name)
            line[f"{name}_published"] = one.figure.value if one else None
            line[f"{name}_difference"] = one.difference if one else None
            line[f"{name}_beyond"] = float(one.beyond) if one and one.beyond is not None else None
        lines.append(line)
    return lines


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
