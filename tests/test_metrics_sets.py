"""Fréchet distances and KID are torch-fidelity's; intervals cover what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evals.metrics.image.effnet import EffnetMetric
from evals.metrics.image.inception import Inception
from evals.metrics.intervals import cluster_bootstrap, jackknife_groups, jackknife_interval
from evals.metrics.sets.frechet import FdEffnet, FeatureError, Rfid, bias_note, frechet_distance, jackknife_frechet
from evals.metrics.sets.kid import Kid


def rows(seed: int, n: int, dim: int, rank: int | None = None, shift: float = 0.3) -> Tensor:
    r = np.random.RandomState(seed)
    k = rank or dim
    x = r.standard_normal((n, k)) @ r.standard_normal((k, dim)) / np.sqrt(k) + shift
    return torch.from_numpy(x.astype(np.float32))


def fidelity_fid(a: Tensor, b: Tensor) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    stats = (fid_features_to_statistics(x) for x in (a, b))
    return fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]


@pytest.mark.parametrize(
    ("n1", "n2", "dim", "rank"),
    [
        (200, 200, 32, None),
        (90, 40, 32, None),
        (20, 30, 64, None),
        (2, 2, 8, None),
        (60, 60, 48, 5),
        (33, 33, 32, None),
    ],
)
def test_frechet_is_torch_fidelity(n1, n2, dim, rank):
    a, b = rows(1, n1, dim, rank), rows(2, n2, dim, rank, shift=0.5)
    trace = float(a.double().var(0).sum() + b.double().var(0).sum())
    assert frechet_distance(a, b) == pytest.approx(fidelity_fid(a, b), abs=1e-4 * trace if n1 <= dim or rank else 1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_known_values():
    """Equal sets: 0 but for rounding, singular or not. A shift by d: |d|^2. A scaling by s: (1 - s)^2 of the trace."""
    for n in (50, 8):
        a = rows(3, n, 16)
        trace = float(a.double().var(0).sum())
        assert abs(frechet_distance(a, a)) < 1e-12 * trace
        assert abs(frechet_distance(a, a.flip(0))) < 1e-12 * trace
        assert frechet_distance(a, a + 2) == pytest.approx(4 * 16, rel=1e-6)
        a = a.double() - a.double().mean(0)
        assert frechet_distance(a, 3 * a) == pytest.approx(4 * trace, rel=1e-9)


def test_frechet_classes():
    a, b = rows(1, 30, 24), rows(2, 30, 24)
    clusters = [str(i // 3) for i in range(30)]
    for metric, source in ((Rfid(), Inception), (FdEffnet(), EffnetMetric)):
        (column,) = metric.columns
        value = metric.compute(b, a)[column.name]
        assert value == frechet_distance(a, b)
        low, high = metric.interval([b], a, clusters)
        assert low < value < high
        assert "singular" in metric.note(30)
        assert (metric.features_of, metric.dim) == (source.name, source.feature_dim)
        assert metric.weights() == source.weights()


def test_bias_note():
    assert "singular" in bias_note(2048, 2048)
    assert "equal N" in bias_note(5000, 2048)
    assert bias_note(50_000, 2048) == ""


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(1, 4), "sets of 1 and 1 images; .* at least 2"),
        (torch.zeros(3, 4), torch.zeros(3, 5), r"\(3, 4\) and \(3, 5\)"),
        (torch.zeros(3, 4), torch.full((3, 4), math.nan), "not finite"),
    ],
)
def test_no_distance(a, b, message):
    for metric in (Rfid(), Kid()):
        with pytest.raises(FeatureError, match=message):
            metric.compute(b, a)


def test_kid_is_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = rows(4, 60, 32), rows(5, 60, 32, shift=0.4)
    want = kid_features_to_metric(a, b, kid_subset_size=60, verbose=False)
    got = Kid().compute(b, a)
    assert got["KID"] == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-4)
    assert got["KID-std"] == pytest.approx(0, abs=1e-6)  # each subset is the whole set
    assert "N=60" in Kid().note(60)
    assert Kid().note(1000) == ""


# --- Intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [20, 90])  # more rows than dimensions, and fewer
def test_jackknife_replicates(dim):
    """The interval is that of distances computed anew with each source left out."""
    a, b = rows(6, 60, dim), rows(7, 60, dim)
    clusters = [f"photo {i % 6}" for i in range(60)]
    groups = [torch.from_numpy(~mask) for mask in jackknife_groups(clusters)]
    assert [int(g.sum()) for g in groups] == [50] * 6
    anew = [frechet_distance(a[keep], b[keep]) for keep in groups]
    want = jackknife_interval(frechet_distance(a, b), anew)
    assert jackknife_frechet([b], a, clusters) == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("dim", [20, 90])
def test_jackknife_of_several_seed_indices_is_of_their_mean(dim):
    """By its definition: leave a cluster out of every seed index, and take the mean of what remains."""
    a, seeds = rows(6, 60, dim), [rows(7 + i, 60, dim, shift=0.3 + 0.1 * i) for i in range(3)]
    clusters = [f"photo {i % 6}" for i in range(60)]
    kept = [torch.from_numpy(~mask) for mask in jackknife_groups(clusters)]
    mean = np.mean([frechet_distance(a, b) for b in seeds])
    anew = [np.mean([frechet_distance(a[k], b[k]) for b in seeds]) for k in kept]
    got = jackknife_frechet(seeds, a, clusters)
    assert got == pytest.approx(jackknife_interval(mean, anew), rel=1e-8)
    assert sum(got) / 2 == pytest.approx(mean)
    assert all(got != pytest.approx(jackknife_frechet([b], a, clusters), rel=1e-3) for b in seeds)
    assert jackknife_frechet([seeds[0]] * 3, a, clusters) == pytest.approx(
        jackknife_frechet(seeds[:1], a, clusters), rel=1e-12
    )


def test_jackknife_groups():
    many = [str(i) for i in range(45)]
    masks = jackknife_groups(many)
    assert len(masks) == 10
    assert (np.sum(masks, axis=0) == 1).all()
    few = ["a", "b", "a", "c"]
    assert [m.tolist() for m in jackknife_groups(few)] == [
        [True, False, True, False],
        [False, True, False, False],
        [False, False, False, True],
    ]


def test_jackknife_of_a_mean_is_the_textbook_interval():
    values = np.random.RandomState(0).standard_normal(12)
    replicates = [np.delete(values, i).mean() for i in range(12)]
    low, high = jackknife_interval(values.mean(), replicates)
    half = 2.2009851600829 * values.std(ddof=1) / math.sqrt(12)  # t(0.975; 11)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-9)


@pytest.mark.parametrize("clusters", [["a"] * 6, ["a", "b"] * 3])
def test_no_interval_from_too_few_sources(clusters):
    assert cluster_bootstrap(np.arange(6.0), clusters) == (None, None)
    assert jackknife_frechet([rows(2, 6, 4)], rows(1, 6, 4), clusters) == (None, None)


def test_jackknife_other_rows():
    with pytest.raises(FeatureError, match="same images"):
        jackknife_frechet([rows(2, 6, 4)], rows(1, 6, 4), ["a"] * 5)
    with pytest.raises(FeatureError, match="6 and 5 rows with 6 clusters"):
        jackknife_frechet([rows(2, 6, 4), rows(2, 5, 4)], rows(1, 6, 4), ["a"] * 6)


@pytest.mark.parametrize("count", [5, 30])
def test_bootstrap_coverage(count):
    """Of 300 experiments with normal cluster effects, 95 % intervals hold the truth about 95 % of the time."""
    r = np.random.RandomState(0)
    clusters = [str(i // 4) for i in range(4 * count)]
    hits = 0
    for seed in range(300):
        values = r.standard_normal(count).repeat(4) + 0.3 * r.standard_normal(4 * count)
        low, high = cluster_bootstrap(values, clusters, resamples=400, seed=seed)
        hits += low <= 0 <= high
    assert 0.87 <= hits / 300 <= 0.99


def test_bootstrap_is_clustered_and_deterministic():
    values = np.repeat(np.arange(8.0), 50)
    by_source = cluster_bootstrap(values, [str(int(v)) for v in values])
    alone = cluster_bootstrap(values, [str(i) for i in range(400)])
    assert by_source == cluster_bootstrap(values, [str(int(v)) for v in values])
    assert by_source[1] - by_source[0] > 5 * (alone[1] - alone[0])
    want = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert alone == pytest.approx((3.5 - want, 3.5 + want), abs=0.15 * want)


def test_bootstrap_leaves_infinities_out():
    values, clusters = np.array([30.0, math.inf, 31.0, 35.0, math.inf, 28.0]), list("abcdef")
    kept = np.isfinite(values)
    assert cluster_bootstrap(values, clusters) == cluster_bootstrap(values[kept], list("acdf"))
    assert cluster_bootstrap(np.full(6, math.inf), clusters) == (None, None)


def test_bootstrap_bad_input():
    with pytest.raises(ValueError, match=r"shape \(3,\) with 2 clusters"):
        cluster_bootstrap(np.zeros(3), ["a", "b"])
