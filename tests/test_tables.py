"""The paper's tables: as suites, put together from runs, with published figures beside measured ones that compare."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from evals import record
from evals.cli.report import main
from evals.config import PAPER_TABLES, compose_config
from evals.datasets.registry import dataset_names
from evals.engine.rows import resolve_rows
from evals.metrics.frechet import Rfid
from evals.published.tables import PublishedFigure, published
from evals.record import ColumnRecord, RowRecord, RunRecord, Value, WeightsRecord
from evals.report.beside import beside, compared, incomparable_run, paper_protocol, row_key
from evals.report.markdown import render as render_report
from evals.report.paper import NAMES, NOT_MEASURED, Found, assemble, read_runs
from evals.report.paper_text import figure_text, render, tex
from evals.report.table import raw_frame
from evals.run import main as evals
from lactok import registry
from tests.support import TOY, install_plugin, pictures, the_run

PAPER = paper_protocol()
RFID = ColumnRecord("rFID", "lower", 3)
PSNR = ColumnRecord("PSNR", "higher", 2, "dB", per_image=True)


def row(name: str = "titok", rfid: float = 2.41, half: float | None = 0.05, **fields) -> RowRecord:
    low, high = (None, None) if half is None else (rfid - half, rfid + half)
    cells = {"rFID": Value(rfid, low, high, count=50_000), "PSNR": Value(19.5, 19.4, 19.6, count=50_000)}
    weights = [WeightsRecord("yucornetto/titok/model.safetensors", "a" * 64, False)]
    return RowRecord(name, name, **({"cells": cells, "weights": weights} | fields))


def run(*rows: RowRecord, day: int = 1, **fields) -> RunRecord:
    usual = {
        "suite": "table1", "scale": "paper", "config_hash": "0",
        "config": {"weights": "paper", "features": "inception", "seed": 0},
        "protocol": PAPER.as_dict(), "protocol_hash": PAPER.hash, "dataset": "imagenet-val", "dataset_fingerprint": "f",
        "pictures": 50_000, "clusters": 50_000, "columns": [RFID, PSNR], "device": "a GPU", "complete": True,
        "started": f"2025-01-{day:02}T00:00:00+00:00",
    }  # fmt: skip
    return RunRecord(rows=list(rows) or [row()], **(usual | fields))


def table(*runs: RunRecord, name: str = "table1", protocol: str | None = None):
    """The table of runs in any order, as `read_runs` orders them."""
    newest = sorted(runs, key=lambda r: r.started, reverse=True)
    return assemble(name, [Found(r, Path(f"run-{r.started[8:10]}")) for r in newest], protocol)


def cells(made, tokenizer: str) -> dict:
    (line,) = [r for r in made.rows if r.tokenizer == tokenizer]
    return dict(zip(made.columns, line.cells))


def titok_rfid(made):
    return cells(made, "titok")["imagenet-val", "rFID"]


# --- suites


@pytest.mark.parametrize("suite", PAPER_TABLES)
def test_a_table_is_a_paper_scale_suite_of_the_layouts_tokenizers(suite: str):
    config = compose_config([f"suite={suite}", "dataset=folder"])
    assert (config.suite, config.scale, config.weights, config.features) == (suite, "paper", "paper", "inception")
    assert config.make_protocol() == PAPER
    rows = resolve_rows(config.tokenizers, config.weights, calibration=False, options=config.options)
    assert {r.label for r in rows} == {f.tokenizer for f in published(NAMES[suite]) if f.tokenizer}


def test_a_tables_scale_dataset_and_tokenizers_can_be_named():
    config = compose_config(["suite=table1", "scale=mini", "tokenizers=[titok]"])
    assert (config.scale, config.dataset.name, config.tokenizers) == ("mini", "photos", ["titok"])
    assert compose_config(["suite=table2", "dataset=photos"]).scale == "paper"


@pytest.mark.parametrize(("suite", "dataset"), PAPER_TABLES.items())
def test_a_table_takes_its_own_dataset_where_none_is_named(suite: str, dataset: str):
    assert dataset in dataset_names()
    assert compose_config([f"suite={suite}", "dataset.root=/data"]).dataset.name == dataset


def test_all_that_is_missing_is_told_at_once(tmp_path: Path, capsys):
    assert evals(["suite=table1", "dataset=folder", f"dataset.root={tmp_path}/nowhere", f"out={tmp_path}/out"]) == 2
    told = capsys.readouterr().err
    listed = re.findall(r"^  (\d+)\. (\w+) ([\w-]+): ", told, re.MULTILINE)
    assert [int(n) for n, _, _ in listed] == list(range(1, len(listed) + 1))
    assert f"lacks {len(listed)}:" in told
    assert ("dataset", "folder") in [found[1:] for found in listed]
    lacking = {name for _, kind, name in listed if kind == "tokenizer"}
    here = re.search("weights are here: (.*?)\\. ", told).group(1).split(", ")
    assert lacking | set(here) - {"none"} == {f.tokenizer for f in published(1)}
    assert {"lactok-h", "lactok-t"} <= lacking, "never published"
    assert not (tmp_path / "out" / "runs").exists()


def test_without_any_weights_pictures_alone_are_not_measured(tmp_path: Path, capsys):
    folder = pictures(tmp_path / "pictures", 2)
    assert (
        evals(["suite=table4", "tokenizers=[lactok-h]", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path}"])
        == 2
    )
    told = capsys.readouterr().err
    assert "1. tokenizer lactok-h: no checkpoint of LacTok-H is published" in told
    assert "dataset folder" not in told


def test_a_table_runs_in_part_and_its_report_says_why_it_is_not_the_papers(tmp_path: Path, monkeypatch):
    plugin = install_plugin(tmp_path / "plugin", "tabletoy", TOY, {"toy": "Toy"})
    monkeypatch.syspath_prepend(str(plugin))
    registry.entries.cache_clear()
    folder = pictures(tmp_path / "pictures", 2)
    done = evals([
        "suite=table1", "tokenizers=[toy,lactok-h]", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path}",
        "metrics=[psnr]", "calibration=false",
    ])  # fmt: skip
    registry.entries.cache_clear()
    assert done == 1, "one of the rows lacks its weights"
    made = record.read(the_run(tmp_path) / "run.json")
    assert {r.label: r.status for r in made.rows} == {"toy": "ok", "lactok-h": "missing"}
    assert "- dataset folder is none of the paper's" in (the_run(tmp_path) / "report.md").read_text()


# --- a published figure beside a measured one


def test_a_measured_figure_stands_beside_the_papers():
    (found,) = beside(run(), row()).values()
    assert found.figure.value == 2.32
    assert found.difference == pytest.approx(0.09)
    assert found.beyond is True, "2.32 is below 2.36"
    assert beside(run(), row(half=0.1))["rFID"].beyond is False
    assert beside(run(), row(half=None))["rFID"].verdict == "no interval"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scale": "mini"}, "miniature"),
        ({"config": {"weights": "mini"}}, "miniature"),
        ({"protocol_hash": "0", "protocol": {"name": "native-256"}}, r"native-256 \(0\), not paper-1024"),
        ({"dataset": "folder"}, "none of the paper's"),
        ({"pictures": 64}, "64 pictures of imagenet-val; the paper has 50,000"),
        ({"dataset": "mjhq-5k", "pictures": 5000}, "is not known"),
    ],
)
def test_what_does_not_compare_stands_beside_nothing(fields: dict, reason: str):
    assert re.search(reason, incomparable_run(run(**fields)))
    assert beside(run(**fields), row()) == {}


def test_weights_named_by_a_path_may_be_others():
    local = row(options={"weights": "/models/titok.safetensors"})
    assert row_key(local) == "titok"
    assert beside(run(), local) == {}


def test_another_option_makes_another_row():
    assert row_key(row("lactok-h", options={"input_size": 224})) == "lactok-h[input_size=224]"
    assert beside(run(), row("flextok", options={"steps": 5})) == {}


def test_a_small_difference_of_rfid_at_few_pictures_is_no_evidence():
    figure = PublishedFigure(2, "X", "x", "coco-val2017", "rFID", 10.8, "measured", "", "a paper", "")
    at = {"low": 10.9, "high": 11.1}
    assert "no evidence" in compared(Value(11.0, count=5000, **at), figure).verdict
    assert compared(Value(11.0, count=50_000, **at), figure).verdict == "beyond the interval"
    assert compared(Value(11.2, low=11.1, high=11.3, count=5000), figure).verdict == "beyond the interval"
    assert compared(Value(11.0, count=5000, **at), replace(figure, metric="PSNR")).verdict == "beyond the interval"


def test_rfid_warns_of_few_pictures():
    assert "differences under 0.3 at N = 5000 are not evidence" in Rfid().note(5000)
    assert "evidence" not in Rfid().note(5001)
    assert Rfid().note(50_000) == ""


def test_a_runs_own_table_and_report_have_the_published_figures():
    measured = run(row(), row("llamagen"))
    frame = raw_frame(measured).set_index("tokenizer")
    assert frame.loc["titok", "rFID_published"] == 2.32
    assert frame.loc["titok", "rFID_difference"] == pytest.approx(0.09)
    assert frame.loc["titok", "rFID_beyond"] == 1
    assert frame["rFID_published"].isna()["llamagen"]
    assert "PSNR_published" not in frame
    assert "| titok | rFID | 2.410 ±0.050 | 2.32 | +0.090 | beyond the interval |" in render_report(measured)


def test_a_miniature_has_no_published_columns():
    mini = run(scale="mini")
    assert not [c for c in raw_frame(mini) if c.endswith("_published")]
    assert "Beside the paper" not in render_report(mini)


# --- putting a table together


@pytest.mark.parametrize("name", NAMES)
def test_without_runs_every_figure_is_lacking_with_a_command_that_can_be_given(name: str):
    made = table(name=name)
    assert made.measured == 0
    assert all(cell.text == NOT_MEASURED and cell.notes for line in made.rows for cell in line.cells)
    for line in made.rows:
        command = made.footnotes[line.cells[0].notes[0] - 1].removeprefix(f"{NOT_MEASURED}: python -m evals.run ")
        overrides = [o for o in command.split() if not o.startswith("dataset")]
        config = compose_config([*overrides, "dataset=folder"])
        labels = [r.label for r in resolve_rows(config.tokenizers, config.weights, False, _own(config))]
        assert line.tokenizer in labels


def _own(config) -> dict:
    return {name: options for name, options in config.options.items() if name in config.tokenizers}


def test_a_table_fills_up_over_runs_and_the_newest_counts():
    first, second = run(row(), row("flextok"), day=1), run(row(rfid=2.3), row("llamagen"), day=2)
    made = table(first, second)
    assert titok_rfid(made).text == "2.300"
    assert cells(made, "flextok")["imagenet-val", "PSNR"].text == "19.50"
    assert cells(made, "llamagen")["imagenet-val", "PSNR"].text == "19.50"
    assert cells(made, "seedtok")["imagenet-val", "PSNR"].text == NOT_MEASURED
    assert made.measured == 6, "three rows, without SSIM"
    assert made.warnings == []


def test_a_newer_row_that_failed_does_not_hide_an_older_figure():
    failed = RowRecord("titok", "titok", status="missing", error="not here")
    assert titok_rfid(table(run(day=1), run(failed, day=2))).text == "2.410"
    made = table(run(failed))
    assert titok_rfid(made).text == NOT_MEASURED
    assert any("(missing: not here)" in note for note in made.footnotes)


def test_the_cell_shows_published_value_difference_and_verdict():
    assert figure_text(titok_rfid(table(run()))) == "2.410 ±0.050 (published 2.32: +0.090, beyond the interval)"


def test_protocols_are_never_mixed():
    other = run(row("flextok"), day=1, protocol_hash="0123", protocol={"name": "native-256"})
    made = table(other, run(day=2))
    assert cells(made, "flextok")["imagenet-val", "rFID"].text == NOT_MEASURED
    assert made.left_out == ["run-01: protocol native-256 (0123)"]
    chosen = table(other, run(day=2), protocol="0123")
    assert cells(chosen, "flextok")["imagenet-val", "rFID"].text == "2.410"
    assert any("not paper-1024" in line for line in chosen.warnings)


def test_a_newer_trial_on_few_pictures_does_not_replace_the_whole():
    trial = run(row(rfid=99.0), day=2, pictures=64, dataset_fingerprint="g")
    made = table(run(day=1), trial)
    assert titok_rfid(made).text == "2.410"
    assert made.left_out == ["run-02: 64 other pictures of imagenet-val"]
    alone = table(trial)
    assert titok_rfid(alone).published == "", "64 pictures do not compare"
    assert alone.warnings == ["64 pictures of imagenet-val; the paper has 50,000"]


def test_weights_by_path_are_marked_and_miniatures_stay_out():
    made = table(run(row(options={"weights": "/models/t.pt"})))
    assert titok_rfid(made).text == "2.410"
    assert titok_rfid(made).published == ""
    assert any("named by weights" in note for note in made.footnotes)
    assert table(run(scale="mini")).measured == 0


def test_table_five_has_a_row_a_size():
    sizes = [row("lactok-h", options={"input_size": s} if s != 256 else {}) for s in (224, 256, 288)]
    made = table(run(*sizes, dataset="coco-val2017", pictures=5000), name="table5")
    assert [r.cells[0].text for r in made.rows if r.label.startswith("LacTok-H,")] == ["2.410"] * 3


def test_seedtoks_missing_ssim_keeps_its_reason():
    made = table()
    notes = [made.footnotes[n - 1] for n in cells(made, "seedtok")["imagenet-val", "SSIM"].notes]
    assert any("prints nan" in note for note in notes)


# --- as text


def test_all_three_forms_hold_every_row(tmp_path: Path):
    made = table(run())
    for kind in ("md", "tex", "html"):
        text = render(made, kind)
        assert all(label in text.replace("\\*", "*") for label in ("SeedTok", "TiTok-S-128", "LacTok-T*"))
        assert "1 of 24 published figures are at hand" in text
        assert "2.410" in text
    assert "<td>2.410 <small>±0.050</small>" in render(made, "html")


def test_latex_escapes_and_has_one_column_a_metric():
    assert tex("a_b & 95 % {x} #1 ±2 −3") == r"a\_b \& 95 \% \{x\} \#1 $\pm$2 $-$3"
    lines = [line for line in render(table(run()), "tex").splitlines() if line.endswith(r"\\") and " & " in line]
    body = [line for line in lines if "multicolumn" not in line]
    assert {line.count(" & ") for line in body} == {3}
    assert len(body) == 1 + 8


def test_markdown_rows_have_as_many_cells_as_the_header():
    lines = [line for line in render(table(run()), "md").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8
    assert {line.count("|") for line in lines} == {6}


# --- the command


def store(out: Path, *runs: RunRecord) -> Path:
    for one in runs:
        folder = out / "runs" / f"run-{one.started[8:10]}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(record.to_json(one))
    return out


def test_the_command_writes_the_table_and_says_what_is_lacking(tmp_path: Path, capsys):
    store(tmp_path, run(day=1), run(row("flextok"), day=2))
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert main(["table1", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "2.410 ±0.050" in shown.out
    assert "20 of 24 figures are not measured" in shown.err
    assert "broken/run.json can't be read" in shown.err
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {"table1.md", "table1.tex", "table1.html"}


def test_a_whole_table_exits_0(tmp_path: Path):
    rows = [row(name) for name in dict.fromkeys(f.tokenizer for f in published(1))]
    for one in rows:
        one.cells["SSIM"] = Value(0.5, 0.4, 0.6, count=50_000)
    assert main(["table1", "--out", str(store(tmp_path, run(*rows)))]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table3"], "unknown table 'table3'"),
        (["table1", "--protocol", "nope"], "has protocol nope; there: none"),
        ([], "the following arguments are required: TABLE"),
    ],
)
def test_what_can_not_be_made_exits_2(tmp_path: Path, capsys, arguments: list[str], message: str):
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_newest_run_is_first(tmp_path: Path):
    runs, unreadable = read_runs(store(tmp_path, run(day=1), run(day=3), run(day=2)))
    assert [f.run.started[8:10] for f in runs] == ["03", "02", "01"]
    assert unreadable == []
