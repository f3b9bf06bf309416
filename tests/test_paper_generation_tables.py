"""Tables 3 and 6: put together from records, run with painters in the place of the generators, and in miniature."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from evals import record
from evals.cli.report import main as report
from evals.config import compose_config, compose_runs
from evals.engine.rows import Row, Wanted, resolve_rows
from evals.metrics.base import ImageMetric
from evals.metrics.judges.geneval.logic import TASKS, Verdict
from evals.metrics.judges.geneval.score import GenEvalScore
from evals.published.tables import SECOND_HAND, published
from evals.record import ColumnRecord, RowRecord, RunRecord, Speed, Value
from evals.report.comparison import (
    ITEMS,
    compared,
    incomparable_run,
    paper_protocol,
    published_comparisons,
    raw_columns,
    row_key,
)
from evals.report.markdown import render as render_report
from evals.report.paper import NOT_MEASURED, Found, PaperCell, PaperTable, assemble
from evals.report.paper_text import FORMATS, figure_text
from evals.run import main as evals
from evals.suites.catalog import GENERATORS, suites
from lactok import registry
from lactok.interface import Generator, GeneratorInfo
from tests import twins
from tests.geneval_twin import write_geneval
from tests.tiny_generator import captioned_gpt, write_gpt

PROTOCOL = paper_protocol("generation")
TABLES = ("table3", "table6")
PREFERENCE = ("ImageReward", "MPS", "HPSv2-2.0", "HPSv2-2.1")
CONFIG = {"weights": "paper", "features": "inception", "seed": 0, "seeds": 1}
NINE = {"guidance_scale": 9.0}


def row(name: str, *columns: str, value: float = 0.5, **fields) -> RowRecord:
    cells = {column: Value(value, value - 0.02, value + 0.02, count=553) for column in columns}
    return RowRecord(name, name, cells=cells, **fields)


def geneval(*rows: RowRecord, **fields) -> RunRecord:
    return run("geneval", *rows, **({"config": CONFIG | {"seeds": 4}} | fields))


def run(place: str, *rows: RowRecord, day: int = 1, **fields) -> RunRecord:
    """A record over all of the dataset `place`."""
    usual = {
        "suite": "table3", "task": "generation", "scale": "paper", "config_hash": "0",
        "config": CONFIG, "protocol": PROTOCOL.as_dict(),
        "protocol_hash": PROTOCOL.hash, "dataset": place, "dataset_fingerprint": place, "unit": "prompts",
        "items": ITEMS["generation"][place], "clusters": ITEMS["generation"][place],
        "columns": [ColumnRecord("GenEval", "higher"), ColumnRecord("HPSv2-2.1", "higher", 4)], "complete": True,
        "started": f"2025-01-{day:02}T00:00:00+00:00",
    }  # fmt: skip
    return RunRecord(rows=list(rows), **(usual | fields))


def table(*runs: RunRecord, name: str = "table3") -> PaperTable:
    newest = sorted(runs, key=lambda r: r.started, reverse=True)
    return assemble(name, [Found(r, Path(f"run-{r.started[8:10]}")) for r in newest])


def cells(made: PaperTable, key: str) -> dict[tuple[str, str], PaperCell]:
    (line,) = [r for r in made.rows if r.tokenizer == key]
    return dict(zip(made.columns, line.cells))


def notes(made: PaperTable, cell: PaperCell) -> str:
    return "; ".join(made.footnotes[number - 1] for number in cell.notes)


def rows_of(config) -> list[Row]:
    options = {name: values for name, values in config.options.items() if name in config.generators}
    return resolve_rows(Wanted("generators", config.generators, config.weights, False, options, (Generator,)))


# --- the layout


def test_table_three_has_all_six_tasks_both_versions_of_hpsv2_and_the_time():
    made = table()
    assert made.columns == [
        *(("GenEval", task) for task in ("two objects", "position", "colour attribution", "overall")),
        *(("GenEval", task) for task in ("single object", "counting", "colours")),
        *(("MSCOCO-2017", metric) for metric in ("ImageReward", "MPS", "HPSv2 2.1", "HPSv2 2.0")),
        ("seconds", "an image"),
    ]
    assert [r.tokenizer for r in made.rows[10:]] == ["llamagen-t2i-512", "showo-512"]
    assert all(made.footnotes[r.notes[0] - 1] == "no row of the paper's" for r in made.rows[10:])
    assert [r.notes for r in made.rows[:10]] == [()] * 10


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_rows_stand_in_its_order_and_every_printed_cell_is_there(name: str):
    made = table(name=name)
    figures = [f for f in published(suites()[name].table) if f.origin != SECOND_HAND]
    assert list(dict.fromkeys(f.row for f in figures)) == [r.label for r in made.rows][: 10 if name == "table3" else 4]
    held = [(r.label, one.published) for r in made.rows for one in r.cells if one.published]
    assert held == [(f.row, f.printed) for f in figures]
    assert {r.tokenizer.split("[")[0] for r in made.rows} == set(suites()[name].generators)


@pytest.mark.parametrize("name", TABLES)
def test_without_runs_every_figure_is_missing_with_a_command_that_measures_it(name: str, tmp_path: Path, capsys):
    made = table(name=name)
    assert made.measured == 0
    suite = suites()[name]
    for line in made.rows:
        by_group = {group: one.notes[0] for one, (group, _) in zip(line.cells, made.columns) if group != "seconds"}
        for group, number in by_group.items():
            command = made.footnotes[number - 1].removeprefix(f"{NOT_MEASURED}: python -m evals.run ")
            dataset = command.split("dataset=")[1]
            assert suite.datasets[dataset] == group
            assert command == f"suite={name} generators={line.tokenizer.split('[')[0]} dataset={dataset}"
            if line.tokenizer in ("sd1.5", "lactokgen-t-star[guidance_scale=7.0]"):  # composing takes time
                keys = [row_key(as_record(r), suite, dataset) for r in rows_of(compose_config(command.split()))]
                assert line.tokenizer in keys
    (tmp_path / "runs").mkdir()  # without which the folder holds no runs, which is an error of its own
    assert report([name, "--out", str(tmp_path)]) == 1
    assert "figures are not measured" in capsys.readouterr().err
    for form in FORMATS:
        text = (tmp_path / "tables" / f"{name}.{form}").read_text()
        assert NOT_MEASURED in text
        assert "LacTokGen-T" in text


def as_record(made: Row) -> RowRecord:
    return RowRecord(made.label, made.name, options=made.changed)


def test_each_published_figure_says_whether_it_was_cited_or_measured():
    found = cells(table(), "sd1.5")
    assert figure_text(found["GenEval", "overall"]) == "not measured (published 0.43, cited)"
    assert figure_text(found["MSCOCO-2017", "MPS"]) == "not measured (published 10.08, measured)"
    assert cells(table(), "flux.1-dev")["GenEval", "overall"].origin == "unclear"
    assert "quoted from README of djghosh13/geneval" in notes(table(), found["GenEval", "overall"])
    assert "published GenEval position: the paper prints a dash" in notes(
        table(), cells(table(), "hart")["GenEval", "position"]
    )
    six = cells(table(name="table6"), "lactokgen-t-star")["MSCOCO-2017", "MPS"]
    assert figure_text(six) == "not measured (published 12.38, measured)"


@pytest.mark.parametrize("name", ["lactokgen-h", "lactokgen-h-star", "lactokgen-t-star"])
def test_a_judge_that_selected_the_training_pairs_is_named_beside_its_figures(name: str):
    named = row(name, *PREFERENCE, options={"gpt": "/models/gpt.pth"})
    for made in (table(), table(run("coco-captions", named))):
        found = cells(made, name)
        for metric in ("ImageReward", "MPS"):
            assert "selected LacTokGen's training pairs (section 4.4)" in notes(made, found["MSCOCO-2017", metric])
        assert "held out" in notes(made, found["MSCOCO-2017", "HPSv2 2.1"])
    assert found["MSCOCO-2017", "MPS"].text == "0.500"
    assert found["MSCOCO-2017", "MPS"].published == "", "these weights may be others"


# --- one line of runs with different settings


def test_options_of_the_suite_on_a_dataset_make_no_other_row():
    suite = suites()["table3"]
    assert suite.options_on("geneval") == {"sd1.5": {"guidance_scale": 9}, "sdxl": {"guidance_scale": 9}}
    assert suite.options_on("coco-captions") == {}
    assert suites()["table6"].options_on("coco-captions") == {}, "several values make rows that differ"
    assert row_key(row("sd1.5", options=NINE), suite, "geneval") == "sd1.5"
    assert row_key(row("sd1.5", options=NINE), suite, "coco-captions") == "sd1.5[guidance_scale=9.0]"
    assert row_key(row("sd1.5"), suite, "geneval") == "sd1.5[guidance_scale=7.5]"
    assert row_key(row("sd1.5"), suite, "coco-captions") == "sd1.5"
    assert row_key(row("sd1.5", options=NINE)) == "sd1.5[guidance_scale=9.0]"
    assert row_key(row("gone", options={"weights": "x", "steps": 2}), suite, "geneval") == "gone[steps=2]"


def test_both_datasets_make_one_line():
    made = table(
        geneval(row("sd1.5", "GenEval", options=NINE), row("sdxl", "GenEval", value=0.54)),
        run("coco-captions", row("sd1.5", *PREFERENCE), row("sdxl", *PREFERENCE, options=NINE)),
    )
    found = cells(made, "sd1.5")
    assert figure_text(found["GenEval", "overall"]) == (
        "0.500 ±0.020 (published 0.43, cited: +0.070, beyond the interval)"
    )
    assert found["MSCOCO-2017", "HPSv2 2.1"].published == "0.285"
    assert found["MSCOCO-2017", "HPSv2 2.0"].text == "0.500"
    assert found["MSCOCO-2017", "HPSv2 2.0"].published == "", "2.1 is what it is set beside"
    assert {one.text for one in cells(made, "sdxl").values()} == {NOT_MEASURED}, "its guidance is another on both"
    assert made.measured == 1 + 4
    assert made.warnings == []


def test_a_run_of_another_suite_fills_the_table_too():
    alone = geneval(row("sd1.5", "GenEval", options=NINE), suite="geneval")
    assert cells(table(alone), "sd1.5")["GenEval", "overall"].published == "0.43"
    assert table(geneval(row("sd1.5", "GenEval"), suite="generate")).measured == 0


def test_figures_of_fewer_images_a_prompt_are_left_out_or_named():
    one = {"config": {"weights": "paper", "seeds": 1}, "day": 2}
    made = table(geneval(row("hart", "GenEval")), geneval(row("sd3", "GenEval"), **one))
    assert cells(made, "sd3")["GenEval", "overall"].text == NOT_MEASURED
    assert made.left_out == ["run-02: 1 image of each prompt of geneval, not 4"]
    alone = table(geneval(row("sd3", "GenEval"), **one))
    assert cells(alone, "sd3")["GenEval", "overall"].text == "0.500"
    assert alone.warnings == ["1 image of each prompt of geneval, which asks for 4 (seeds=4)"]


def test_table_six_has_a_row_a_scale_and_its_own_published_figures():
    scales = [{}, *({"guidance_scale": scale} for scale in (1.5, 3.0, 7.0))]
    rows = [row("lactokgen-t-star", *PREFERENCE, options=options) for options in scales]
    measured = run("coco-captions", *rows)
    made = table(measured, name="table6")
    assert [r.cells[0].published for r in made.rows] == ["0.86", "0.89", "0.90", "0.90"]
    assert made.measured == 16
    assert cells(table(measured), "lactokgen-t-star")["MSCOCO-2017", "ImageReward"].published == "0.90"
    assert published_comparisons(measured, rows[0])["ImageReward"].figure.table == 3
    measured.suite = "table6"
    assert published_comparisons(measured, rows[0])["ImageReward"].figure.table == 6


def test_seconds_an_image_say_how_they_were_timed():
    timed = Speed(0.4, [4], [1], ["a GPU"], 100.0)
    made = table(
        geneval(row("hart", "GenEval", speed={"generate": timed}, precision="fp32")),
        run("coco-captions", row("hart", "MPS"), row("sd3", "MPS")),
    )
    found = cells(made, "hart")["seconds", "an image"]
    assert found.text == "2.5"
    assert notes(made, found) == "seconds an image of geneval, timed on a GPU, batch 4, fp32"
    untimed = cells(made, "sd3")["seconds", "an image"]
    assert untimed.text == NOT_MEASURED
    assert "(the run has no timing)" in notes(made, untimed)


# --- comparison


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scale": "mini"}, "miniature"),
        ({"config": {"weights": "mini", "seeds": 4}}, "miniature"),
        ({"protocol_hash": "0", "protocol": {"name": "half"}}, r"protocol half \(0\), not as-generated"),
        ({"dataset": "prompts"}, r"dataset prompts is none of the paper's \(geneval, coco-captions\)"),
        ({"items": 60}, "60 prompts of geneval; the paper has 553"),
        ({"config": {"weights": "paper", "seeds": 2}}, "2 images of each prompt of geneval, which asks for 4"),
        ({"config": {"weights": "paper"}}, "1 image of each prompt"),
    ],
)
def test_what_does_not_compare_says_why(fields: dict, reason: str):
    made = row("hart", "GenEval")
    other = geneval(made, **fields)
    assert re.search(reason, incomparable_run(other))
    assert published_comparisons(other, made) == {}


def test_a_run_of_generation_shows_the_published_figures_itself():
    measured = geneval(row("sd1.5", "GenEval", "GenEval-position", options=NINE))
    assert incomparable_run(measured) == ""
    assert raw_columns(measured)[0]["GenEval_published"] == 0.43
    text = render_report(measured)
    assert "| generator | metric | measured, 95 % interval |" in text
    assert "| sd1.5 | GenEval | 0.500 ±0.020 | 0.43 | +0.070 | beyond the interval |" in text
    figure = next(f for f in published(3) if f.row == "HART" and f.metric == "GenEval overall")
    assert compared(Value(0.5), figure).verdict == "no interval"


# --- end to end, with painters in the place of the generators


class Painter(Generator):
    """A grey that depends on prompt, seed and guidance; its brightness is what `Brightness` sees."""

    @property
    def info(self):
        return GeneratorInfo("painter", settings={"guidance_scale": getattr(self.options, "guidance_scale", None)})

    def generate(self, items, seed_indices, seeds):
        guided = 0.02 * (getattr(self.options, "guidance_scale", None) or 0)
        return [torch.full((3, 16, 16), (seed % 61) / 100 + guided) for seed in seeds]


class Brightness(ImageMetric):
    """In the place of a judge of preference."""

    summary, needs_reference = "brightness", False

    def embed(self, images, items):
        return images.float().mean(dim=(1, 2, 3)).double()

    def score(self, reference, embedding, items):
        return {self.columns[0].name: embedding / 255}


class Bright(GenEvalScore):
    """In the place of GenEval: an image is correct where it is bright."""

    summary, prefix = "brightness", "GenEval"

    def verdicts(self, images, metadata):
        return [Verdict(bool(image.float().mean() > 100), ()) for image in images]


@pytest.fixture
def painters(monkeypatch: pytest.MonkeyPatch):
    """Painters and judges of brightness under the names of the suites' generators and metrics, their options kept."""
    load = registry.load

    def toy(group: str, name: str):
        found = load(group, name)
        if group == "generators" and name in GENERATORS:
            return type(found.__name__, (Painter,), {"Options": found.Options, "path_options": found.path_options})
        if group == "metrics" and (name == "geneval" or name in map(str.lower, PREFERENCE)):
            kind = Bright if name == "geneval" else Brightness
            return type(found.__name__, (kind,), {"name": name, "columns": found.columns})
        return found

    monkeypatch.setattr(registry, "load", toy)


def test_one_command_makes_each_table(tmp_path: Path, painters, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    prompts, coco = write_geneval(tmp_path / "geneval"), twins.coco(tmp_path / "coco", "folder")
    common = ["device=cpu", f"dataset.expect={twins.COUNT}", "calibration=false", "workers=1", f"out='{out}'"]
    roots = [f"roots.geneval='{prompts}'", f"roots.coco-captions='{coco}'"]
    assert evals(["suite=table3", *common, *roots]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "12 prompts of geneval; the paper has 553" in told
    assert "12 prompts of coco-captions; the paper has 5,000" in told
    runs = {r.dataset: r for r in (record.read(path) for path in out.glob("runs/table3-*/run.json"))}
    assert {name: (r.rows[0].seeds, len(r.rows)) for name, r in runs.items()} == {
        "geneval": (4, 12), "coco-captions": (1, 12),
    }  # fmt: skip
    labels = {name: {r.label for r in made.rows if r.name in ("sd1.5", "sdxl")} for name, made in runs.items()}
    assert labels["geneval"] == {"sd1.5[guidance_scale=9.0]", "sdxl[guidance_scale=9.0]"}
    assert labels["coco-captions"] == {"sd1.5", "sdxl"}
    text = (out / "tables" / "table3.md").read_text()
    assert NOT_MEASURED not in text
    assert text.count("\n| ") == 1 + 12

    assert evals(["suite=table6", *common, f"roots.coco-captions='{coco}'"]) == 0, capsys.readouterr().err
    (made,) = (record.read(path) for path in out.glob("runs/table6-*/run.json"))
    assert [r.settings["guidance_scale"] for r in made.rows] == [1.5, 2.0, 3.0, 7.0]
    rewards = [r.cells["ImageReward"].value for r in made.rows]
    assert rewards == sorted(rewards)
    assert len(set(rewards)) == 4
    six = (out / "tables" / "table6.md").read_text()
    assert NOT_MEASURED not in six
    assert "HPSv2 2.0" in six
    for name in TABLES:
        assert report([name, "--out", str(out)]) == 0


def test_a_part_of_table_three_runs_alone_and_its_report_says_what_is_missing(
    tmp_path: Path, painters, capsys: pytest.CaptureFixture[str]
):
    prompts = write_geneval(tmp_path / "geneval")
    given = ["suite=table3", "device=cpu", "generators=[hart]", "dataset=geneval", f"dataset.root='{prompts}'"]
    assert evals([*given, "dataset.expect=12", "calibration=false", "workers=1", f"out='{tmp_path / 'out'}'"]) == 0
    assert "136 of 144 figures are not measured" in capsys.readouterr().err
    assert report(["table3", "--out", str(tmp_path / "out")]) == 1


# --- in miniature


def test_both_tables_in_miniature(tmp_path: Path):
    gpt = write_gpt(tmp_path / "gpt.safetensors", captioned_gpt())
    common = ["scale=mini", "limit=6", "seeds=1", "calibration=false", "device=cpu", "workers=1", f"out={tmp_path}"]
    named = {
        name: f"options.{name}.gpt={gpt}" for name in ("lactokgen-h-mini", "lactokgen-t-mini", "llamagen-t2i-mini")
    }
    assert evals(["suite=table3", *common, *named.values()]) == 0
    assert evals(["suite=table6", *common, named["lactokgen-t-mini"]]) == 0
    found = {path.parent.name.split("-")[0]: record.read(path) for path in tmp_path.glob("runs/*/run.json")}
    assert {r.name for r in found["table3"].rows} == set(named)
    assert [r.settings["guidance_scale"] for r in found["table6"].rows] == [1.5, 2.0, 3.0, 7.0]
    for made in found.values():
        assert (made.dataset, made.items) == ("scene-prompts", 6)
        assert all(0 <= r.cells["GenEval-small"].value <= 1 for r in made.rows)
        assert all(f"GenEval-small-{task}" in r.cells for r in made.rows for task in TASKS)
        assert "a miniature" in incomparable_run(made)
        told = [line.split(":")[0] for line in made.notes if "not measured here; metrics=[...," in line]
        assert told == ["ImageReward", "MPS", "HPSv2-2.0", "HPSv2-2.1"]
        assert "zai-org/ImageReward/ImageReward.pt" in made.notes[0]
    assert not (tmp_path / "tables").exists(), "no table of the paper's"


def test_the_miniature_takes_four_images_of_a_prompt():
    for name in TABLES:
        (config,) = compose_runs([f"suite={name}", "scale=mini"])
        assert (config.dataset.name, config.seeds, config.metrics) == ("scene-prompts", 4, ["geneval-small"])
    (asked,) = compose_runs(["suite=table3", "scale=mini", "metrics=[geneval-small,mps]"])
    assert asked.unasked == ("imagereward", "hpsv2-2.0", "hpsv2-2.1")
    assert all(config.unasked == () for config in compose_runs(["suite=table3"]))


# --- nothing in place


@pytest.mark.parametrize(
    ("suite", "datasets", "metrics"),
    [
        ("geneval", ["geneval"], {"geneval"}),
        ("preference", ["coco-captions"], {"imagereward", "mps", "hpsv2-2.0", "hpsv2-2.1"}),
        ("table3", ["geneval", "coco-captions"], {"geneval", "imagereward", "mps", "hpsv2-2.0", "hpsv2-2.1"}),
        ("table6", ["coco-captions"], {"imagereward", "mps", "hpsv2-2.0", "hpsv2-2.1"}),
    ],
)
def test_all_that_is_missing_is_told_at_once(
    suite: str, datasets: list[str], metrics: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    scale = ["scale=paper"] if suite == "geneval" else []
    assert evals([f"suite={suite}", *scale, "offline=true", "workers=1", f"out={tmp_path}/out"]) == 2
    told = capsys.readouterr().err
    listed = re.findall(r"^  \d+\. (dataset|model|metric|a GPU),? ?(\S+?):? ", told, re.MULTILINE)
    assert [name for kind, name in listed if kind == "dataset"] == datasets
    assert len([kind for kind, _ in listed if kind == "a GPU"]) == 1
    assert {name for kind, name in listed if kind == "metric"} == metrics
    assert {name for kind, name in listed if kind == "model"} == set(suites()[suite].generators)
    assert all(f"`python -m evals data get {name}`" in told for name in datasets)
    assert f"lacks {len(re.findall(r'^  [0-9]+[.] ', told, re.MULTILINE))}:" in told
    assert not (tmp_path / "out" / "runs").exists()
