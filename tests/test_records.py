"""What a run's record says of how it was made, and who refuses to read another version's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from evals.cli.compare import main as compare
from evals.cli.report import main as report
from evals.engine.environment import PACKAGES, code_revision, package_versions
from evals.engine.store import Cache
from evals.record import SCHEMA, read
from evals.report.table import shown_table, traceback_name
from evals.run import publish
from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, pictures

FAILING = (
    TOY
    + """

class Raises(Toy):
    def decode(self, encoded, seeds):
        return self.deep_inside()

    def deep_inside(self):
        raise KeyError("no such layer")

class Noisy(Toy):
    noise = True
"""
)
NAMES = {"toy": "Toy", "raises": "Raises", "noisy": "Noisy"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 4)


@pytest.fixture
def toys(tmp_path: Path):
    with plugin(tmp_path / "plugin", FAILING, NAMES):
        yield


@pytest.mark.usefixtures("toys")
def test_a_newer_record_is_refused_by_all_readers(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    finished = run(data, tmp_path / "out", "tokenizers=toy", "metrics=[psnr]")
    assert publish(finished, []) == 0
    path, folder = finished.folder / "run.json", str(finished.folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": SCHEMA + 1}))
    capsys.readouterr()
    for reader, asked in ((compare, [folder, folder]), (report, ["table1", "--out", str(tmp_path / "out")])):
        assert reader(asked) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        for part in ("run.json", f"schema {SCHEMA + 1}", "newer version", "update lactok"):
            assert part in told


@pytest.mark.usefixtures("toys")
def test_a_row_says_which_processes_made_it(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    """Threads are not set in earnest: the other tests of this process would wait for them."""

    def made_on(processor: str, *more: str) -> dict:
        monkeypatch.setattr("evals.engine.environment._processor", lambda: processor)
        return rows(run(data, tmp_path / "out", "tokenizers=[toy,noisy]", "metrics=[psnr]", *more))

    for row in made_on("old").values():
        (origin,) = row.origins
        assert (origin.device, origin.threads) == ("old", torch.get_num_threads())
        assert origin.versions == package_versions()
        assert {"python", "torch", "lactok", "numpy"} <= set(origin.versions) <= {"python", *PACKAGES}
        assert origin.code_revision == code_revision()
    found = made_on("new", "metrics=[psnr,ssim]", "seeds=2")
    assert [origin.device for origin in found["toy"].origins] == ["old", "new"], "each once"
    assert [origin.device for origin in found["noisy"].origins] == ["old", "new"]
    assert [o.device for o in made_on("newest")["toy"].origins] == ["old"], "who reports has made nothing"


@pytest.mark.usefixtures("toys")
def test_every_entry_of_the_cache_says_who_made_it(tmp_path: Path, data: Path):
    run(data, tmp_path / "out", "tokenizers=toy", "metrics=[psnr,effnet,fd-effnet]", "save_images=true")
    cache = tmp_path / "out" / "cache"
    metas = {path: json.loads(path.read_text()) for path in cache.glob("*/*/meta.json")}
    kinds = {path.parts[-3] for path in metas}
    made = {"tokens", "images", "contact", "thumbnails", "timing", "scores", "reference-features", "set-metric", "info"}
    assert kinds == made
    assert all(meta["origin"]["versions"] == package_versions() for meta in metas.values())
    assert Cache(cache).origin == {}


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_traceback_of_a_failed_row_is_kept(tmp_path: Path, data: Path, ranks: int):
    finished = run(data, tmp_path / "out", "tokenizers=[raises,toy]", "metrics=[psnr]", ranks=ranks)
    assert publish(finished, []) == 1
    found = {row.label: row for row in read(finished.folder / "run.json").rows}
    assert "in deep_inside" in found["raises"].trace
    assert "KeyError: 'no such layer'\n(in a batch of 4: picture 00.png, " in found["raises"].trace
    assert found["toy"].trace == ""
    path = finished.folder / traceback_name(found["raises"])
    assert path == finished.folder / "errors" / "raises.txt"
    assert path.read_text() == found["raises"].trace
    assert list(path.parent.iterdir()) == [path]
    (note,) = [n for n in shown_table(finished.record).footnotes if n.startswith("raises: failed: ")]
    assert note.endswith("(traceback: errors/raises.txt)")
    assert "(errors/raises.txt)" in (finished.folder / "report.md").read_text()


def cells(folder: Path, out: Path, *more: str) -> dict[str, dict[str, float | None]]:
    finished = run(folder, out, "tokenizers=[llamagen-mini,identity]", "metrics=[psnr,ssim]", *more)
    return {name: {k: cell.value for k, cell in row.cells.items()} for name, row in rows(finished).items()}


def test_two_round_trips_lose_no_less_than_one(tmp_path: Path, data: Path):
    once, out = cells(data, tmp_path / "out"), tmp_path / "out" / "cache"
    before = {kind: {p.name for p in (out / kind).iterdir()} for kind in ("tokens", "scores", "contact", "timing")}
    twice = cells(data, tmp_path / "out", "round_trips=2")
    assert twice["llamagen-mini"]["PSNR"] < once["llamagen-mini"]["PSNR"]
    assert twice["llamagen-mini"]["SSIM"] < once["llamagen-mini"]["SSIM"]
    assert twice["identity"]["PSNR"] == once["identity"]["PSNR"] == math.inf
    after = {kind: {p.name for p in (out / kind).iterdir()} for kind in before}
    assert after["tokens"] == before["tokens"], "the first encoding is the same"
    for kind in ("scores", "contact", "timing"):
        assert len(after[kind]) == 2 * len(before[kind])
    assert cells(data, tmp_path / "out") == once, "both are kept"


@pytest.mark.usefixtures("toys")
def test_a_deterministic_tokenizer_has_seed_index_0_only(tmp_path: Path, data: Path):
    finished = run(data, tmp_path / "out", "tokenizers=[toy,noisy]", "metrics=[psnr]", "seeds=3")
    assert publish(finished, []) == 0
    frame = pd.read_parquet(finished.folder / "per_image.parquet")
    assert {name: set(part.seed_index) for name, part in frame.groupby("row")} == {"toy": {0}, "noisy": {0, 1, 2}}
    assert {name: row.seeds for name, row in rows(finished).items()} == {"toy": 1, "noisy": 3}
