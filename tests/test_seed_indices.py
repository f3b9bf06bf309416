"""With several seed indices, a figure and its interval are of the mean over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evals.metrics.intervals import jackknife_groups, jackknife_interval
from evals.metrics.sets.frechet import FdEffnet, frechet_distance
from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, pictures

PLUGIN = TOY + "\n\nclass Noisy(Toy):\n    noise = True\n"


def test_the_interval_of_a_distance_is_that_of_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against the jackknife by its definition: leave a source out at every seed index, take the mean."""
    data, seen = pictures(tmp_path / "data", 12), []
    compute = FdEffnet.compute
    monkeypatch.setattr(FdEffnet, "compute", lambda s, a, b: seen.append((a, b)) or compute(s, a, b))
    with plugin(tmp_path / "plugin", PLUGIN, {"noisy": "Noisy", "toy": "Toy"}):
        common = ["metrics=[fd-effnet]", f"out='{tmp_path / 'out'}'"]
        three = run(data, tmp_path / "out", "tokenizers=noisy", "seeds=3", *common)
        assert len(seen) == 3
        one = rows(run(data, tmp_path / "out", "tokenizers=noisy", *common))["noisy"].cells["FD-effnet"]
        seen_by_three = seen[:3]
        computed = len(seen)
        again = run(data, tmp_path / "out", "tokenizers=noisy", "seeds=3", *common)
        assert len(seen) == computed, "what is stored is not computed again"
    cell = rows(three)["noisy"].cells["FD-effnet"]
    values = [frechet_distance(a, b) for a, b in seen_by_three]
    assert cell.value == pytest.approx(np.mean(values), rel=1e-12)
    clusters = [item.cluster for item in three.job.dataset.items]
    kept = [~mask for mask in jackknife_groups(clusters)]
    left = [np.mean([frechet_distance(a[k], b[k]) for a, b in seen_by_three]) for k in kept]
    assert (cell.low, cell.high) == pytest.approx(jackknife_interval(cell.value, left), rel=1e-6)
    assert (cell.low + cell.high) / 2 == pytest.approx(cell.value)
    assert cell.seeds == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert one.value == pytest.approx(values[0], rel=1e-12)
    assert (one.low, one.high) != (cell.low, cell.high)
    assert cell == rows(again)["noisy"].cells["FD-effnet"]
