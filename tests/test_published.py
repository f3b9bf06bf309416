"""The paper's figures as data: every file parses, and nothing is made up where a figure is missing."""

import csv
from pathlib import Path

import pytest

from evals.metrics.plan import metric_class
from evals.published.tables import COLUMNS, SECOND_HAND, TABLES, PublishedError, PublishedFigure, parse, published
from evals.suites.catalog import PAPER_TABLES
from lactok import registry

LINE = '1,TiTok,titok,imagenet-val,rFID,2.32,2.32,measured,,"arXiv 2503.08377, Table 1",'
DATASETS = {
    str(suite.table): {printed: name for name, printed in suite.datasets.items()} for suite in PAPER_TABLES.values()
}
METRICS = {
    "Two Obj": "GenEval two objects", "Position": "GenEval position", "Color Attri": "GenEval colour attribution",
    "Overall": "GenEval overall", "IR": "ImageReward",
}  # fmt: skip
"""Ours by the paper's; of datasets by table."""


def text(*lines: str, header: str = ",".join(COLUMNS)) -> str:
    return "\n".join([header, *lines]) + "\n"


def paper_cells() -> list[dict[str, str]]:
    """Every printed cell of the paper's tables, in order: table, row, dataset, metric, printed."""
    with (Path(__file__).parent / "paper_tables.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def figures(table: int, **wanted: str) -> list[PublishedFigure]:
    return [f for f in published(table) if all(getattr(f, k) == v for k, v in wanted.items())]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_parses_and_says_where_each_figure_stands(table: int):
    found = published(table)
    assert found
    assert all(f.table == table and f.source.startswith("arXiv 2503.08377") for f in found)
    assert all((f.value is None) == bool(f.missing) for f in found)


@pytest.mark.parametrize("table", TABLES)
def test_our_rows_are_models_that_exist(table: int):
    known = registry.entries("generators" if table in (3, 6) else "tokenizers")
    assert {f.tokenizer.split("[")[0] for f in published(table)} - {""} <= set(known)


def test_a_figure_of_ours_has_one_value_per_table_and_dataset():
    keys = [(f.table, f.tokenizer, f.dataset, f.metric) for t in TABLES for f in published(t) if f.tokenizer]
    assert len(keys) == len(set(keys))


def test_every_cell_of_the_paper_is_held_as_printed_and_in_its_order():
    cells = paper_cells()
    assert len(cells) == 226
    printed = [
        (
            int(c["table"]),
            c["row"],
            DATASETS[c["table"]][c["dataset"]],
            METRICS.get(c["metric"], c["metric"]),
            c["printed"],
        )
        for c in cells
    ]
    held = [f for t in TABLES for f in published(t) if f.origin != SECOND_HAND]
    assert [(f.table, f.row, f.dataset, f.metric, f.printed) for f in held] == printed
    for figure in held:
        if figure.printed in ("nan", "-"):
            assert figure.value is None
            assert figure.missing
        else:
            assert figure.value == float(figure.printed)


def test_what_is_known_second_hand_is_none_of_the_papers_cells():
    found = {f.row: f for t in TABLES for f in published(t) if f.origin == SECOND_HAND}
    assert {row: f.value for row, f in found.items()} == {
        "LlamaGen": 7.3, "HART": 0.8, "Show-o": 21.2, "SDXL": 4.4, "SD3": 4.5, "FLUX.1-dev": 50.2, "LacTokGen-L*": 2.4,
    }  # fmt: skip
    for figure in found.values():
        assert (figure.printed, figure.tokenizer, figure.metric) == ("", "", "inference time (s)")
        assert "second hand" in figure.source


def test_seedtoks_ssim_is_missing_with_its_reason():
    found = [*figures(1, tokenizer="seedtok", metric="SSIM"), *figures(2, tokenizer="seedtok", metric="SSIM")]
    assert len(found) == 4
    assert all(f.value is None and f.printed == "nan" and "prints nan" in f.missing for f in found)


def test_table_three_says_what_is_cited_and_what_was_measured():
    cited = {f.row for f in figures(3, origin="cited")}
    assert cited == {"SD1.5", "SDXL", "SD3", "LlamaGen", "HART", "Show-o"}
    assert all("quoted from" in f.source for f in figures(3, origin="cited"))
    overall = {f.row: (f.value, f.origin) for f in figures(3, metric="GenEval overall")}
    assert overall["SD1.5"] == (0.43, "cited")
    assert overall["FLUX.1-dev"] == (0.68, "unclear")
    assert overall["LacTokGen-T*"] == (0.73, "measured")
    assert all(f.origin == "measured" for f in figures(3, metric="HPSv2"))
    assert {f.origin for t in (1, 2, 4, 5, 6) for f in published(t)} == {"measured"}


def test_scores_that_selected_the_training_pairs_say_so():
    for row in ("LacTokGen-H", "LacTokGen-H*", "LacTokGen-T*"):
        for metric in ("ImageReward", "MPS"):
            (figure,) = figures(3, row=row, metric=metric)
            assert "selected LacTokGen's training pairs (section 4.4)" in figure.footnote
        (figure,) = figures(3, row=row, metric="HPSv2")
        assert "held out" in figure.footnote
    assert all("ambiguous" in f.footnote for f in figures(3, row="LacTokGen-H", dataset="coco-captions"))
    assert not [f for f in figures(3, row="Show-o") if "selected" in f.footnote]
    assert all(("selected LacTokGen's" in f.footnote) == (f.metric != "HPSv2") for f in published(6))


def test_each_figure_of_the_generation_tables_is_of_a_row_and_column_of_ours():
    held = [f for t in (3, 6) for f in published(t) if f.origin != SECOND_HAND]
    assert all(f.tokenizer for f in held)
    columns = {column.name for name in registry.entries("metrics") for column in metric_class(name).columns}
    assert {f.column for f in held} <= columns
    hpsv2 = [f for f in held if f.metric == "HPSv2"]
    assert all(f.column == "HPSv2-2.1" and "does not say which HPSv2" in f.footnote for f in hpsv2)


def test_lactoks_lpips_says_that_it_is_its_training_loss():
    for figure in (f for t in (1, 2, 4, 5) for f in published(t) if f.metric == "LPIPS"):
        assert figure.column == "LPIPS-alex"
        assert "does not name" in figure.footnote
        assert ("training loss" in figure.footnote) == figure.row.startswith("LacTok-")


def test_starred_rows_say_what_the_star_means():
    starred = [f for t in (1, 2, 3) for f in published(t) if f.row.endswith("*") and f.printed]
    assert starred
    assert all("constructed data" in f.footnote for f in starred)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text(LINE, header="table,row"), "expected .*'tokenizer'"),
        (text(LINE.replace("1,T", "2,T", 1)), "line 2: table 2: expected 1"),
        (text(LINE, LINE), "line 3: a second figure of TiTok, imagenet-val, rFID"),
        (text(LINE.replace("2.32,2.32", "2.32,")), "expected exactly one"),
        (text(LINE.replace("2.32,2.32", "2.32,2.33")), "line 2: value 2.33: expected the printed 2.32"),
        (text(LINE.replace("2.32,2.32", ",2.32")), "printed '' and origin measured: expected printed text"),
        (text(LINE.replace("measured", "second hand")), "printed '2.32' and origin second hand"),
        (text(LINE + "not at hand"), "expected exactly one"),
        (text(LINE.replace("2.32,2.32", "2.32,about two")), "line 2: .*about two.*: expected a number"),
        (text(LINE.replace("2.32,2.32", "2.32,nan")), "expected a finite number"),
        (text(LINE.replace("measured", "guessed")), "'guessed': expected one of cited, measured, unclear, second hand"),
        (text(LINE.replace('"arXiv 2503.08377, Table 1"', "")), "line 2: no source"),
        (text(LINE[:-1]), "expected 11 fields"),
        (text(LINE + ",more"), "expected 11 fields"),
    ],
)
def test_a_malformed_file_is_refused_with_the_line(content: str, message: str):
    with pytest.raises(PublishedError, match=message):
        parse(content, 1, "table1.csv")


def test_an_unknown_table_is_refused():
    with pytest.raises(PublishedError, match="table 7: expected one of 1, 2"):
        published(7)
