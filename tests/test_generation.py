"""Prompts run through the engine as images do: a generator that paints its prompt's colour, a judge that reads them."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest

from evals.engine import space
from evals.engine.job import Job
from evals.engine.store import StoreError
from lactok import registry
from tests.commands import Command, evals
from tests.support import environment, install_plugin, table, the_run

PAINT = """
import torch
from pathlib import Path
from evals.metrics.base import Column, ImageMetric
from evals.suites.catalog import Suite
from lactok.interface import Generator, GeneratorInfo, ItemsRefused, Recorded, RecordedInfo

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SUITE = Suite("paint", "colours from prompts", task="generation", generators=("painter", "grey", "old"),
              settings={"dataset": "prompts", "metrics": "[judge]", "calibration": "false"})


def colour_of(item):
    return next((rgb for name, rgb in COLOURS.items() if name in item.payload), None)


class Painter(Generator):
    '''The prompt's colour with a little noise, at a side that depends on the prompt.'''

    deterministic = False

    @property
    def info(self):
        return GeneratorInfo("paint", deterministic=self.deterministic, settings={"steps": 1})

    def generate(self, items, seed_indices, seeds):
        if (Path(__file__).parent / "no-more").exists():
            raise RuntimeError("the generator was called")
        refused = {i: "no colour in it" for i, item in enumerate(items) if colour_of(item) is None}
        if refused:
            raise ItemsRefused(refused)
        images = []
        for item, seed in zip(items, seeds):
            side = 24 if "large" in item.payload else 16
            noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
            images.append(0.9 * torch.tensor(colour_of(item))[:, None, None] + 0.1 * noise)
        return images


class Grey(Painter):
    '''The same grey for every prompt: it gets no colour right.'''

    deterministic = True

    def generate(self, items, seed_indices, seeds):
        return torch.full((len(items), 3, 16, 16), 0.5)


class Old(Recorded):
    '''Images that were made elsewhere: all red.'''

    @property
    def info(self):
        return RecordedInfo("recorded")

    def images(self, items, seed_indices):
        return torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(len(items), 3, 16, 16)


class Judge(ImageMetric):
    '''Whether the strongest channel is the prompt's colour; the summary is the plain mean of the tasks' means.'''

    name, summary, needs_reference = "judge", "colour of the prompt", False
    columns = (
        Column("right", "higher", unit="%"),
        Column("overall", "higher", unit="%", mean=False),
        Column("objects", "higher", unit="%", mean=False),
    )

    def embed(self, images, items):
        return images.float().mean(dim=(2, 3))

    def score(self, reference, embedding, items):
        assert reference is None
        wanted = [None if colour_of(item) is None else torch.tensor(colour_of(item)).argmax() for item in items]
        top = embedding.argmax(dim=1)
        even = embedding.amax(dim=1) == embedding.amin(dim=1)
        right = [float(w is not None and t == w and not e) for w, t, e in zip(wanted, top, even)]
        return {"right": torch.tensor(right, dtype=torch.float64)}

    @classmethod
    def summarise(cls, values, items):
        tasks = sorted({item.tags["task"] for item in items})
        means = {task: values["right"][:, [i.tags["task"] == task for i in items]].mean() for task in tasks}
        return {"overall": sum(means.values()) / len(means), "objects": means.get("objects", 0.0)}
"""
NAMES = {
    "generators": {"painter": "Painter", "grey": "Grey", "old": "Old"},
    "metrics": {"judge": "Judge"},
    "suites": {"paint": "SUITE"},
}


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    return install_plugin(tmp_path / "plugin", "paintplugin", PAINT, {}, **NAMES)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """40 prompts of two tasks, so that there are several chunks."""
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": f"a {size} {colour} {thing} number {n}", "task": task}
        for n in range(10)
        for colour, size in (("red", "small"), ("blue", "large"))
        for thing, task in (("ball", "objects"), ("sky", "scenes"))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(prompts: Path, out: Path, plugin: Path, *more: str):
    return evals("suite=paint", f"dataset.root={prompts}", f"out={out}", *more, plugins=(plugin,))


def test_generators_are_judged_by_their_prompts(tmp_path: Path, plugin: Path, prompts: Path):
    done = run(prompts, tmp_path / "out", plugin, "seeds=3")
    assert done.returncode == 0, done.stderr
    found = table(tmp_path / "out")
    assert found.loc["painter", "right"] == 1
    assert found.loc["painter", "overall"] == 1
    assert found.loc["grey", "right"] == 0
    assert found.loc["old", "right"] == 0.5  # half of the prompts are red
    assert found.loc["old", "overall"] == 0.5
    assert found.loc["old", "overall_low"] < 0.5 < found.loc["old", "overall_high"]
    frame = pd.read_parquet(the_run(tmp_path / "out") / "per_image.parquet")
    assert set(frame[frame.row == "painter"].seed_index) == {0, 1, 2}
    assert set(frame[frame.row == "grey"].seed_index) == {0}
    report = (the_run(tmp_path / "out") / "report.md").read_text()
    assert "40 prompts" in report
    assert "prompts/s" in done.stderr or "prompts" in done.stdout


def test_a_refused_prompt_is_named_and_the_rest_is_scored(tmp_path: Path, plugin: Path, prompts: Path):
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": "a cat", "task": "objects"}) + "\n")
    done = run(prompts, tmp_path / "out", plugin)
    found = table(tmp_path / "out")
    assert found.loc["painter", "right"] == 1
    record = json.loads((the_run(tmp_path / "out") / "run.json").read_text())
    painter = next(row for row in record["rows"] if row["name"] == "painter")
    assert list(painter["refused"].values()) == ["no colour in it"]
    assert painter["cells"]["right"]["count"] == 40
    assert painter["cells"]["right"]["note"] == "incomplete: 1 of 41 items refused"
    assert found.loc["painter", "refused"] == 1
    assert found.loc["grey", "refused"] == 0
    assert "no colour in it" in (the_run(tmp_path / "out") / "report.md").read_text()
    assert done.returncode == 0, done.stderr  # every row was measured; any number of prompts may be refused


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        ("raise RuntimeError('not this one')", "generate failed: RuntimeError: not this one"),
        ("seed = sys.exit(3)", "generate failed: PluginError: called sys.exit(3)"),
        ("images.append(torch.full((3, 16, 16), torch.nan)); continue", "generate returned NaN or infinite values"),
    ],
)
def test_a_prompt_on_which_the_generator_fails_is_named_and_the_rest_is_scored(
    tmp_path: Path, plugin: Path, prompts: Path, breaks: str, reason: str
):
    """In a batch of several, with another prompt that is refused; then found done, without the generator."""
    source = (plugin / "paintplugin.py").read_text().replace("import torch\n", "import sys\nimport torch\n", 1)
    looped = "for item, seed in zip(items, seeds):\n"
    where = f"            if 'ball number 3' in item.payload and 'red' in item.payload:\n                {breaks}\n"
    (plugin / "paintplugin.py").write_text(source.replace(looped, looped + where, 1))
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": "a cat", "task": "objects"}) + "\n")
    for again in (False, True):
        done = run(prompts, tmp_path / "out", plugin, "seeds=2", "generators=[painter]", "batch_size=8")
        assert done.returncode == 0, done.stderr
        (painter,) = json.loads((the_run(tmp_path / "out") / "run.json").read_text())["rows"]
        assert painter["status"] == "ok", painter["error"]
        assert list(painter["refused"]) == ["00012", "00040"]
        assert reason in painter["refused"]["00012"]
        assert painter["cells"]["overall"]["note"] == "incomplete: 2 of 41 items refused"
        assert (painter["cells"]["overall"]["value"], painter["cells"]["overall"]["count"]) == (1, 39)
        assert reason.split(":")[-1] in (the_run(tmp_path / "out") / "report.md").read_text()
        (plugin / "no-more").touch(exist_ok=again)


@pytest.mark.parametrize("error", ["OSError('the network')", "torch.OutOfMemoryError('full')"])
def test_an_error_that_is_not_the_prompts_fails_the_row_and_is_tried_again(
    tmp_path: Path, plugin: Path, prompts: Path, error: str
):
    source = (plugin / "paintplugin.py").read_text()
    looped = "for item, seed in zip(items, seeds):\n"
    once = "(Path(__file__).parent / 'mended').exists()"
    where = f"            if 'number 3' in item.payload and not {once}:\n                raise {error}\n"
    (plugin / "paintplugin.py").write_text(source.replace(looped, looped + where, 1))
    done = run(prompts, tmp_path / "out", plugin, "generators=[painter]")
    assert done.returncode == 1
    assert "failed" in done.stdout
    (plugin / "mended").touch()
    done = run(prompts, tmp_path / "out", plugin, "generators=[painter]")
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "out").loc["painter", "right"] == 1


BRIGHTNESS = """
import torch
from evals.metrics.base import Column, ImageMetric


class Brightness(ImageMetric):
    name, needs_reference = "brightness", False
    columns = (Column("brightness", "higher"),)

    def embed(self, images, items):
        return images.double().mean(dim=(1, 2, 3)) / 255

    def score(self, reference, embedding, items):
        return {"brightness": embedding}
"""


def test_images_are_kept_and_judged_again_without_the_generator(tmp_path: Path, plugin: Path, prompts: Path):
    """The second run's metric is new, and the generator fails in it if it is called at all, as the third run shows."""
    later = install_plugin(tmp_path / "later", "laterplugin", BRIGHTNESS, {"brightness": "Brightness"}, "metrics")
    both, out = {"plugins": (plugin, later)}, tmp_path / "out"
    command = ["suite=paint", f"dataset.root={prompts}", f"out={out}", "generators=[painter]"]
    first = evals(*command, **both)
    assert first.returncode == 0, first.stderr
    assert "40 images to make take about 83.9 MB as PNG" in first.stderr  # of unknown size: as if of 1,024 pixels
    (plugin / "no-more").touch()
    again = evals(*command, "metrics=[judge,brightness]", **both)
    assert again.returncode == 0, again.stderr
    assert "images to make" not in again.stderr
    folder = max((out / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    found = pd.read_csv(folder / "table.csv", index_col=0).loc["painter"]
    assert found["right"] == 1
    assert 0.3 < found["brightness"] < 0.4  # one channel of three at 0.9, and noise
    other = evals(*command, "seed=1", **both)
    assert other.returncode == 1
    assert "the generator was called" in other.stdout + other.stderr


def test_images_that_the_disk_will_not_hold_are_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """40 prompts, four seeds of 512 pixels: 83.9 MB; of unknown size at the assumed 1,024 pixels: 335.5 MB."""
    told: list[str] = []

    def check(side: int | None, free: int, stored: bool = False, cls: type | None = None) -> None:
        monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        task = SimpleNamespace(image_side=lambda: side, images=lambda run, chunk, seed_index: None)
        run = SimpleNamespace(status="ok", info=None, row=SimpleNamespace(options=None, cls=cls), seed_indices=range)
        cache = SimpleNamespace(root=tmp_path, has=lambda artifact: stored)
        job = SimpleNamespace(task=task, runs=[run], chunks=["." * 16, "." * 16, "." * 8], cache=cache, seeds=4)
        space.check_space(cast(Job, job), told.append)

    check(512, 10**9)
    assert told[-1] == f"160 images to make take about 83.9 MB as PNG; 1.0 GB are free in {tmp_path}."
    check(512, 100 * 10**6)
    assert told[-1].endswith("It may not be enough: the run stops when the disk is full, and resumes.")
    with pytest.raises(StoreError, match=r"about 83\.9 MB as PNG; 50\.0 MB are free in .*: free 33\.9 MB or more"):
        check(512, 50 * 10**6)
    check(None, 50 * 10**6)  # a size that is not known refuses nothing
    assert "about 335.5 MB as PNG, where images whose size is not known yet count as 1,024 pixels a side" in told[-1]
    assert "It may not be enough" in told[-1]
    check(None, 50 * 10**6, cls=registry.load("generators", "lactokgen-t-mini"))
    assert "about 5.2 MB as PNG, where images whose size is not known yet count as 128 pixels a side" in told[-1]
    assert "It may not be enough" not in told[-1]
    count = len(told)
    check(512, 0, stored=True)
    assert len(told) == count


def test_kill_and_resume_give_the_table_of_a_clean_run(tmp_path: Path, plugin: Path, prompts: Path):
    slow = (
        (plugin / "paintplugin.py")
        .read_text()
        .replace("        images = []\n", "        import time; time.sleep(0.1)\n        images = []\n")
    )
    (plugin / "paintplugin.py").write_text(slow)
    arguments = ["suite=paint", f"dataset.root={prompts}", "workers=1"]
    assert evals(*arguments, f"out={tmp_path / 'clean'}", plugins=(plugin,)).returncode == 0
    out = tmp_path / "killed"
    process = Command(["-m", "evals.run", *arguments, f"out={out}"], environment(plugin))
    until = time.monotonic() + 60
    while not list(out.glob("cache/images/*")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill_group()
    assert not list(out.glob("runs/*/table.csv")), "it was to be killed before it ended"
    assert evals(*arguments, f"out={out}", plugins=(plugin,)).returncode == 0
    for name in ("table.csv", "table.parquet", "per_image.parquet", "contact.png"):
        assert (the_run(out) / name).read_bytes() == (the_run(tmp_path / "clean") / name).read_bytes(), name


def test_two_workers_give_the_table_of_one(tmp_path: Path, plugin: Path, prompts: Path):
    for workers in (1, 2):
        done = run(prompts, tmp_path / str(workers), plugin, f"workers={workers}", "seeds=2")
        assert done.returncode == 0, done.stderr
    for name in ("table.csv", "per_image.parquet"):
        one, two = (the_run(tmp_path / str(workers)) / name for workers in (1, 2))
        assert one.read_bytes() == two.read_bytes(), name


@pytest.mark.parametrize(
    ("replaced", "by", "reason"),
    [
        ("            images.append(0.9", "            raise SystemExit(3)\n            images.append(0.9", "sys.exit"),
        ("images.append(0.9 *", "images.append(255.0 *", r"expected RGB in [0, 1]"),
        ("        return images\n", "        return images[1:]\n", "for a batch of"),
    ],
)
def test_a_failing_generator_is_named_and_the_others_go_on(
    tmp_path: Path, plugin: Path, prompts: Path, replaced: str, by: str, reason: str
):
    source = (plugin / "paintplugin.py").read_text()
    assert source.count(replaced) >= 1
    (plugin / "paintplugin.py").write_text(source.replace(replaced, by, 1))
    done = run(prompts, tmp_path / "out", plugin)
    assert done.returncode == 1
    record = json.loads((the_run(tmp_path / "out") / "run.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["painter"]["status"] == "failed"
    assert reason in rows["painter"]["error"]
    assert rows["grey"]["status"] == "ok"


def test_a_metric_of_reference_images_is_refused_by_name(tmp_path: Path, plugin: Path, prompts: Path):
    done = run(prompts, tmp_path / "out", plugin, "metrics=[judge,psnr]")
    assert done.returncode == 1
    record = json.loads((the_run(tmp_path / "out") / "run.json").read_text())
    assert any(line.startswith("psnr: ") and "reference images" in line for line in record["missing_metrics"])
    assert table(tmp_path / "out").loc["painter", "right"] == 1


def test_a_tokenizer_is_no_generator(tmp_path: Path, plugin: Path, prompts: Path):
    done = run(prompts, tmp_path / "out", plugin, "generators=[identity]")
    assert done.returncode == 2
    assert "identity is no Generator or Recorded" in done.stderr
