"""The benchmark runs, compares what both ways give, and fails when they differ."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "metrics.py"


@pytest.mark.slow
def test_quick_run():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--threads", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("PSNR", "SSIM uniform7", "LPIPS alex", "FID"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ +[\d.]+ +\S+, within the bar$", done.stdout, re.MULTILINE)
    assert re.search(r"^total +[\d.]+ +[\d.]+ +[\d.]+$", done.stdout, re.MULTILINE)
    assert "1 threads" in done.stdout
    assert "torch-fidelity 0." in done.stdout


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_metrics", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_disagreement_is_seen(benchmark, capsys):
    work = benchmark.make_work(64, 2, 1)
    usual, ours = benchmark.usual_ssim(work), benchmark.our_values(work, benchmark.Ssim())
    assert usual.shape == (2,)
    same = benchmark.Part("same", lambda: usual, lambda: ours, benchmark.uint8_bar)
    other = benchmark.Part("other", lambda: usual, lambda: ours + 2e-6, benchmark.uint8_bar)
    assert benchmark.measure([same])
    assert not benchmark.measure([same, other])
    assert "OUTSIDE THE BAR" in capsys.readouterr().out


def test_images(benchmark):
    """Photographs, all different, and tokenizers that lose more and more."""
    work = benchmark.make_work(96, 7, 3)
    assert len({p.tobytes() for p in work.references}) == 7
    assert all(p.shape == (96, 96, 3) and p.dtype == np.uint8 for p in work.references)
    means = benchmark.usual_ssim(work).reshape(3, 7).mean(axis=1)
    assert 1 > means[0] > means[1] > means[2] > 0
