"""The scripts behind what is claimed of the engine: they run, and their parts add up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import engine, memory, table1


def test_parts_are_exclusive():
    clock = engine.Clock()
    with clock.part("outer"):
        time.sleep(0.02)
        with clock.part("inner"):
            time.sleep(0.05)
    assert clock.seconds["inner"] == pytest.approx(0.05, abs=0.02)
    assert clock.seconds["outer"] == pytest.approx(0.02, abs=0.02)


def test_both_ways_do_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["--quick", "--set", "metrics=[psnr,ssim,effnet]", "--plot", str(tmp_path / "parts.png")]
    assert engine.main(given) == 0
    shown = capsys.readouterr().out
    assert "llamagen-mini; 8 images of 128 px; metrics psnr, ssim, effnet" in shown
    for part in ("encode", "decode", "effnet", "write", "wait for images"):
        assert part in shown
    assert (tmp_path / "parts.png").stat().st_size > 1000


@pytest.mark.slow
def test_memory_of_a_run_is_its_own_process_s(tmp_path: Path):
    data = memory.synthetic(tmp_path / "images", 3, 64)
    run = memory.measure(data, tmp_path / "out", 64, "psnr,ssim", [])
    assert run.images == 3
    assert 1e8 < run.peak < 3e9
    assert run.stored > 0
    with pytest.raises(RuntimeError, match="unknown metric"):
        memory.measure(data, tmp_path / "other", 64, "nonesuch", [])


def test_what_can_not_be_measured_is_named():
    metrics, missing = memory.available()
    assert {"psnr", "ssim", "colour", "effnet", "fd-effnet"} <= set(metrics)
    assert len(metrics) + len(missing) == len(memory.METRICS.split(","))


@pytest.mark.slow
def test_table_ones_path_with_seeded_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = "titok,lactok-h"
    assert table1.main(["--quick", "--tokenizers", names, "--plot", str(tmp_path / "parts.png")]) == 0
    shown = capsys.readouterr().out
    for part in ("encode", "decode", "inception", "lpips-alex", "ssim", "metrics / decode"):
        assert part in shown
    with pytest.raises(SystemExit):
        table1.main(["--tokenizers", "nonesuch"])


def test_share_of_the_metrics():
    clock = engine.Clock()
    clock.seconds |= {"decode": 10.0, "psnr": 0.25, "inception": 0.75, "write": 5.0, "wait for images": 9.0}
    assert table1.metrics_share(clock) == pytest.approx(0.1)
