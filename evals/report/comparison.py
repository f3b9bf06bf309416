"""Comparison with published figures: the difference, and whether the measurement's interval covers it.

Only what can be compared is: published weights on all of the paper's images or prompts, under the protocol that stands
for the paper's (`paper-1024` of reconstruction, `as-generated` of generation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from evals.metrics.intervals import RFID_EVIDENCE, RFID_EVIDENCE_N
from evals.published.tables import PublishedFigure, published
from evals.record import RowRecord, RunRecord, Value
from evals.suites.catalog import PAPER_TABLES, Suite
from evals.tasks.protocol import Conventions, GenerationProtocol, ReconstructionProtocol
from lactok import registry

if TYPE_CHECKING:
    from lactok.interface import Model

# How many images, or prompts, the paper's datasets have, by task.
ITEMS = {
    "reconstruction": {"imagenet-val": 50_000, "coco-val2017": 5_000, "mjhq-5k": 5_000, "flux-5k": 5_000},
    "generation": {"geneval": 553, "coco-captions": 5_000},
}
# The protocol that stands for the paper's, by task.
PROTOCOLS: dict[str, tuple[str, type[Conventions]]] = {
    "reconstruction": ("paper-1024", ReconstructionProtocol),
    "generation": ("as-generated", GenerationProtocol),
}
# Images of each prompt, where the benchmark says how many.
IMAGES_A_PROMPT = {"geneval": 4}
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
def paper_protocol(task: str = "reconstruction") -> Conventions:
    """The protocol that stands for the paper's. task: a key of PROTOCOLS."""
    from importlib.resources import files

    from omegaconf import OmegaConf

    name, kind = PROTOCOLS[task]
    fields = OmegaConf.to_container(OmegaConf.create((files("evals.conf") / "protocol" / f"{name}.yaml").read_text()))
    assert isinstance(fields, dict)
    return kind(**{str(key): value for key, value in fields.items()})


def row_key(row: RowRecord, suite: Suite | None = None, dataset: str = "") -> str:
    """What published figures name a row by: its label without the options that only say where its weights lie.

    suite, dataset: of a table; the options that it sets on that dataset (`Suite.options_on`) are left out as well, and
    a row with other values of them is another row.
    """
    usual = suite.options_on(dataset).get(row.name, {}) if suite else {}
    if not row.options and not usual:
        return row.name
    model = _model(row)
    paths = model.path_options if model else ("weights",)  # a plugin that is no longer installed
    values = {k: v for k, v in row.options.items() if k not in paths}
    values |= {k: getattr(model.Options(), k, None) for k in usual if model and k not in values}
    shown = ",".join(f"{k}={v}" for k, v in values.items() if k not in usual or v != usual[k])
    return row.name + (f"[{shown}]" if shown else "")


def _model(row: RowRecord) -> type[Model] | None:
    """The class of a row's model; None where it is not installed."""
    for group in ("tokenizers", "generators", "calibration"):
        try:
            found: type[Model] = registry.load(group, row.name)
            return found
        except registry.RegistryError:
            continue
    return None


def images_a_prompt(run: RunRecord) -> int:
    """How many images of each prompt a run of generation has; 1 of reconstruction."""
    return int(run.config.get("seeds", 1)) if run.task == "generation" else 1


def incomparable_run(run: RunRecord) -> str:
    """Why no row of a run compares with the paper, "" where rows may."""
    if run.scale != "paper" or run.config.get("weights") != "paper":
        return "a miniature"
    if run.task not in PROTOCOLS:
        return f"task {run.task}; the paper has figures of {' and '.join(PROTOCOLS)}"
    protocol, items = paper_protocol(run.task), ITEMS[run.task]
    if run.protocol_hash != protocol.hash:
        return f"protocol {run.protocol['name']} ({run.protocol_hash}), not {protocol.name} ({protocol.hash})"
    if run.parameters:
        return ", ".join(f"{name}={value}" for name, value in run.parameters.items())
    if run.dataset not in items:
        return f"dataset {run.dataset} is none of the paper's ({', '.join(items)})"
    if run.items != items[run.dataset]:
        return f"{run.items:,} {run.unit} of {run.dataset}; the paper has {items[run.dataset]:,}"
    wanted, made = IMAGES_A_PROMPT.get(run.dataset), images_a_prompt(run)
    if wanted and made != wanted:
        return f"{images_text(made)} of each prompt of {run.dataset}, which asks for {wanted} (seeds={wanted})"
    if run.dataset in OTHER_IMAGES:
        return f"which images the paper's {run.dataset} holds is not known"
    return ""


def images_text(count: int) -> str:
    """ "1 image", "4 images"."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def incomparable_row(row: RowRecord) -> str:
    """Why a row compares with no published figure, "" where it may."""
    model = _model(row) if row.options else None
    paths = model.path_options if model else ("weights",)
    named = [key for key in paths if row.options.get(key) is not None]
    if named:
        return f"its weights were named by {' and '.join(named)}, so they may not be the published ones"
    if row.refused:
        return f"incomplete: {len(row.refused):,} of its items refused, and the paper's figures are of all"
    return ""


def published_comparisons(run: RunRecord, row: RowRecord, suite: Suite | None = None) -> dict[str, Comparison]:
    """By column name, a row's figures compared with the paper's; empty where nothing can be compared.

    suite: the table to compare with; by default the run's own, then the others of its task.
    """
    if row.status != "ok" or incomparable_run(run) or incomparable_row(row):
        return {}
    figures = {f.column: f for f in figures_of(row, run.dataset, [suite] if suite else _tables(run)).values()}
    return {
        name: compared(value, figures[name])
        for name, value in row.cells.items()
        if name in figures and _is_number(value.value) and figures[name].value is not None
    }


def _tables(run: RunRecord) -> Sequence[Suite]:
    """The paper's tables of a run's task, the one that it was made for first."""
    tables = [suite for suite in PAPER_TABLES.values() if suite.task == run.task]
    return sorted(tables, key=lambda suite: suite.name != run.suite)


def figures_of(row: RowRecord, dataset: str, tables: Iterable[Suite]) -> dict[str, PublishedFigure]:
    """By metric, the first table's published figures of a row on a dataset, those with a value before those without."""
    found: dict[str, PublishedFigure] = {}
    for suite in tables:
        assert suite.table is not None
        key = row_key(row, suite, dataset)
        for figure in published(suite.table):
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
