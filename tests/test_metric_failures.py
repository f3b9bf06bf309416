"""A metric that fails is named with its reason, and the other columns come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evals.engine import run as engine
from evals.metrics.image.colour import Colour
from evals.metrics.image.effnet import EffnetMetric
from evals.metrics.image.lpips import LpipsAlex
from evals.metrics.image.psnr import Psnr
from evals.metrics.image.ssim import Ssim
from evals.metrics.sets.frechet import FdEffnet
from evals.record import read, to_json
from evals.run import publish
from tests.plugin_runs import plugin, rows, run
from tests.support import ROOT, TOY, environment, install_plugin, pictures, the_run

PLUGIN = (
    TOY
    + """
class Grey(Toy):
    def decode(self, encoded, seeds):
        return torch.full((len(seeds), 3, 64, 64), 0.25)

class Empty(Toy):
    def encode(self, images):
        ids = super().encode(images).ids
        return Tokens(ids, lengths=torch.zeros(len(ids), dtype=torch.int64))
"""
)
NAMES = {"toy": "Toy", "grey": "Grey", "empty": "Empty"}
BOTH = "tokenizers=[toy,grey]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 36)


@pytest.fixture
def installed(tmp_path: Path):
    with plugin(tmp_path / "plugin", PLUGIN, NAMES) as module:
        yield module


def refuse(*_: object) -> None:
    raise RuntimeError("images under 31 px")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_metric_that_fails_everywhere_is_missing_and_the_others_come(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
):
    monkeypatch.setattr(Ssim, "embed", refuse)
    finished = run(data, tmp_path / "out", BOTH, "metrics=[psnr,ssim,codes]", ranks=ranks)
    assert [row.status for row in finished.record.rows] == ["ok", "ok"]
    (line,) = finished.record.missing_metrics
    assert "ssim" in line
    assert "RuntimeError: images under 31 px" in line
    names = [column.name for column in finished.record.columns]
    assert names == ["PSNR", "PSNR-pooled", "codebook use", "perplexity", "entropy"]
    for row in finished.record.rows:
        assert row.cells["PSNR"].value > 0
        assert row.cells["entropy"].value is not None
    assert publish(finished, []) == 1
    assert "images under 31 px" in (finished.folder / "report.md").read_text()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_metric_that_fails_on_some_rows_leaves_their_cells_empty_with_the_reason(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
):
    score = Colour.score

    def picky(self: Colour, reference: object, embedding: object, items: object) -> dict:
        found = score(self, reference, embedding, items)
        if found["colour-de00"].max() > 0 and torch.unique(embedding.lab[0], dim=0).shape[0] < 3:
            raise RuntimeError("a flat image")
        return found

    monkeypatch.setattr(Colour, "score", picky)
    finished = run(data, tmp_path / "out", BOTH, "metrics=[psnr,colour]", ranks=ranks)
    found = rows(finished)
    assert found["toy"].cells["colour-de00"].value > 0
    for column in ("colour-de00", "brightness-dl"):
        assert found["grey"].cells[column].value is None
        assert "RuntimeError: a flat image" in found["grey"].cells[column].note
    assert found["grey"].cells["PSNR"].value > 0
    (line,) = finished.record.missing_metrics
    assert "colour" in line
    assert "grey" in line
    assert publish(finished, []) == 1
    assert read(finished.folder / "run.json").rows == finished.record.rows


@pytest.mark.usefixtures("installed")
def test_a_network_that_does_not_load_is_named(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EffnetMetric, "build", lambda *_: sys.exit("no such driver"))
    finished = run(data, tmp_path / "out", BOTH, "metrics=[effnet,fd-effnet,psnr]")
    lines = finished.record.missing_metrics
    assert [line.split(":")[0] for line in lines] == ["effnet", "fd-effnet"]
    assert all("no such driver" in line for line in lines)
    assert [column.name for column in finished.record.columns] == ["PSNR", "PSNR-pooled"]


@pytest.mark.usefixtures("installed")
def test_a_set_metric_that_fails_is_named_and_not_kept(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr(FdEffnet, "compute", refuse)
        finished = run(data, tmp_path / "out", BOTH, "metrics=[psnr,fd-effnet]")
    assert any("fd-effnet" in line and "under 31 px" in line for line in finished.record.missing_metrics)
    assert rows(finished)["toy"].cells["PSNR"].value > 0
    again = run(data, tmp_path / "out", BOTH, "metrics=[psnr,fd-effnet]")
    assert again.record.missing_metrics == []
    assert rows(again)["toy"].cells["FD-effnet"].value > 0


@pytest.mark.usefixtures("installed")
def test_lpips_of_images_that_are_too_small(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    """The real network, on 16 px: AlexNet has no pixels left."""
    from lpips import LPIPS

    network = LPIPS(net="alex", pnet_rand=True, lpips=True, pretrained=False, verbose=False).eval()
    monkeypatch.setattr(LpipsAlex, "build", classmethod(lambda cls, device, settings: cls(network)))
    monkeypatch.setattr(LpipsAlex, "weights", classmethod(lambda cls: ()))
    more = ["metrics=[psnr,lpips-alex]", "protocol.eval_size=16", "limit=4"]
    finished = run(data, tmp_path / "out", BOTH, *more)
    (line,) = finished.record.missing_metrics
    assert line.startswith("lpips-alex:")
    assert "images of 16x16 pixels; LPIPS-alex needs 31x31 or more" in line
    assert rows(finished)["toy"].cells["PSNR"].value > 0


@pytest.mark.usefixtures("installed")
def test_tokens_of_which_none_counts_have_no_use(tmp_path: Path, data: Path):
    finished = run(data, tmp_path / "out", "tokenizers=[toy,empty]", "metrics=[psnr,codes]")
    cell = rows(finished)["empty"].cells["entropy"]
    assert cell.value is None
    assert "no token to count" in cell.note
    assert rows(finished)["empty"].cells["PSNR"].value > 0
    assert rows(finished)["toy"].cells["entropy"].value > 0


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("ranks", [1, 2])
def test_nan_fails_the_row_by_name(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, ranks: int):
    score = Psnr.score

    def undefined(self: Psnr, reference: torch.Tensor, images: torch.Tensor, items: object) -> dict[str, torch.Tensor]:
        found = score(self, reference, images, items)
        if images.float().std() == 0:
            found["PSNR"][-1] = torch.nan
        return found

    monkeypatch.setattr(Psnr, "score", undefined)
    found = rows(run(data, tmp_path / "out", BOTH, "metrics=[psnr,ssim]", ranks=ranks))
    assert found["toy"].status == "ok"
    assert found["grey"].status == "failed"
    for part in ("PSNR", "NaN", "picture 15.png"):
        assert part in found["grey"].error


@pytest.mark.usefixtures("installed")
def test_a_row_that_can_not_be_reduced_fails_alone(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    reduce_row = engine.reduce_row

    def broken(job: object, of: object) -> object:
        if of.row.name == "grey":
            raise ZeroDivisionError("x")
        return reduce_row(job, of)

    monkeypatch.setattr(engine, "reduce_row", broken)
    found = rows(run(data, tmp_path / "out", BOTH, "metrics=[psnr]"))
    assert found["toy"].status == "ok"
    assert "ZeroDivisionError: x" in found["grey"].error


OPTIONS = (
    "from dataclasses import dataclass, field\nimport enum\nfrom pathlib import Path\n"
    + TOY
    + """
class Mode(enum.Enum):
    FAST = enum.auto()
    SLOW = object()

@dataclass
class Options:
    mode: Mode = Mode.FAST
    table: Path = Path("a/b")

class Typed(Toy):
    Options = Options

@dataclass
class Odd:
    what: object = field(default_factory=object)

class Strange(Toy):
    Options = Odd

@dataclass
class Required:
    steps: int

class NoDefault(Toy):
    Options = Required
"""
)


@pytest.mark.parametrize("ranks", [1, 2])
def test_options_that_are_no_plain_json_end_no_run(tmp_path: Path, data: Path, ranks: int):
    names = {"toy": "Toy", "typed": "Typed", "strange": "Strange", "no-default": "NoDefault"}
    with plugin(tmp_path / "plugin", OPTIONS, names):
        options = ["options.typed.mode=[FAST,SLOW]", "options.typed.table=/x/y"]
        wanted = f"tokenizers=[{','.join(names)}]"
        finished = run(data, tmp_path / "out", wanted, "metrics=[psnr]", *options, ranks=ranks)
        found = rows(finished)
        typed = [row for row in finished.record.rows if row.name == "typed"]
        assert publish(finished, []) == 1
    assert [row.status for row in typed] == ["ok", "ok"]
    assert [row.options for row in typed] == [{"table": "/x/y"}, {"mode": "SLOW", "table": "/x/y"}]
    assert typed[0].keys != typed[1].keys, "an option of any type is part of a row's identity"
    assert found["toy"].status == "ok"
    for name in ("strange", "no-default"):
        assert found[name].status == "failed"
        assert "Options" in found[name].error
    assert to_json(read(finished.folder / "run.json")) == to_json(finished.record)


@pytest.mark.parametrize(
    "surroundings",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_console_that_is_not_utf_8_gets_the_table(tmp_path: Path, data: Path, surroundings: dict[str, str]):
    folder = install_plugin(tmp_path / "plugin", "testplugin", PLUGIN, NAMES)
    arguments = [f"dataset.root={data}", "limit=8", "metrics=[psnr,colour,fd-effnet]", f"out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "evals.run", "tokenizers=toy", "dataset=folder", "workers=1", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder) | surroundings, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    shown = done.stdout.decode("ascii")
    assert "identity" in shown
    assert "inf" in shown
    assert "?" not in shown
    lines = shown.splitlines()
    top = next(i for i, line in enumerate(lines) if line.startswith("tokenizer"))
    assert len({len(line.rstrip()) for line in lines[top - 1 : top + 1]}) == 1, "the columns stay in line"
    assert "∞" in (the_run(tmp_path / "out") / "report.md").read_text(encoding="utf-8")
    listed = subprocess.run(
        [sys.executable, "-m", "evals", "list"], cwd=ROOT, env=environment(folder) | surroundings, capture_output=True
    )
    assert listed.returncode == 0, listed.stderr.decode()
