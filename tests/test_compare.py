"""Paired tests between rows of two runs, or of one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evals import record
from evals.cli.compare import main
from evals.record import ColumnRecord, RowRecord, RunRecord, Value, WeightsRecord
from evals.run import main as evals
from tests.support import pictures, the_run

COLUMNS = [
    ColumnRecord("PSNR", "higher", per_image=True),
    ColumnRecord("perc", "lower", per_image=True),
    ColumnRecord("dl", "zero", per_image=True),
    ColumnRecord("rFID", "lower"),
]


def make(folder: Path, shift: float, n: int = 40, sha: str = "a" * 64, rfid: float = 9.0, **changes) -> str:
    folder.mkdir()
    row = RowRecord("a", "a", weights=[WeightsRecord("x", sha, True)], cells={"rFID": Value(rfid, count=n)})
    fields = {
        "suite": "recon", "scale": "mini", "config_hash": "0", "config": {"seed": 0}, "protocol": {"fit": "squash"},
        "protocol_hash": "p", "dataset": "d", "dataset_fingerprint": "f", "pictures": n, "clusters": n,
        "columns": COLUMNS, "rows": [row, RowRecord("gone", "gone", status="missing", error="no weights")],
    } | changes  # fmt: skip
    (folder / "run.json").write_text(record.to_json(RunRecord(**fields)))
    base = np.random.default_rng(0).normal(20, 3, n)
    names = [f"{i:03}" for i in range(n)]
    psnr = base + shift
    psnr[0] = np.inf
    values = {"PSNR": psnr, "perc": base + shift, "dl": np.full(n, -1.0) + shift}
    frame = pd.DataFrame({"row": "a", "sample": names, "cluster": names, "decoding": 0} | values)
    frame.to_parquet(folder / "per_image.parquet")
    return str(folder)


def test_mean_share_won_and_what_changed(tmp_path: Path, capsys):
    a = make(tmp_path / "a", 0.0)
    b = make(tmp_path / "b", 0.5, sha="b" * 64, rfid=9.2, config={"seed": 1}, versions={"torch": "9"})
    assert main([a, b]) == 0
    out = capsys.readouterr().out
    assert "PSNR: +0.5, 95 % [+0.5, +0.5], won 100.0 %, 1 infinite left out" in out
    assert "perc: +0.5, 95 % [+0.5, +0.5], won 0.0 %" in out, "lower is better"
    assert "dl: +0.5, 95 % [+0.5, +0.5], won 100.0 %" in out, "closer to 0"
    assert "rFID: 9 -> 9.2, +0.2 (of the whole set: not paired; no evidence, under 0.3 at N = 40)" in out
    assert "config seed: 0 -> 1" in out
    assert "version torch: None -> 9" in out
    assert "weights: x sha256 aaaaaaaaaaaa -> x sha256 bbbbbbbbbbbb" in out


def test_a_difference_of_rfid_that_is_evidence_is_not_called_none(tmp_path: Path, capsys):
    assert main([make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.0, rfid=9.5)]) == 0
    assert "rFID: 9 -> 9.5, +0.5 (of the whole set: not paired)" in capsys.readouterr().out


def test_pairing_narrows_the_interval(tmp_path: Path, capsys):
    """The pictures differ by 3 dB, the difference between both rows does not: the interval must not show the former."""
    folder = Path(make(tmp_path / "b", 0.5))
    frame = pd.read_parquet(folder / "per_image.parquet")
    frame["perc"] += np.random.default_rng(1).normal(0, 0.1, len(frame))
    frame.to_parquet(folder / "per_image.parquet")
    main([make(tmp_path / "a", 0.0), str(folder)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "perc:" in line]
    low, high = (float(v) for v in line.split("[")[1].split("]")[0].split(","))
    assert 0.4 < low < 0.5 < high < 0.6


def test_a_run_against_itself_ties(tmp_path: Path, capsys):
    a = make(tmp_path / "a", 0.0)
    assert main([a, a]) == 0
    out = capsys.readouterr().out
    assert "nothing else changed" in out
    assert "perc: +0, 95 % [+0, +0], won 50.0 %" in out


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"n": 30, "dataset_fingerprint": "g"}, [], "the pictures differ (40 of d, fingerprint f and 30 of d"),
        ({"n": 30}, [], "40 and 30 pictures that are not the same"),
        ({"protocol_hash": "q", "protocol": {"fit": "crop"}}, [], "fit: squash and crop"),
        ({}, ["--tokenizer", "a", "zzz"], "no row 'zzz'; with figures: a"),
        ({}, ["--tokenizer", "gone"], "gone has no figures in"),
        ({}, ["--tokenizer", "a", "b", "c"], "3 names: expected one or two"),
        ({"rows": []}, [], "share no row"),
    ],
)
def test_what_can_not_be_compared_exits_2(tmp_path: Path, capsys, changes: dict, more: list[str], message: str):
    a, b = make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.0, **changes)
    assert main([a, b, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_exits_2(tmp_path: Path, capsys):
    assert main([make(tmp_path / "a", 0.0), str(tmp_path / "nowhere")]) == 2
    assert "holds no run.json" in capsys.readouterr().err


def test_two_tokenizers_of_a_real_run(tmp_path: Path, capsys):
    """identity loses nothing, so mean-colour wins no picture and the mean difference is the run's own."""
    folder = pictures(tmp_path / "pictures")
    asked = ["tokenizers=mean-colour", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path}", "metrics=[ssim]"]
    assert evals(asked) == 0
    run = the_run(tmp_path)
    assert main([str(run), str(run), "--tokenizer", "identity", "mean-colour"]) == 0
    out = capsys.readouterr().out
    assert "tokenizer: identity -> mean-colour" in out
    cells = {row.label: row.cells["SSIM"].value for row in record.read(run / "run.json").rows}
    assert f"SSIM: {cells['mean-colour'] - cells['identity']:+.4g}, 95 %" in out
    assert "won 0.0 %" in out
