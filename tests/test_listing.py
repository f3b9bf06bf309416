"""`python -m evals list` is readable on a terminal of 80 columns: no word is cut, and nothing is lost."""

from __future__ import annotations

import re

import pytest

from evals.__main__ import main
from evals.cli.listing import Listing, wrapped

WORDS = re.compile(r"`[^`]*`\S*|\S+")

EVERY = ("tokenizers", "generators", "calibration", "datasets", "suites", "metrics", "protocols")


def texts(listing: Listing, width: int) -> list[str]:
    return [line.plain for line in listing.lines(width)]


def test_every_list_fits_80_columns_and_cuts_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the same lists on a terminal where nothing has to be wrapped: the same words, those of headings aside."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", *EVERY]) == 0
    narrow = capsys.readouterr().out
    for line in narrow.splitlines():
        assert len(line) <= 80 or len(WORDS.findall(line.strip())) == 1, line
    monkeypatch.setenv("COLUMNS", "4000")
    assert main(["list", *EVERY]) == 0
    wide = capsys.readouterr().out
    assert max(map(len, wide.splitlines())) > 200
    words, seen = ({w.strip("(),:") for w in WORDS.findall(text)} for text in (wide, narrow))
    assert words - seen <= {"name", "option", "meaning"}, "headings of columns that stand in no block"
    assert seen - words == set()
    assert len(words) > 1000


def test_what_fits_is_a_table_and_what_does_not_is_a_block_a_name() -> None:
    listing = Listing("Things", ("name", "what", "size", "needs"))
    listing.add("a-thing\nalso thing", "of some use", "3", "nothing")
    listing.add("b", "of none at all", "14", "https://example.org/a/long/address/of-a-file.bin\nand another")
    assert texts(listing, 100) == [
        "name        what            size  needs",
        "a-thing     of some use     3     nothing",
        "also thing",
        "b           of none at all  14    https://example.org/a/long/address/of-a-file.bin",
        "                                  and another",
    ]
    assert texts(listing, 76)[3].startswith("b           of none  "), "a column of prose is narrowed at its spaces"
    assert texts(listing, 40) == [
        "a-thing, also thing (size 3, needs",
        "    nothing)",
        "    of some use",
        "b (size 14)",
        "    of none at all",
        "    needs:",
        "      https://example.org/a/long/address/of-a-file.bin",
        "      and another",
    ]
    long = Listing("Long", ("name", "what", "here"))
    long.add("c", "word " * 60, "yes")
    assert texts(long, 80)[0] == "c (here yes)", "a table whose cells take many lines is none"
    two = Listing("Two", ("name", "what"))
    two.add("d", "word " * 60)
    assert texts(two, 80)[1].startswith("d     word word"), "a name and its text is one at any length"


def test_a_plugins_brackets_are_text() -> None:
    listing = Listing("Things", ("name", "what"))
    listing.add("a", "needs pip install 'lactok[heif]' [bold]")
    assert texts(listing, 80)[1] == "a     needs pip install 'lactok[heif]' [bold]"


def test_a_command_is_not_broken() -> None:
    said = wrapped("- missing: get it by `hf download some/repo file.bin`, or by hand", 30, "  ")
    assert said == ["- missing: get it by", "  `hf download some/repo file.bin`,", "  or by hand"]
