"""The paper's tables: as suites, put together from runs, with published figures compared with measured ones."""

import re
import shlex
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from evals import record
from evals.cli.report import main
from evals.config import ConfigError, RunConfig, compose_config, compose_runs
from evals.engine.rows import Row, Wanted, resolve_rows
from evals.published.tables import PublishedFigure, published
from evals.record import ColumnRecord, Origin, RowRecord, RunRecord, Value, WeightsRecord
from evals.report.comparison import compared, incomparable_run, paper_protocol, published_comparisons, row_key
from evals.report.markdown import render as render_report
from evals.report.paper import NOT_MEASURED, Found, assemble, read_runs
from evals.report.paper_text import figure_text, render, tex
from evals.report.table import raw_frame
from evals.run import main as evals
from evals.suites.catalog import PAPER_TABLES, suites
from lactok import registry
from lactok.interface import Tokenizer
from tests.support import TOY, install_plugin, pictures, the_run

PAPER = paper_protocol()
RECONSTRUCTION = [name for name, suite in PAPER_TABLES.items() if suite.task == "reconstruction"]
RFID = ColumnRecord("rFID", "lower", 3, kind="set")
PSNR = ColumnRecord("PSNR", "higher", 2, "dB")


def row(name: str = "titok", rfid: float = 2.41, half: float | None = 0.05, **fields) -> RowRecord:
    low, high = (None, None) if half is None else (rfid - half, rfid + half)
    cells = {"rFID": Value(rfid, low, high, count=50_000), "PSNR": Value(19.5, 19.4, 19.6, count=50_000)}
    weights = [WeightsRecord("yucornetto/titok/model.safetensors", "a" * 64, False)]
    return RowRecord(name, name, **({"cells": cells, "weights": weights} | fields))


def run(*rows: RowRecord, day: int = 1, **fields) -> RunRecord:
    usual = {
        "suite": "table1", "task": "reconstruction", "scale": "paper", "config_hash": "0",
        "config": {"weights": "paper", "features": "inception", "seed": 0},
        "protocol": PAPER.as_dict(), "protocol_hash": PAPER.hash, "dataset": "imagenet-val", "dataset_fingerprint": "f",
        "items": 50_000, "clusters": 50_000, "columns": [RFID, PSNR], "device": "a GPU", "complete": True,
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
    return cells(made, "titok")["ImageNet", "rFID"]


# --- suites


def rows_of(config: RunConfig, options: dict) -> list[Row]:
    """The rows of a table's run without calibration rows."""
    return resolve_rows(Wanted("tokenizers", config.tokenizers, config.weights, False, options, (Tokenizer,)))


@pytest.mark.parametrize("suite", RECONSTRUCTION)
def test_a_table_is_a_paper_scale_suite_of_the_layouts_tokenizers(suite: str):
    config = compose_config([f"suite={suite}", "dataset=folder"])
    assert (config.suite, config.scale, config.weights, config.features) == (suite, "paper", "paper", "inception")
    assert config.make_protocol() == PAPER
    rows = rows_of(config, config.options)
    figures = published(PAPER_TABLES[suite].table)
    assert {r.label for r in rows} == {f.tokenizer for f in figures}
    assert list(PAPER_TABLES[suite].datasets) == list(dict.fromkeys(f.dataset for f in figures))
    assert list(PAPER_TABLES[suite].tokenizers) == list(dict.fromkeys(f.tokenizer.split("[")[0] for f in figures))


def test_a_tables_scale_dataset_and_tokenizers_can_be_named():
    config = compose_config(["suite=table1", "scale=mini", "tokenizers=[titok]"])
    assert (config.scale, config.dataset.name, config.tokenizers) == ("mini", "photos", ["titok"])
    assert compose_config(["suite=table2", "dataset=photos"]).scale == "paper"


@pytest.mark.parametrize(
    ("suite", "datasets"),
    [
        ("table1", ["imagenet-val", "coco-val2017"]),
        ("table2", ["mjhq-5k", "flux-5k"]),
        ("table4", ["mjhq-5k"]),
        ("table5", ["mjhq-5k"]),
    ],
)
def test_a_table_is_a_run_on_each_of_its_datasets(suite: str, datasets: list[str]):
    assert set(datasets) <= set(registry.entries("datasets"))
    runs = compose_runs([f"suite={suite}", *(f"roots.{name}='/my data/{name}'" for name in datasets)])
    assert [(run.dataset.name, run.dataset.root) for run in runs] == [(n, f"/my data/{n}") for n in datasets]
    (alone,) = compose_runs([f"suite={suite}", f"dataset={datasets[-1]}", "dataset.root=/data"])
    assert (alone.dataset.name, alone.dataset.root) == (datasets[-1], "/data")


def test_the_folder_of_a_tables_only_dataset_may_be_given_plainly():
    config = compose_config(["suite=table4", "dataset.root=/data"])
    assert (config.dataset.name, config.dataset.root) == ("mjhq-5k", "/data")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["suite=table7"], "unknown suite 'table7': did you mean"),
        (["suite=table1", "dataset.root=/x"], r"2 datasets.*roots.imagenet-val=DIR roots.coco-val2017=DIR"),
        (["suite=table1", "roots.coco=/x"], "unknown key 'roots.coco': did you mean 'roots.coco-val2017'"),
        (["suite=table1", "roots.coco-val2017"], "not of the form roots.NAME=DIR"),
        (["suite=table4", "roots.mjhq-5k=/x", "dataset.root=/y"], "give one of them"),
        (["suite=table1", "dataset=coco-val2017", "roots.coco-val2017=/x"], "dataset=coco-val2017 has one dataset"),
        (["suite=table1", "scale=mini", "roots.coco-val2017=/x"], "suite=table1 scale=mini has one dataset"),
        (["roots.coco-val2017=/x"], "suite=recon has one dataset"),
    ],
)
def test_folders_that_can_not_be_meant_are_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        compose_runs(overrides)


def test_one_run_is_not_taken_for_several():
    with pytest.raises(ConfigError, match="2 runs: name one of them by dataset=imagenet-val or dataset=coco-val2017"):
        compose_config(["suite=table1"])


def test_tables_one_and_two_have_no_unstarred_lactok_t():
    for name in ("table1", "table2"):
        assert "lactok-t" not in suites()[name].tokenizers
        assert not [f for f in published(PAPER_TABLES[name].table) if f.tokenizer == "lactok-t"]
    assert "lactok-t" in registry.entries("tokenizers")


def test_what_all_parts_of_a_table_lack_is_told_at_once(tmp_path: Path, capsys):
    given = [f"roots.imagenet-val={tmp_path}/nowhere", f"out={tmp_path}/out"]
    assert evals(["suite=table1", "device=cpu", *given]) == 2
    told = capsys.readouterr().err
    listed = re.findall(r"^  (\d+)\. (\w+) ([\w-]+): ", told, re.MULTILINE)
    assert [name for _, kind, name in listed if kind == "dataset"] == ["imagenet-val", "coco-val2017"]
    assert f"dataset=imagenet-val is not in {tmp_path}/nowhere" in told
    assert len([line for line in listed if line[1:] == ("model", "lactok-h")]) == 1, "told once for both parts"
    assert "roots.imagenet-val=DIR roots.coco-val2017=DIR" in told
    assert not (tmp_path / "out" / "runs").exists()


def test_all_that_is_missing_is_told_at_once(tmp_path: Path, capsys):
    nothing = ["device=cpu", "dataset=folder", f"dataset.root={tmp_path}/nowhere", f"out={tmp_path}/out"]
    assert evals(["suite=table1", *nothing]) == 2
    told = capsys.readouterr().err
    listed = re.findall(r"^  (\d+)\. (\w+) ([\w-]+): ", told, re.MULTILINE)
    assert [int(n) for n, _, _ in listed] == list(range(1, len(listed) + 1))
    assert f"lacks {len(listed)}:" in told
    assert ("dataset", "folder") in [found[1:] for found in listed]
    missing = {name for _, kind, name in listed if kind == "model"}
    here = re.search("weights are here: (.*?)\\. ", told).group(1).split(", ")
    assert missing | set(here) - {"none"} == {f.tokenizer for f in published(1)}
    assert {"lactok-h", "lactok-h-star"} <= missing, "never published"
    assert not (tmp_path / "out" / "runs").exists()


def test_without_any_weights_images_alone_are_not_measured(tmp_path: Path, capsys):
    folder = pictures(tmp_path / "pictures", 2)
    given = ["tokenizers=[lactok-h]", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path}"]
    assert evals(["suite=table4", "device=cpu", *given]) == 2
    told = capsys.readouterr().err
    assert "1. model lactok-h: no checkpoint of LacTok-H is published" in told
    assert "dataset folder" not in told


def test_a_missing_gpu_is_told_with_the_rest_unless_the_cpu_is_asked_for(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    folder = pictures(tmp_path / "pictures", 2)
    given = ["suite=table4", "tokenizers=[lactok-h]", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path}"]
    assert evals(given) == 2
    told = capsys.readouterr().err
    assert re.search(r"1\. a GPU, which scale=paper needs: torch .*; device=cpu runs it on the CPU", told)
    assert "2. model lactok-h: no checkpoint" in told
    assert evals([*given, "device=cpu"]) == 2
    assert "a GPU" not in capsys.readouterr().err


def test_what_a_table_lacks_is_told_in_time_without_a_network(tmp_path: Path, monkeypatch, capsys):
    """The images are there, so that weights would be downloaded; no host has an address here."""
    from lactok import hub

    def unknown(*_: object, **__: object) -> None:
        raise hub.urllib.error.URLError(socket.gaierror("no such host"))

    monkeypatch.setattr(hub.urllib.request, "urlopen", unknown)
    monkeypatch.setattr(hub, "is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub is asked"))
    hub.unreachable.cache_clear()
    folder, started = pictures(tmp_path / "pictures", 2), time.monotonic()
    given = ["suite=table1", "device=cpu", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path}"]
    assert evals(given) == 2
    assert time.monotonic() - started < 20
    told = capsys.readouterr().err
    assert "no network: huggingface.co does not answer (unknown host)" in told
    assert "14 files of hub repository sd2-community/stable-diffusion-2-1-unclip are not here" in told
    assert "options.NAME" not in told
    for command in re.findall(r"`((?:hf|curl) [^`]+)`", told):
        assert len(shlex.split(command)) >= 4
    hub.unreachable.cache_clear()


def test_a_table_runs_in_part_and_its_report_says_why_it_is_not_the_papers(tmp_path: Path, monkeypatch):
    plugin = install_plugin(tmp_path / "plugin", "tabletoy", TOY, {"toy": "Toy"})
    monkeypatch.syspath_prepend(str(plugin))
    registry.entries.cache_clear()
    folder = pictures(tmp_path / "pictures", 2)
    done = evals([
        "suite=table1", "device=cpu", "tokenizers=[toy,lactok-h]", "dataset=folder", f"dataset.root={folder}",
        f"out={tmp_path}", "metrics=[psnr]", "calibration=false",
    ])  # fmt: skip
    registry.entries.cache_clear()
    assert done == 1, "one of the rows lacks its weights"
    made = record.read(the_run(tmp_path) / "run.json")
    assert {r.label: r.status for r in made.rows} == {"toy": "ok", "lactok-h": "missing"}
    assert "- dataset folder is none of the paper's" in (the_run(tmp_path) / "report.md").read_text()


# --- comparison with published figures


def test_a_measured_figure_is_compared_with_the_papers():
    assert published_comparisons(run(), row()).keys() == {"rFID", "PSNR"}
    found = published_comparisons(run(), row())["rFID"]
    assert found.figure.value == 2.32
    assert found.difference == pytest.approx(0.09)
    assert found.beyond is True, "2.32 is below 2.36"
    assert published_comparisons(run(), row(half=0.1))["rFID"].beyond is False
    assert published_comparisons(run(), row(half=None))["rFID"].verdict == "no interval"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scale": "mini"}, "miniature"),
        ({"config": {"weights": "mini"}}, "miniature"),
        ({"protocol_hash": "0", "protocol": {"name": "native-256"}}, r"native-256 \(0\), not paper-1024"),
        ({"task": "generation"}, "paper-1024 .*, not as-generated"),
        ({"task": "other"}, "task other; the paper has figures of reconstruction and generation"),
        ({"dataset": "folder"}, "none of the paper's"),
        ({"items": 64}, "64 images of imagenet-val; the paper has 50,000"),
        ({"dataset": "mjhq-5k", "items": 5000}, "is not known"),
    ],
)
def test_what_does_not_compare_is_compared_with_nothing(fields: dict, reason: str):
    assert re.search(reason, incomparable_run(run(**fields)))
    assert published_comparisons(run(**fields), row()) == {}


def test_weights_named_by_a_path_may_be_others():
    local = row(options={"weights": "/models/titok.safetensors"})
    assert row_key(local) == "titok"
    assert published_comparisons(run(), local) == {}


def test_another_option_makes_another_row():
    assert row_key(row("lactok-h", options={"input_size": 224})) == "lactok-h[input_size=224]"
    assert published_comparisons(run(), row("flextok", options={"steps": 5})) == {}


def test_a_small_difference_of_rfid_at_few_images_is_no_evidence():
    figure = PublishedFigure(1, "X", "x", "coco-val2017", "rFID", "10.80", 10.8, "measured", "", "a paper", "")
    at = {"low": 10.9, "high": 11.1}
    assert "no evidence" in compared(Value(11.0, count=5000, **at), figure).verdict
    assert compared(Value(11.0, count=50_000, **at), figure).verdict == "beyond the interval"
    assert compared(Value(11.2, low=11.1, high=11.3, count=5000), figure).verdict == "beyond the interval"
    assert compared(Value(11.0, count=5000, **at), replace(figure, metric="PSNR")).verdict == "beyond the interval"


def test_rfid_warns_of_few_images():
    Rfid = registry.load("metrics", "rfid")
    assert "differences under 0.3 at N = 5000 are not evidence" in Rfid().note(5000)
    assert "evidence" not in Rfid().note(5001)
    assert Rfid().note(50_000) == ""


def test_a_runs_own_table_and_report_have_the_published_figures():
    measured = run(row(), row("llamagen"))
    frame = raw_frame(measured).set_index("tokenizer")
    assert frame.loc["titok", "rFID_published"] == 2.32
    assert frame.loc["titok", "rFID_difference"] == pytest.approx(0.09)
    assert frame.loc["titok", "rFID_beyond"] == 1
    assert frame.loc["llamagen", "rFID_published"] == 3.17
    assert frame.loc["llamagen", "PSNR_published"] == 19.94
    assert "SSIM_published" not in frame, "not measured"
    assert "| titok | rFID | 2.410 ±0.050 | 2.32 | +0.090 | beyond the interval |" in render_report(measured)


def test_a_miniature_has_no_published_columns():
    mini = run(scale="mini")
    assert not [c for c in raw_frame(mini) if c.endswith("_published")]
    assert "Comparison with published figures" not in render_report(mini)


# --- putting a table together


def test_lpips_is_compared_with_alexnets():
    measured = row()
    measured.cells["LPIPS-alex"] = Value(0.48, 0.47, 0.49, count=50_000)
    assert published_comparisons(run(measured), measured)["LPIPS-alex"].figure.printed == "0.49"
    assert cells(table(run(measured)), "titok")["ImageNet", "LPIPS"].published == "0.49"


@pytest.mark.parametrize("name", RECONSTRUCTION)
def test_without_runs_every_figure_is_missing_with_a_command_that_can_be_given(name: str):
    made = table(name=name)
    assert made.measured == 0
    assert all(cell.text == NOT_MEASURED and cell.notes for line in made.rows for cell in line.cells)
    for line in made.rows:
        command = made.footnotes[line.cells[0].notes[0] - 1].removeprefix(f"{NOT_MEASURED}: python -m evals.run ")
        config = compose_config(command.split())
        assert config.dataset.name in PAPER_TABLES[name].datasets
        labels = [r.label for r in rows_of(config, _own(config))]
        assert line.tokenizer in labels


def _own(config) -> dict:
    return {name: options for name, options in config.options.items() if name in config.tokenizers}


def test_a_table_fills_up_over_runs_and_the_newest_counts():
    first, second = run(row(), row("flextok"), day=1), run(row(rfid=2.3), row("llamagen"), day=2)
    made = table(first, second)
    assert titok_rfid(made).text == "2.300"
    assert cells(made, "flextok")["ImageNet", "PSNR"].text == "19.50"
    assert cells(made, "llamagen")["ImageNet", "PSNR"].text == "19.50"
    assert cells(made, "seedtok")["ImageNet", "PSNR"].text == NOT_MEASURED
    assert made.measured == 6, "three rows on one of two datasets, without SSIM and LPIPS"
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
    assert cells(made, "flextok")["ImageNet", "rFID"].text == NOT_MEASURED
    assert made.left_out == ["run-01: protocol native-256 (0123)"]
    chosen = table(other, run(day=2), protocol="0123")
    assert cells(chosen, "flextok")["ImageNet", "rFID"].text == "2.410"
    assert any("not paper-1024" in line for line in chosen.warnings)


def test_a_newer_trial_on_few_images_does_not_replace_the_whole():
    trial = run(row(rfid=99.0), day=2, items=64, dataset_fingerprint="g")
    made = table(run(day=1), trial)
    assert titok_rfid(made).text == "2.410"
    assert made.left_out == ["run-02: 64 other images of imagenet-val"]
    alone = table(trial)
    assert titok_rfid(alone).published == "", "64 images do not compare"
    assert alone.warnings == ["64 images of imagenet-val; the paper has 50,000"]


def test_weights_by_path_are_marked_and_miniatures_stay_out():
    made = table(run(row(options={"weights": "/models/t.pt"})))
    assert titok_rfid(made).text == "2.410"
    assert titok_rfid(made).published == ""
    assert any("named by weights" in note for note in made.footnotes)
    assert table(run(scale="mini")).measured == 0


def test_table_five_has_a_row_a_size():
    sizes = [row("lactok-h", options={"input_size": s} if s != 256 else {}) for s in (224, 256, 288)]
    made = table(run(*sizes, dataset="mjhq-5k", items=5000), name="table5")
    assert [(r.label, r.cells[0].text) for r in made.rows] == [
        (f"LacTok-H, {tokens} tokens", "2.410") for tokens in (192, 256, 324)
    ]
    assert any("14 x 14 = 196" in note for note in table(name="table5").footnotes)


def test_seedtoks_missing_ssim_keeps_its_reason():
    made = table()
    cell = cells(made, "seedtok")["ImageNet", "SSIM"]
    assert cell.published == "nan"
    assert any("prints nan" in made.footnotes[n - 1] for n in cell.notes)


# --- as text


def test_all_three_forms_hold_every_row(tmp_path: Path):
    made = table(run())
    for kind in ("md", "tex", "html"):
        text = render(made, kind)
        assert all(label in text.replace("\\*", "*") for label in ("SeedTok", "TiTok-S-128", "LacTok-T*"))
        assert "2.410" in text
    assert "<td>2.410 <small>±0.050</small>" in render(made, "html")


def test_latex_escapes_and_has_one_column_a_metric():
    assert tex("a_b & 95 % {x} #1 ±2 −3") == r"a\_b \& 95 \% \{x\} \#1 $\pm$2 $-$3"
    lines = [line for line in render(table(run()), "tex").splitlines() if line.endswith(r"\\") and " & " in line]
    body = [line for line in lines if "multicolumn" not in line]
    assert {line.count(" & ") for line in body} == {8}
    assert len(body) == 1 + 7
    assert r" & \multicolumn{4}{c}{ImageNet} & \multicolumn{4}{c}{MSCOCO-2017} \\" in lines


def test_markdown_rows_have_as_many_cells_as_the_header():
    lines = [line for line in render(table(run()), "md").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 7
    assert {line.count("|") for line in lines} == {2 + 8 + 1}


# --- the command


def store(out: Path, *runs: RunRecord) -> Path:
    for one in runs:
        folder = out / "runs" / f"run-{one.started[8:10]}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(record.to_json(one))
    return out


def test_the_command_writes_the_table_and_says_what_is_missing(tmp_path: Path, capsys):
    store(tmp_path, run(day=1), run(row("flextok"), day=2))
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert main(["table1", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "2.410 ±0.050" in shown.out
    assert "52 of 56 figures are not measured" in shown.err
    assert "broken/run.json is no JSON" in shown.err
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {"table1.md", "table1.tex", "table1.html"}


def test_a_whole_table_exits_0(tmp_path: Path):
    rows = [row(name) for name in dict.fromkeys(f.tokenizer for f in published(1))]
    for one in rows:
        one.cells["SSIM"] = one.cells["LPIPS-alex"] = Value(0.5, 0.4, 0.6, count=50_000)
    store(tmp_path, run(*rows))
    assert main(["table1", "--out", str(tmp_path)]) == 1, "a half of it"
    store(tmp_path, run(*rows, day=2, dataset="coco-val2017", dataset_fingerprint="g", items=5000))
    assert main(["table1", "--out", str(tmp_path)]) == 0


def test_where_no_run_can_be_read_the_reason_is_the_error(tmp_path: Path, capsys):
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"suite": "table1", "rows": []}')
    assert main(["table1", "--out", str(tmp_path)]) == 2
    assert f"error: {folder / 'run.json'} has schema 1, of an earlier version" in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()


def test_a_table_names_the_machine_that_measured_not_the_one_that_reports():
    measured = row(origins=[Origin("a far GPU", 8, {}, "c0de")])
    assert table(run(measured)).runs == ["run-01: 50,000 images of imagenet-val, 2025-01-01T00:00:00+00:00, a far GPU"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table7"], "unknown table 'table7'"),
        (["table1", "--protocol", "nope"], "has protocol nope; there: none"),
        ([], "the following arguments are required: TABLE"),
    ],
)
def test_what_can_not_be_made_exits_2(tmp_path: Path, capsys, arguments: list[str], message: str):
    (tmp_path / "runs").mkdir()
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_newest_run_is_first(tmp_path: Path):
    runs, unreadable = read_runs(store(tmp_path, run(day=1), run(day=3), run(day=2)))
    assert [f.run.started[8:10] for f in runs] == ["03", "02", "01"]
    assert unreadable == []
