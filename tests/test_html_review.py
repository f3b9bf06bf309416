"""The part of report.html that answers a reviewer: tables, data of the plots, and the plots in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evals.record import ColumnRecord, Costs, CostsOfStep, RunRecord, Speed, Value
from evals.report.html import render
from evals.report.html_data import PageData, ShownItem
from evals.report.html_review import review_json, review_of
from tests.browser import Browser, find
from tests.test_html_report import EVIL, Page
from tests.test_report import make_run


def reviewed() -> RunRecord:
    """Two tokenizers, the second one at two numbers of steps, and two references."""
    run = make_run()
    run.columns += [
        ColumnRecord(f"drift-{hue}", "lower", 2, "", "of that hue", shown=False, kind="image")
        for hue in ("red", "grey")
    ]
    identity, resized, a, b = run.rows[:4]
    one = make_run().rows[3]
    one.label, one.options = f"b-mini[{EVIL}=1]", {"steps": 1}
    run.rows.insert(4, one)
    for row, steps in ((a, 1), (b, 2), (one, 1)):
        decode = CostsOfStep(1_500_000, steps * 10**9, steps, 11.0)
        row.costs = Costs(2_500_000, {"encode": CostsOfStep(1_000_000, 2 * 10**8, 1, 9.0), "decode": decode})
        row.speed = {step: Speed(1234.5 / steps, [16], [1], ["a processor"], 640.0) for step in ("encode", "decode")}
    identity.costs = resized.costs = Costs(note="no network of torch")
    for row in (identity, resized, a, b, one):
        row.drift = {"PSNR": [20.0, None, 18.5]}
        row.cells |= {"drift-red": Value(3.5, 3.0, 4.0), "drift-grey": Value(None)}
    return run


def page_of(run: RunRecord) -> str:
    items = [ShownItem(0, "a.png", "a.png")]
    values = {row.label: {"PSNR": np.array([[20.0]])} for row in run.rows if row.status == "ok"}
    return render(PageData(run, items, values), {"inside": True, "shown": 1, "whole": {}, "folder": "x"}, {})


def test_the_tables_say_what_the_record_says() -> None:
    run = reviewed()
    review = review_of(run)
    assert review.any
    assert review.costs is not None
    assert review.timed_on == "a processor"
    assert review.costs.head[3:8] == [
        "parameters, M: all", "parameters, M: encode", "parameters, M: decode", "GFLOPs: encode", "GFLOPs: decode",
    ]  # fmt: skip
    assert review.costs.head[-1] == "images/s: decode", "the device is the same for all"
    by_row = {line[0]: line for line in review.costs.lines}
    assert by_row["a-mini"][1:] == [
        "64", "640", "2.50", "1.00", "1.50", "0.2", "1", "1", "9.0", "11.0", "1,234", "1,234",
    ]  # fmt: skip
    page = Page(page_of(run))
    text = " ".join(page.texts)
    for said in (
        "Costs",
        "Few steps",
        "Colour by hue",
        "Round trips",
        "on a processor; speed.csv",
        "no network of torch",
    ):
        assert said in text
    assert "What files are made of" not in text
    run.rows[2].speed["decode"].devices = ["another"]
    found = review_of(run)
    assert found.timed_on == ""
    assert found.costs is not None
    assert found.costs.head[-1] == "timed on"


def test_the_plots_have_the_figures_of_the_record() -> None:
    run = reviewed()
    found = review_json(run)
    assert found["costs"] == {"2": 1.0, "3": 2.0, "4": 1.0}
    assert found["steps"] == {"3": 2, "4": 1}, "a-mini has one number of evaluations alone"
    assert [column["name"] for column in found["stepColumns"]] == ["PSNR", "FD-effnet"]
    (drift,) = found["drift"]
    assert (drift["name"], drift["arrow"]) == ("PSNR", "↑")
    assert drift["rows"] == {number: [20.0, None, 18.5] for number in ("2", "3", "4")}, "identity loses nothing"
    assert [column["hue"] for column in found["hues"]] == ["red"]


def test_a_run_without_a_review_has_no_such_section() -> None:
    run = make_run()
    assert not review_of(run).any
    text = page_of(run)
    assert 'id="review"' not in text
    found = review_json(run)
    assert not any(found[key] for key in ("costs", "steps", "stepColumns", "drift", "hues"))


def test_in_a_browser_the_review_is_plotted_in_both_themes(tmp_path: Path) -> None:
    program = find()
    path = tmp_path / "report.html"
    path.write_text(page_of(reviewed()), encoding="utf-8")
    with Browser(program, tmp_path / "profile") as tab:
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        tab.call("Page.navigate", url=path.as_uri())
        drawn = (
            "[...document.querySelectorAll('#review .panels > div')].filter((one) => one.querySelector('.main-svg'))"
        )
        tab.until(f"{drawn}.length === 6")
        assert tab.evaluate("document.documentElement.dataset.theme") == "light"
        points = "[...byId('{}').children].map((one) => one.data.map((line) => [line.x, line.y]))"
        assert tab.evaluate(points.format("drift-plot")) == [[[[1, 2, 3], [20, None, 18.5]]] * 3]
        assert tab.evaluate(points.format("steps-plot"))[0] == [[[1, 2], [21.9, 21.9]]]
        assert tab.evaluate(points.format("hues-plot")) == [[[[0], [3.5]]] * 3]
        assert tab.evaluate("byId('costs-plot').children[0].data.length") == 3
        assert tab.evaluate("byId('steps-plot').children[0].layout.xaxis.tickvals") == [1, 2]
        colour = "byId('drift-plot').children[0].data[0].line.color"
        light = tab.evaluate(colour)
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        tab.until(f"document.documentElement.dataset.theme === 'dark' && {colour} !== '{light}'")
        tab.evaluate("byId('filter').value = 'a-mini'; byId('filter').dispatchEvent(new Event('input'))")
        tab.until("byId('drift-plot').children[0].data.length === 1")
        assert tab.evaluate("byId('steps-plot').children[0].hidden"), "none of its rows is shown"
        assert tab.problems() == []
        assert [url for url in tab.requests() if url != path.as_uri()] == []
