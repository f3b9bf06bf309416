"""The CI check: nothing moves when nothing changed, and it sees what a regression changes."""

import json
from pathlib import Path

import pytest

from evals import protocol
from evals.cli import check
from tests.support import ROOT

COMMITTED = ROOT / "results" / "mini" / "recon.json"


@pytest.fixture(scope="module")
def committed() -> dict:
    """What is committed of llamagen-mini and the calibration rows, with the command for those."""
    record = json.loads(COMMITTED.read_text())
    calibration = ("identity", "resize-64", "downsample-bits", "mean-colour")
    rows = {label: row for label, row in record["rows"].items() if label in ("llamagen-mini", *calibration)}
    return record | {"config": ["tokenizers=[llamagen-mini]", "limit=32"], "rows": rows}


def moved(committed: dict) -> set[str]:
    return {m.what for m in check.compare(committed, check.measure(committed["config"]))}


def test_nothing_moves(capsys: pytest.CaptureFixture[str]):
    assert check.main([str(COMMITTED)]) == 0, capsys.readouterr().out


def test_another_resize_filter(committed: dict, monkeypatch: pytest.MonkeyPatch):
    resize = protocol.resize
    bilinear = lambda images, size, _, antialias: resize(images, size, "bilinear", antialias)  # noqa: E731
    monkeypatch.setattr(protocol, "resize", bilinear)
    assert {"PSNR", "SSIM", "FD-effnet"} <= moved(committed)


def test_truncation_instead_of_rounding(committed: dict, monkeypatch: pytest.MonkeyPatch):
    reconstruction = protocol.reconstruction
    shifted = lambda output, p: reconstruction(output - 0.5 / 255, p)  # noqa: E731
    monkeypatch.setattr("evals.engine.execute.reconstruction", shifted)
    assert "PSNR" in moved(committed)


def test_another_ssim_window(committed: dict, monkeypatch: pytest.MonkeyPatch):
    from evals.metrics import registry

    make = registry.make_probe
    other = lambda name, device, *, ssim_window, effnet_size: make(  # noqa: E731
        name, device, ssim_window="gauss11", effnet_size=effnet_size
    )
    monkeypatch.setattr(registry, "make_probe", other)
    assert moved(committed) == {"SSIM"}


def test_swapped_colour_channels(committed: dict, monkeypatch: pytest.MonkeyPatch):
    from baselines.llamagen.adapter import LlamaGenMini

    decode = LlamaGenMini.decode
    monkeypatch.setattr(LlamaGenMini, "decode", lambda self, codes, seeds: decode(self, codes, seeds).flip(1))
    assert {"PSNR", "FD-effnet"} <= moved(committed)


def test_one_changed_weight(committed: dict, tmp_path: Path):
    """The largest weight of the decoder's last layer, doubled: the hash says so, and so do the figures."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from baselines.llamagen.adapter import LlamaGenMini
    from lactok.weights import locate

    (source,) = LlamaGenMini.weights(LlamaGenMini.Options())
    path = locate(source)
    state = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    name = max((n for n in state if state[n].ndim == 4), key=lambda n: float(state[n].abs().max()))
    flat = state[name].view(-1)
    index = int(flat.abs().argmax())
    flat[index] = flat[index] * 2
    save_file(state, tmp_path / "changed.safetensors", metadata)
    config = [*committed["config"], f"options.llamagen-mini.weights={tmp_path / 'changed.safetensors'}"]
    now = check.measure(config)
    (label,) = [row for row in now["rows"] if row.startswith("llamagen-mini")]
    now["rows"]["llamagen-mini"] = now["rows"].pop(label)
    found = {m.what for m in check.compare(committed, now)}
    assert "weights" in found
    assert "PSNR" in found


def test_moved_figures_exit_1_and_are_named(committed: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changed = json.loads(json.dumps(committed))
    row = changed["rows"]["llamagen-mini"]
    row["cells"]["PSNR"] += 0.001
    row["ids"][0] = " ".join(reversed(row["ids"][0].split()))
    path = tmp_path / "recon.json"
    path.write_text(json.dumps(changed))
    assert check.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert "llamagen-mini: PSNR" in out
    assert "llamagen-mini: ids" in out


def test_tolerances_are_what_is_promised(committed: dict):
    label = "llamagen-mini"

    def with_change(column: str, change: float) -> list:
        now = json.loads(json.dumps(committed))
        now["rows"][label]["cells"][column] += change
        return check.compare(committed, now)

    fd = committed["rows"][label]["cells"]["FD-effnet"]
    for column, inside, outside in (("PSNR", 1e-4, 3e-4), ("SSIM", 5e-6, 2e-5), ("FD-effnet", 5e-5 * fd, 2e-4 * fd)):
        assert not with_change(column, inside)
        assert with_change(column, outside)


def one_row(**cells: float | str | None) -> dict:
    """A snapshot of 32 pictures with one row."""
    row = {"status": "ok", "weights": [], "cells": cells}
    return {"protocol_hash": "p", "dataset_fingerprint": "d", "pictures": 32, "rows": {"a": row}}


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        (None, None, False), (None, 0.5, True), (0.5, None, True), ("nan", "nan", False), ("nan", 0.5, True),
        ("inf", "inf", False), ("inf", 0.5, True), (0.5, "inf", True), ("inf", "-inf", True),
    ],
)  # fmt: skip
def test_a_figure_that_is_missing_is_compared_too(before: object, after: object, moves: bool):
    found = check.compare(one_row(PSNR=before), one_row(PSNR=after))
    assert [m.what for m in found] == ["PSNR"] * moves
    assert [m.what for m in check.compare(one_row(PSNR=before), one_row())] == ["PSNR"] * (before is not None)


def test_top_1_may_move_by_one_picture_and_kid_by_rounding():
    for column, before, inside, outside in (
        ("top1-effnet", 0.5, 1 / 32, 2 / 32),
        ("KID", 0.002, 1e-6, 2e-6),
        ("KID", 0.2, 2e-5, 4e-5),
        ("KID-std", 0.0, 1e-6, 2e-6),
    ):
        assert not check.compare(one_row(**{column: before}), one_row(**{column: before - inside}))
        assert check.compare(one_row(**{column: before}), one_row(**{column: before - outside}))


def test_every_column_is_compared_or_follows_from_the_ids():
    from evals.metrics.registry import METRICS

    columns = {column.name for name, spec in METRICS.items() if name != "codes" for column in spec.columns()}
    columns |= {"PSNR-pooled", "KID-std"}
    assert {"top1-effnet", "KID", "LPIPS-vgg"} < columns
    assert [c for c in columns if check._tolerance(c, 32) is None] == []


def test_an_error_of_the_run_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(overrides: list[str]) -> dict:
        raise TypeError("of the engine")

    path = tmp_path / "x.json"
    path.write_text(json.dumps(one_row() | {"config": []}))
    monkeypatch.setattr(check, "measure", broken)
    with pytest.raises(TypeError, match="of the engine"):
        check.main([str(path)])


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_another_file_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert check.main([str(path)]) == 2
    assert "x.json" in capsys.readouterr().err
