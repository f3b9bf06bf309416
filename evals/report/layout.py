"""What a table of the paper shows: its rows and columns in the paper's order, then those that are added here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evals.published.tables import SECOND_HAND, PublishedFigure, published
from evals.suites.catalog import Suite

SECONDS = "seconds an image"


@dataclass(frozen=True)
class PaperColumn:
    """One column. dataset: the suite's name of it, "" for the speed on any of them; column: ours; metric: the paper's,
    "" where it has no such column; shown: the metric as the header has it."""

    dataset: str
    column: str
    metric: str
    shown: str


@dataclass(frozen=True)
class Layout:
    """rows: (label, our row's label); columns; figures: by our row, dataset and the paper's metric; marked: whether
    each figure says its origin, as those of generation and of several origins do; remarks: what a reader must know of
    all figures."""

    rows: list[tuple[str, str]]
    columns: list[PaperColumn]
    figures: Mapping[tuple[str, str, str], PublishedFigure]
    marked: bool
    remarks: tuple[str, ...]


# Columns that the paper does not have, by table and dataset: ours, and how they are shown.
ADDED = {
    3: {
        "geneval": {
            "GenEval-single_object": "single object",
            "GenEval-counting": "counting",
            "GenEval-colors": "colours",
        },
        "coco-captions": {"HPSv2-2.0": "HPSv2 2.0"},
        "": {SECONDS: "an image"},
    },
    6: {"coco-captions": {"HPSv2-2.0": "HPSv2 2.0"}},
}
# Names of metrics in headers, where they are not the published figures' own.
SHOWN = {"HPSv2": "HPSv2 2.1"}
CAPTIONS = (
    "MSCOCO-2017: the caption of the smallest id of each of the 5,000 validation images, an image each; the paper does "
    "not say which captions it takes"
)
REMARKS = {
    3: (
        "the paper states neither size, steps, guidance, seeds nor precision of any row; the settings here are those "
        "that each run records",
        CAPTIONS,
    ),
    6: (CAPTIONS,),
}
NOT_A_ROW = "no row of the paper's"


def layout(suite: Suite) -> Layout:
    """The layout of a table's suite."""
    assert suite.table is not None
    figures = [figure for figure in published(suite.table) if figure.origin != SECOND_HAND]
    rows = list(dict.fromkeys((figure.row, figure.tokenizer) for figure in figures))
    own = suite.generators if suite.task == "generation" else suite.tokenizers
    named = {key.split("[")[0] for _, key in rows}
    rows += [(name, name) for name in own if name not in named]
    return Layout(
        rows,
        _columns(suite, figures),
        {(f.tokenizer, f.dataset, f.metric): f for f in figures},
        suite.task == "generation" or len({f.origin for f in figures}) > 1,
        REMARKS.get(suite.table, ()),
    )


def _columns(suite: Suite, figures: list[PublishedFigure]) -> list[PaperColumn]:
    added = ADDED.get(suite.table or 0, {})
    columns = []
    for dataset in (*suite.datasets, *([""] if "" in added else [])):
        metrics = dict.fromkeys((f.metric, f.column) for f in figures if f.dataset == dataset)
        columns += [PaperColumn(dataset, ours, metric, _shown(suite, dataset, metric)) for metric, ours in metrics]
        columns += [PaperColumn(dataset, ours, "", shown) for ours, shown in added.get(dataset, {}).items()]
    return columns


def _shown(suite: Suite, dataset: str, metric: str) -> str:
    """The metric without the dataset's name, which stands above it."""
    return SHOWN.get(metric, metric).removeprefix(f"{suite.datasets[dataset]} ")
