"""The paper's figures as data: every file parses, and nothing is made up where a figure is missing."""

import pytest

from evals.published.tables import COLUMNS, TABLES, PublishedError, parse, published
from lactok import registry

LINE = '1,TiTok,titok,imagenet-val,rFID,2.32,measured,,"arXiv 2503.08377, Table 1",'


def text(*lines: str, header: str = ",".join(COLUMNS)) -> str:
    return "\n".join([header, *lines]) + "\n"


def figures(table: int, **wanted: str) -> list:
    return [f for f in published(table) if all(getattr(f, k) == v for k, v in wanted.items())]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_parses_and_says_where_each_figure_stands(table: int):
    found = published(table)
    assert found
    assert all(f.table == table and f.source.startswith("arXiv 2503.08377") for f in found)
    assert all((f.value is None) == bool(f.missing) for f in found)


@pytest.mark.parametrize("table", TABLES)
def test_our_rows_are_tokenizers_that_exist(table: int):
    known = registry.entries("tokenizers")
    assert {f.tokenizer.split("[")[0] for f in published(table)} - {""} <= set(known)


def test_a_figure_of_ours_has_one_value_per_table_and_dataset():
    keys = [(f.table, f.tokenizer, f.dataset, f.metric) for t in TABLES for f in published(t) if f.tokenizer]
    assert len(keys) == len(set(keys))


def test_seedtoks_ssim_is_missing_with_its_reason():
    found = [*figures(1, tokenizer="seedtok", metric="SSIM"), *figures(2, tokenizer="seedtok", metric="SSIM")]
    assert len(found) == 4, "ImageNet and three others"
    assert all(f.value is None and "prints nan" in f.missing for f in found)


def test_table_three_says_what_is_cited_and_what_was_measured():
    overall = {f.row: (f.value, f.origin) for f in figures(3, metric="GenEval overall")}
    assert overall["SD1.5"] == (0.43, "cited")
    assert overall["FLUX.1-dev"] == (0.68, "unclear")
    assert overall["LacTokGen-T*"] == (0.73, "measured")
    assert all(f.origin == "measured" for f in figures(3, metric="HPSv2"))


def test_the_headline_belongs_to_no_row_of_ours():
    (headline,) = [f for f in published(2) if f.value is not None]
    assert (headline.value, headline.tokenizer) == (10.8, "")


def test_starred_rows_say_what_the_star_means():
    starred = [f for t in (1, 2, 3) for f in published(t) if f.row.endswith("*")]
    assert starred
    assert all("constructed data" in f.footnote for f in starred)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text(LINE, header="table,row"), "expected .*'tokenizer'"),
        (text(LINE.replace("1,T", "2,T", 1)), "line 2: table 2: expected 1"),
        (text(LINE, LINE), "line 3: a second figure of TiTok, imagenet-val, rFID"),
        (text(LINE.replace("2.32", "")), "expected exactly one"),
        (text(LINE + "not at hand"), "expected exactly one"),
        (text(LINE.replace("2.32", "about two")), "line 2: .*about two.*: expected a number"),
        (text(LINE.replace("2.32", "nan")), "expected a finite number"),
        (text(LINE.replace("measured", "guessed")), "'guessed': expected one of cited, measured, unclear"),
        (text(LINE.replace('"arXiv 2503.08377, Table 1"', "")), "line 2: no source"),
        (text(LINE[:-1]), "expected 10 fields"),
        (text(LINE + ",more"), "expected 10 fields"),
    ],
)
def test_a_malformed_file_is_refused_with_the_line(content: str, message: str):
    with pytest.raises(PublishedError, match=message):
        parse(content, 1, "table1.csv")


def test_an_unknown_table_is_refused():
    with pytest.raises(PublishedError, match="table 7: expected one of 1, 2"):
        published(7)
