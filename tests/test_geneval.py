"""GenEval's decision logic and summary are the published ones; `geneval-small` tells true scenes from others."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from baselines.generators.calibration.adapter import ShuffledPrompts
from evals.cli.conformance import main
from evals.cli.failures import Failure, shown
from evals.engine.job import Chunk
from evals.engine.reduce import image_cells
from evals.metrics.judges.geneval.logic import (
    TASKS,
    Detected,
    Options,
    Question,
    colour_questions,
    judge,
    keep,
    relations,
)
from evals.metrics.judges.geneval.small import GenEvalSmall
from evals.metrics.judges.geneval.summary import summarise
from evals.metrics.plan import MetricPlan
from lactok.conformance import CaseFolder
from lactok.data.scenes import Split, scenes
from lactok.data.scenes.vocabulary import TASKS as SCENE_TASKS
from lactok.interface import Item, ItemsRefused, NoOptions
from tests.commands import evals
from tests.support import ROOT, install_plugin, table, the_run

GOLDEN = ROOT / "tests" / "golden" / "geneval"


def test_the_golden_logic_cases_are_decided_as_published(capsys):
    assert main([str(GOLDEN / "logic_cases.jsonl.gz")]) == 0
    output = capsys.readouterr().out
    assert output.count("(483 rows)") == 4
    assert output.endswith("4 checked: 4 passed, 0 failed\n")


def test_the_golden_summary_is_the_published_one(capsys):
    assert main([str(GOLDEN / "summary_rows.jsonl")]) == 0
    assert "8 checked: 8 passed, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value"), [("kept", {}), ("color_calls", [{}]), ("correct", None), ("reason", "expected")]
)
def test_a_changed_logic_case_fails_by_its_id(tmp_path: Path, capsys, field: str, value):
    rows = list(CaseFolder(GOLDEN / "logic_cases.jsonl.gz").rows())
    rows[7][field] = value
    path = tmp_path / "geneval" / "logic_cases.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(path)]) == 1
    assert f"1 of 483 rows differ: {rows[7]['id']}" in capsys.readouterr().out


def test_a_changed_summary_fails(tmp_path: Path, capsys):
    folder = tmp_path / "geneval"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("tiny", "crops*"))
    expected = json.loads((folder / "summary_expected.json").read_text())
    (folder / "summary_expected.json").write_text(json.dumps(expected | {"overall": expected["overall"] + 1e-6}))
    assert main([str(folder / "summary_rows.jsonl")]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_an_unknown_option_of_a_case_is_named(tmp_path: Path, capsys):
    row = next(CaseFolder(GOLDEN / "logic_cases.jsonl.gz").rows())
    path = tmp_path / "geneval" / "cases.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(row | {"options": {"sharpness": 1}}) + "\n")
    assert main([str(path)]) == 1
    assert "options sharpness: expected threshold" in capsys.readouterr().out


def box(x: float, y: float, side: float = 20.0) -> tuple[float, float, float, float]:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def test_a_score_of_the_threshold_in_float32_is_not_kept():
    at, above = float(np.float32(0.3)), float(np.nextafter(np.float32(0.3), np.float32(1)))
    found = [Detected("cat", box(50, 50), score) for score in (at, above)]
    assert keep(found, "colors") == {"cat": [1]}
    assert keep(found, "counting") == {}


def test_equal_scores_keep_their_order():
    found = [Detected("cat", box(50, 50), 0.5) for _ in range(3)]
    assert keep(found, "colors") == {"cat": [0, 1, 2]}


def test_a_relation_may_be_none_one_or_two():
    def of(x: float, y: float) -> list[str]:
        return relations(np.array(box(100 + x, 100 + y), np.float32), np.array(box(100, 100), np.float32))

    assert of(3, -3) == []  # within a tenth of both objects' sides
    assert of(-60, 2) == ["left of"]
    assert of(-60, -60) == ["above", "left of"]
    assert of(60, 60) == ["below", "right of"]


def test_questions_of_colour_are_those_of_matching_clauses():
    metadata = {
        "tag": "color_attr",
        "include": [
            {"class": "cat", "count": 2, "color": "red"},
            {"class": "dog", "count": 2, "color": "red"},
            {"class": "cat", "count": 1},
        ],
    }
    found = [Detected(name, box(50, 50), score) for name, score in (("cat", 0.4), ("cat", 0.8), ("dog", 0.9))]
    kept = keep(found, metadata["tag"])
    assert colour_questions(metadata, kept) == [Question("cat", (1, 0))]
    verdict = judge(metadata, found, kept, [["red", "blue"]])
    assert verdict.reasons == ("expected red cat>=2, found 1 red; and 1 red, 1 blue", "expected dog>=2, found 1")
    with pytest.raises(ValueError, match="0 answers for 1 questions"):
        judge(metadata, found, kept, [])


def test_options_change_what_is_kept():
    found = [Detected("cat", box(50 + shift, 50), 0.9 - shift / 100) for shift in (0, 2, 30)]
    assert keep(found, "colors", Options(max_overlap=0.5)) == {"cat": [0, 2]}
    assert keep(found, "colors", Options(max_objects=2)) == {"cat": [0, 1]}


def test_the_summary_is_a_mean_over_tasks_not_images():
    tags = ["colors", "colors", "colors", "counting"]
    found = summarise(tags, np.array([[1, 1, 0, 0], [1, 1, 1, 0]]))
    assert found.tasks == {"colors": pytest.approx(5 / 6), "counting": 0}
    assert found.overall == pytest.approx(5 / 12)
    assert found.images == pytest.approx(5 / 8)
    with pytest.raises(ValueError, match=r"of shape \(1, 3\) for 4 prompts"):
        summarise(tags, np.ones((1, 3)))


# --- In small --------------------------------------------------------------------------------------------------------


def item(metadata: dict, number: int) -> Item:
    tags = {key: value for key, value in metadata.items() if key != "prompt"}
    return Item(str(number), str(number), f"{number:064x}", metadata["prompt"], tags)


def small(size: int | tuple[int, int], count: int = 60) -> tuple[torch.Tensor, list[Item]]:
    made = list(scenes(21, count, size, Split.ALL))
    images = torch.from_numpy(np.stack([scene.image for scene in made])).permute(0, 3, 1, 2)
    return images, [item(scene.metadata, number) for number, scene in enumerate(made)]


def figures(images: torch.Tensor, items: list[Item]) -> dict[str, float]:
    metric = GenEvalSmall.build(torch.device("cpu"), {})
    values = metric.score(None, metric.embed(images, items), items)
    return dict(metric.summarise({name: array.numpy()[None] for name, array in values.items()}, items))


@pytest.mark.parametrize("size", [64, (96, 160)])
def test_renders_are_right_in_every_task_and_others_near_a_floor(size):
    images, items = small(size)
    assert set(figures(images, items).values()) == {1.0}
    assert figures(images.roll(len(TASKS), 0), items)["GenEval-small"] < 0.1  # another prompt's, of the same task
    assert set(figures(torch.full_like(images, 128), items).values()) == {0.0}


def test_the_floor_draws_other_classes_than_the_prompts():
    floor = ShuffledPrompts(NoOptions(), torch.device("cpu"))
    for number, scene in enumerate(scenes(21, 60, 64, Split.ALL)):
        for seed in range(number, 400, 60):
            drawn = floor._metadata(item(scene.metadata, number), seed)
            classes = [{one["class"] for one in made["include"]} for made in (scene.metadata, drawn)]
            assert drawn["tag"] == scene.metadata["tag"]
            assert not classes[0] & classes[1]
    for tags in ({"tag": "colors"}, {"tag": "colors", "include": "[{}]"}):
        with pytest.raises(ItemsRefused, match="no metadata of a scene"):
            floor.generate([item(tags | {"prompt": "a cat"}, 0)], [0], [0])


def test_tasks_are_those_of_the_scenes():
    assert tuple(map(str, SCENE_TASKS)) == TASKS


def test_a_prompt_without_metadata_is_named():
    metric = GenEvalSmall()
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    cat = {"class": "cat", "count": 1}
    itself = {"tag": "position", "include": [cat, cat | {"position": ["left of", 1]}]}
    for tags in ({}, {"tag": "colors", "include": "[{}]"}, {"tag": "colors", "include": [{"class": "cat"}]}, itself):
        with pytest.raises(ValueError, match=r"prompt 7 has no GenEval metadata .*evaluation_metadata\.jsonl"):
            metric.embed(images, [Item("7", "7", "0" * 64, "a cat", tags)])
    with pytest.raises(ValueError, match=r"prompt 7 has the tag 'colours': expected one of single_object, "):
        metric.embed(images, [Item("7", "7", "0" * 64, "a cat", {"tag": "colours", "include": [cat]})])


def test_intervals_resample_prompts_through_the_summary():
    """Each draw is a mean of tasks: with one prompt of a task always right the score can't vary with it alone."""
    _, items = small(64, 36)
    values = np.array([[float(place % 12 < 6) for place in range(36)]])
    plan = MetricPlan(GenEvalSmall, {"protocol": {}})
    cells = image_cells(plan, {"GenEval-small-images": values}, items, np.ones(36, bool))
    assert cells["GenEval-small"].value == pytest.approx(0.5)
    assert 0.3 < cells["GenEval-small"].low < 0.5 < cells["GenEval-small"].high < 0.7
    only = [place for place, one in enumerate(items) if one.tags["tag"] != "counting"]
    cells = image_cells(plan, {"GenEval-small-images": values[:, only]}, [items[i] for i in only], np.ones(30, bool))
    assert cells["GenEval-small-counting"].value is None
    assert cells["GenEval-small"].value == pytest.approx(0.5)


TAGGED = (("colors", 9), ("counting", 1), ("position", 5))

DRAW = """
import torch
from evals.suites.catalog import Suite
from lactok.data.scenes import Split, scene
from lactok.interface import Recorded, RecordedInfo

SUITE = Suite("draw", "scenes of prompts", task="generation", generators=("renders", "others"),
              settings={"dataset": "prompts", "metrics": "[geneval-small]"})


class Renders(Recorded):
    step = 0

    @property
    def info(self):
        return RecordedInfo(type(self).__name__.lower())

    def images(self, items, seed_indices):
        drawn = [scene(i.tags["seed"], i.tags["index"] + self.step, 64, Split.TRAIN).image for i in items]
        return torch.stack([torch.from_numpy(image) for image in drawn]).permute(0, 3, 1, 2).float() / 255


class Others(Renders):
    step = 6
"""


def test_scenes_are_judged_by_the_command_line(tmp_path: Path):
    plugin = install_plugin(
        tmp_path / "plugin", "drawplugin", DRAW, {}, generators={"renders": "Renders", "others": "Others"},
        suites={"draw": "SUITE"},
    )  # fmt: skip
    made = evals(f"out={tmp_path / 'scenes'}", "count=24", "size=64", module="lactok.data.scenes")
    assert made.returncode == 0, made.stderr
    root = tmp_path / "scenes" / "captions.jsonl"
    done = evals(
        "suite=draw",
        "calibration=false",
        f"dataset.root={root}",
        f"out={tmp_path / 'out'}",
        "seeds=2",
        plugins=(plugin,),
    )  # both rows are deterministic, and have one image each
    assert done.returncode == 0, done.stderr
    found = table(tmp_path / "out")
    assert found.loc["renders", [f"GenEval-small-{task}" for task in TASKS]].tolist() == [1.0] * 6
    assert found.loc["renders", "GenEval-small"] == 1
    assert found.loc["others", "GenEval-small"] <= 0.1
    frame = pd.read_parquet(the_run(tmp_path / "out") / "per_image.parquet")
    assert set(frame["GenEval-small-images"]) <= {0.0, 1.0}
    run = the_run(tmp_path / "out")
    shown = evals("judges", "failures", str(run), "--most", "3", module="evals", plugins=(plugin,))
    assert shown.returncode == 0, shown.stderr
    page = (run / "failures.html").read_text()
    wrong = int((frame[frame["row"] == "others"]["GenEval-small-images"] == 0).sum())
    assert f"<h2>others: {wrong} images fail</h2>" in page
    assert "<h2>renders: 0 images fail</h2>" in page
    assert page.count("<figure>") == 3
    assert page.count("<span class=why>expected ") == 3, "GenEval's own words"
    told = re.search(r'"reasons":(\[.*?\}\]),"images"', (run / "report.html").read_text())
    assert told
    others, renders = json.loads(told[1])
    assert renders == {}
    assert len(others) == wrong, "report.html has the reasons of every wrong image"
    assert all(reasons[0].startswith("expected ") for reasons in others.values())
    unknown = evals("judges", "failures", str(run), "--row", "zzz", module="evals", plugins=(plugin,))
    assert unknown.returncode == 2
    assert "no row 'zzz' with images; there are others, renders" in unknown.stderr
    shutil.rmtree(tmp_path / "out" / "cache" / "images")
    gone = evals("judges", "failures", str(run), module="evals", plugins=(plugin,))
    assert gone.returncode == 2, "nothing is drawn again"
    assert re.search("others: the images of .* are no longer in the store", gone.stderr)


def test_a_page_of_failures_shows_some_of_each_task():
    items = [Item(f"{task}-{n}", "", "", "", {"tag": task}) for task, count in TAGGED for n in range(count)]
    chunk = Chunk(0, tuple(items))
    found = [Failure(chunk, place, 0, ()) for place in range(len(items))]
    of_page = shown(found, 7)
    assert [one.task for one in of_page] == ["colors"] * 3 + ["counting"] + ["position"] * 3
    assert of_page == sorted(of_page, key=lambda one: one.order)
    assert shown(found, 100) == found
