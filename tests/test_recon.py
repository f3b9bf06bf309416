"""The reconstruction suite end to end: what a table holds, and what its figures must not depend on."""

import math
import sys
from pathlib import Path

import pytest

from evals.config import ConfigError, compose_config
from evals.engine import run as engine
from evals.record import RunRecord, read
from evals.run import publish
from lactok import registry
from tests.support import TOY, install_plugin, pictures


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory):
    """The toy tokenizers, in this process."""
    source = TOY + "\n\nclass Noisy(Toy):\n    noise = True\n"
    plugin = install_plugin(tmp_path_factory.mktemp("plugin"), "toyplugin", source, {"toy": "Toy", "noisy": "Noisy"})
    sys.path.insert(0, str(plugin))
    registry.entries.cache_clear()
    yield
    sys.path.remove(str(plugin))
    registry.entries.cache_clear()
    sys.modules.pop("toyplugin", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"), 18)


def run(folder: Path, out: Path, *overrides: str) -> engine.Finished:
    common = ["dataset=folder", f"dataset.root='{folder}'", f"out='{out}'"]
    return engine.run(compose_config([*common, *overrides]), quiet=True)


def cells(record: RunRecord, row: str) -> dict:
    return {name: cell.value for name, cell in next(r for r in record.rows if r.label == row).cells.items()}


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> engine.Finished:
    """The main job on 20 tiles."""
    out = tmp_path_factory.mktemp("mini")
    return engine.run(compose_config(["tokenizers=[llamagen]", "limit=20", f"out='{out}'"]), quiet=True)


def test_rows_are_named_as_what_they_are_and_come_with_their_calibration(mini: engine.Finished):
    assert [r.label for r in mini.record.rows] == [
        "identity", "resize-64", "llamagen-mini", "downsample-bits", "mean-colour",
    ]  # fmt: skip
    assert all(r.status == "ok" for r in mini.record.rows)


def test_calibration_rows_bound_the_others(mini: engine.Finished):
    identity, resized, mini_row, thumbnail, floor = (cells(mini.record, r.label) for r in mini.record.rows)
    assert identity["PSNR"] == math.inf
    assert identity["SSIM"] == 1
    assert identity["LPIPS-alex"] == identity["colour-de00"] == identity["brightness-dl"] == 0
    assert identity["FD-effnet"] == pytest.approx(0, abs=1e-6)
    for column in ("PSNR", "SSIM"):
        assert resized[column] > mini_row[column] > thumbnail[column] > floor[column]
    for column in ("LPIPS-alex", "FD-effnet"):
        assert resized[column] < mini_row[column] < thumbnail[column]
    assert resized["colour-de00"] < mini_row["colour-de00"] < floor["colour-de00"]
    assert abs(resized["brightness-dl"]) < abs(mini_row["brightness-dl"])


def test_the_thumbnail_spends_what_the_tokens_cost(mini: engine.Finished):
    bits = {r.label: r.bits_per_image for r in mini.record.rows}
    assert bits["llamagen-mini"] == 640
    assert 600 < bits["downsample-bits"] <= 640
    assert bits["identity"] is None


def test_a_record_says_how_it_was_made(mini: engine.Finished, capsys: pytest.CaptureFixture[str]):
    assert publish(mini, ["limit=20"]) == 0
    record = read(mini.folder / "run.json")
    assert record.protocol_hash == compose_config([]).make_protocol().hash
    assert (record.items, record.clusters) == (20, 5)
    row = next(r for r in record.rows if r.label == "llamagen-mini")
    assert [len(w.sha256) for w in row.weights] == [64]
    assert row.weights[0].pinned
    assert "core-h" in row.training
    assert row.precision == "fp32"
    report = (mini.folder / "report.md").read_text()
    assert "never compare" in report
    assert record.protocol_hash in report
    assert {p.name for p in mini.folder.iterdir()} == {
        "run.json", "report.md", "table.csv", "table.parquet", "per_image.parquet", "speed.csv",
        "rate.png", "contact.png", "report.html",
    }  # fmt: skip
    assert "llamagen-mini" in capsys.readouterr().out


def test_figures_do_not_depend_on_batch_residency_or_neighbours(folder: Path, tmp_path: Path):
    wanted = ("tokenizers=[noisy,toy]", "calibration=false")
    first = run(folder, tmp_path / "a", *wanted)
    for name, overrides in {
        "b": ("batch_size=3",),
        "c": ("resident=1",),
        "d": ("tokenizers=noisy",),
    }.items():
        other = run(folder, tmp_path / name, *wanted, *overrides)
        got, want = cells(other.record, "noisy"), cells(first.record, "noisy")
        assert got == pytest.approx(want, rel=1e-5), name


def test_seeds_show_the_spread_of_decoders_that_draw_noise(folder: Path, tmp_path: Path):
    common = (folder, tmp_path / "out", "tokenizers=[noisy,toy]", "metrics=[psnr]", "calibration=false")
    one, three, other = (run(*common, extra).record for extra in ("seed=0", "seeds=3", "seed=1"))
    row = {r.label: r.cells["PSNR"] for r in three.rows}
    assert row["noisy"].seeds > 0
    assert row["toy"].seeds is None
    assert cells(one, "noisy")["PSNR"] != cells(other, "noisy")["PSNR"]
    assert cells(one, "toy") == cells(other, "toy")


def test_a_longer_run_shares_whole_chunks(folder: Path, tmp_path: Path):
    import toyplugin

    run(folder, tmp_path / "out", "tokenizers=toy", "metrics=[psnr]")
    (folder.parent / "more").mkdir(exist_ok=True)
    encoded = []
    encode = toyplugin.Toy.encode
    try:
        toyplugin.Toy.encode = lambda self, images: encoded.append(len(images)) or encode(self, images)
        longer = pictures(tmp_path / "longer", 20)
        run(longer, tmp_path / "out", "tokenizers=toy", "metrics=[psnr]")
    finally:
        toyplugin.Toy.encode = encode
    assert sum(encoded) == 4, "16 of the 20 images were encoded in the shorter run"


def test_bf16_is_a_condition_of_its_own(folder: Path, tmp_path: Path):
    full = run(folder, tmp_path / "out", "tokenizers=llamagen", "metrics=[psnr]").record
    half = run(folder, tmp_path / "out", "tokenizers=llamagen", "metrics=[psnr]", "precision=bf16").record
    assert full.config_hash != half.config_hash
    assert half.rows[2].precision == "bf16"
    assert cells(half, "llamagen-mini")["PSNR"] != cells(full, "llamagen-mini")["PSNR"]
    assert cells(half, "llamagen-mini")["PSNR"] == pytest.approx(cells(full, "llamagen-mini")["PSNR"], abs=0.5)


@pytest.mark.parametrize("other", [["metrics=[fd-effnet]"], ["metrics=[psnr,fd-effnet]"], ["round_trips=2"]])
def test_a_run_with_another_table_has_another_folder(folder: Path, tmp_path: Path, other: list[str]):
    usual = ["tokenizers=toy", "calibration=false", "metrics=[effnet,fd-effnet]"]
    first = run(folder, tmp_path / "out", *usual)
    second = run(folder, tmp_path / "out", *usual[:2], *(other if other[0].startswith("m") else [usual[2], *other]))
    again = run(folder, tmp_path / "out", *usual)
    assert first.folder == again.folder != second.folder


def test_tf32_on_a_cpu_is_no_row_of_that_name(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="TF32"):
        run(folder, tmp_path / "out", "tokenizers=toy", "precision=tf32", "device=cpu")


def test_one_image_alone_has_no_distance_and_says_so(folder: Path, tmp_path: Path):
    record = run(folder, tmp_path / "out", "tokenizers=toy", "limit=1").record
    cell = next(r for r in record.rows if r.label == "toy").cells["FD-effnet"]
    assert cell.value is None
    assert "at least 2" in cell.note
