"""The paper's recipe with small networks of seeded weights: FLUX.1-dev, Qwen2.5-VL, ImageReward and MPS at work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from lactok import registry
from lactok.data.construct import captioner, listing, needs, recipes, units
from lactok.data.construct.captioner import QwenCaptioner
from lactok.data.construct.inspection import encoded
from lactok.data.construct.items import Unit, WorkItem
from lactok.data.construct.spec import STAGES, Spec, parse
from lactok.data.construct.stages import run
from lactok.data.construct.synthesiser import seed_of
from lactok.data.tar_roots import BUILD
from tests.support import ROOT, install_plugin, pictures
from tests.tiny_pipelines import write_flux
from tests.tiny_qwen import WORDS, write_qwen

JUDGES = '''
from evals.metrics.judges.image_reward import ImageReward
from evals.metrics.judges.mps import Mps
from tests import judge_support


class TinyReward(ImageReward):
    """ImageReward with a network of a few thousand weights."""

    name = "tiny-imagereward"

    @classmethod
    def weights(cls):
        return ()

    @classmethod
    def build(cls, device, settings):
        return judge_support.tiny("imagereward")


class TinyMps(Mps):
    """MPS with a network of a few thousand weights."""

    name = "tiny-mps"

    @classmethod
    def weights(cls):
        return ()

    @classmethod
    def build(cls, device, settings):
        return judge_support.tiny("mps")
'''
CAPTIONS = ("a red ball", "two blue cups on a table", "x", "a cat", "the dog", "a boat", "a house", "\x01bad")

PAGE = {
    "pip install -c constraints.txt -e '.[cluster,judges]'": "",  # installs what runs the tests
    "python -m lactok.data build recipe=paper captions=[laion/] images=[aesthetics/] out=/data/starred address=auto": (
        "test_paper_recipe.py: test_the_whole_recipe_on_ray"
    ),
    "python -m lactok.data build --plan recipe=paper items=30000000 gpus=256": (
        "test_data_plan.py: test_the_plan_is_the_docs_and_its_measured_speed_is_the_results"
    ),
    "python -m lactok.data build recipe=mini items=2000 out=data/mini": (
        "test_data_build.py: test_the_books_are_exact_and_what_was_planted_is_found"
    ),
    "python -m lactok.train recipe=tokens data.root=data/mini out=runs/tokens": (
        "test_data_build.py: test_lactokgen_trains_on_the_shards"
    ),
    "python -m lactok.train recipe=generator data.root=runs/tokens": (
        "test_data_build.py: test_lactokgen_trains_on_the_shards"
    ),
    "python benchmarks/duplicates.py PHOTOS": (
        "test_data_prints.py: test_the_benchmark_counts_what_is_found_and_what_is_taken_for_it"
    ),
}
"""Every command of docs/data-construction.md, with the test that runs it in miniature."""


def test_every_command_of_the_page_is_run_in_miniature_by_a_test():
    page = (ROOT / "docs" / "data-construction.md").read_text()
    assert re.findall(r"^ {4}((?:pip|python|torchrun) .*)$", page, re.M) == list(PAGE)
    for where in filter(None, PAGE.values()):
        file, _, test = where.partition(": ")
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), where


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plugin, flux, qwen, a caption list and a folder of photographs."""
    folder = tmp_path_factory.mktemp("paper")
    install_plugin(
        folder / "plugin", "tinyjudges", JUDGES, {"tiny-imagereward": "TinyReward", "tiny-mps": "TinyMps"}, "metrics"
    )
    write_flux(folder / "flux")
    write_qwen(folder / "qwen")
    (folder / "list.txt").write_text("\n".join(CAPTIONS) + "\n")
    pictures(folder / "images", 5)
    return folder


def words(networks: Path, out: Path) -> list[str]:
    """The settings: the paper's graph on the CPU, all stages with their real classes."""
    return [
        *("recipe=paper", f"captions={networks / 'list.txt'}", f"images={networks / 'images'}", f"out={out}"),
        *(f"options.weights={networks / 'flux'}", "options.steps=2", "options.dtype=float32", "size=32"),
        *(f"captioner={networks / 'qwen'}", "judges=[tiny-imagereward>-9,tiny-mps>-99]", "keep_format=png"),
        *("unit=4", "shard=5", "cpus=2", "store=100", "copies=0", "duplicates=content", "leak_cosine=1"),
        *(f"stages.{name}.gpus=0" for name in STAGES),
        *(f"stages.{name}.cpus=0.4" for name in STAGES),
    ]


@pytest.fixture
def judges(networks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(networks / "plugin"))
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()


def photographs(count: int) -> list[WorkItem]:
    """Items with different cuts of a photograph, every second with a caption of its source."""
    items = []
    for place in range(count):
        cut = np.ascontiguousarray(data.chelsea()[9 * place : 9 * place + 60, : 60 + 8 * (place % 4)])
        items.append(WorkItem(place, "s", "", "a cat" if place % 2 else "", encoded(cut, "png", 100)))
    return items


class Recorded(QwenCaptioner):
    """The captioner, which writes down what it was asked and answered. For tests alone."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.asked: list[tuple[int, list[str], list[str]]] = []

    def answers(self, pictures, prompts, attempt):
        given = super().answers(pictures, prompts, attempt)
        self.asked.append((attempt, list(prompts), given))
        return given


@pytest.fixture(scope="module")
def stage(networks: Path) -> Recorded:
    return Recorded(parse(words(networks, networks / "o")))


def test_the_captioner_asks_again_with_other_seeds_and_drops_with_the_reason(stage: Recorded):
    stage.asked.clear()
    stage.spec = stage.spec.model_copy(update={"words": 6})
    items = [*photographs(12), WorkItem(12, "s", "", "", b"broken")]
    run(stage, Unit(0, items))
    assert [attempt for attempt, _, _ in stage.asked] == [0, 1, 2], "one batch, asked three times in all"
    first, second = stage.asked[0], stage.asked[1]
    assert len(first[1]) == 12 > len(second[1]) > 0, "only what is not as it must be is asked for again"
    again = [answer for prompt, answer in zip(first[1], first[2], strict=True) if not answer or len(answer.split()) > 6]
    assert second[2] != again, "other words are drawn"
    kept = [item for item in items if not item.reason]
    assert kept
    for item in kept:
        assert 1 <= len(item.caption.split()) <= 6
        assert set(item.caption.split()) <= set(WORDS), "no mark of the chat is in it"
        assert item.detail == ""
    assert {item.reason for item in items} <= {"", "caption: empty", "caption: too long", "image can't be decoded"}
    assert items[12].reason == "image can't be decoded"
    assert 'The original caption, which may be wrong: "a cat"' in first[1][1]
    assert "original" not in first[1][0]
    captions = [item.caption for item in items]
    again_items = [*photographs(12), WorkItem(12, "s", "", "", b"broken")]
    run(stage, Unit(0, again_items))
    assert [item.caption for item in again_items] == captions, "the same unit gives the same captions"


def test_an_answer_depends_on_its_own_image_and_prompt(stage: Recorded):
    """Images of several sizes in one batch: padding must not count."""
    cup = Image.fromarray(data.coffee())
    seen = [cup.crop((0, 0, 64, 40)), cup.crop((90, 30, 120, 100)), cup.crop((200, 100, 260, 160))]
    prompts = ["a cat", "the red dog left of the blue box", "two cups"]
    together = stage.answers(seen, prompts, 0)
    alone = [stage.answers([picture], [prompt], 0)[0] for picture, prompt in zip(seen, prompts, strict=True)]
    assert together == alone
    assert stage.answers(seen[:1], ["the white box near the sofa"], 0) != alone[:1]
    assert len(set(together)) > 1


def test_a_large_photograph_is_reduced_for_the_model():
    wide = Image.new("RGB", (8000, 2000))
    seen = captioner._reduced(wide)
    assert seen.width * seen.height <= 1.01 * captioner.MOST_PIXELS
    assert seen.width / seen.height == pytest.approx(4, rel=0.01)
    small = Image.new("RGB", (640, 480))
    assert captioner._reduced(small) is small


def test_the_whole_recipe_in_turn(networks: Path, tmp_path: Path, judges: None):
    spec = parse([*words(networks, tmp_path / "o"), "items=6"])
    assert needs.lacking(spec) == []
    listed = listing.make(spec, spec.out)
    stages = [recipes.stages(spec)[name](spec) for name in STAGES]
    items = []
    for number in range(listed.units):
        unit = listing.read_unit(spec.out, number, spec.unit)
        for one in stages:
            run(one, unit)
        assert [work.stage for work in unit.works] == list(STAGES)
        units.write(spec.out, unit)
        items += unit.items
    kept = [item for item in items if not item.reason]
    assert len(items) == 6
    assert len(kept) >= 3, [(item.reason, item.detail) for item in items]
    for item in kept:
        assert item.seed == seed_of(item.raw_caption)
        assert set(item.scores) == {"tiny-imagereward", "tiny-mps"}
        assert (item.width, item.height) == (32, 32)
    assert len({item.pixels_sha256 for item in kept}) == len(kept)
    assert recipes.models(spec)["synthesiser"]["name"] == "flux.1-dev"


@pytest.mark.slow
def test_the_whole_recipe_on_ray(networks: Path, tmp_path: Path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lactok[cluster]'")
    out = tmp_path / "o"
    command = [sys.executable, "-m", "lactok.data", "build", *words(networks, out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(networks / "plugin"), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / BUILD).read_bytes())
    books = manifest["books"]
    assert books["in"] == len(CAPTIONS) + 5 == books["kept"] + sum(books["dropped"].values())
    assert books["dropped"]["caption has control characters"] == 1
    rows = [row for shard in manifest["shards"] for row in pq.read_table(out / shard["index"]).to_pylist()]
    assert len(rows) == books["kept"] >= 6
    made = [row for row in rows if row["seed"] is not None]
    assert made
    assert len(made) < len(rows), "images that exist are among them"
    for row in rows:
        assert set(row["caption"].split()) <= set(WORDS)
        assert row["captioner"].startswith("qwen@a local folder")
        assert re.match(r"tiny-imagereward.*; tiny-mps", row["judges"])
        assert row["score_tiny-mps"] is not None
        assert bool(row["synthesiser"]) == (row["seed"] is not None)
    with tarfile.open(out / manifest["shards"][0]["name"]) as tar:
        assert len(tar.getnames()) == 3 * manifest["shards"][0]["samples"]
