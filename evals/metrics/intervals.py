"""95 % intervals of a table's figures, clustered by source.

Tiles of one photograph resemble each other, so the sources are what is resampled, not the images. With few sources
a plain percentile bootstrap is too narrow; its percentiles are widened as Hesterberg (2015, "What teachers should know
about the bootstrap") proposes: so far that they agree with Student's t for normal data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

LEVEL = 0.95
MIN_CLUSTERS = 3  # fewer sources say next to nothing about how sources vary
MAX_GROUPS = 20  # of the jackknife: with more sources they are gathered into ten groups
GROUPS = 10
# At N pictures or fewer, smaller differences of rFID are no evidence: another draw of images moves it as much.
RFID_EVIDENCE = 0.3
RFID_EVIDENCE_N = 5000

Interval = tuple[float, float] | tuple[None, None]


def cluster_bootstrap(values: np.ndarray, clusters: Sequence[str], resamples: int = 1000, seed: int = 0) -> Interval:
    """Interval of the mean of `values` (N,), resampling whole clusters. Deterministic in its arguments.

    clusters: the source of each value; where all differ this is the ordinary bootstrap over images. Infinite values
    are left out, as they are from the mean. (None, None) with fewer than three clusters.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(clusters):
        raise ValueError(f"values of shape {values.shape} with {len(clusters)} clusters: expected one cluster a value")
    finite = np.isfinite(values)
    labels = _labels([c for c, keep in zip(clusters, finite, strict=True) if keep])
    sizes = np.bincount(labels)
    if len(sizes) < MIN_CLUSTERS:
        return None, None
    sums = np.bincount(labels, weights=values[finite])
    rng = np.random.default_rng(seed)
    block = max(1, 2**21 // len(sizes))  # resamples at a time, to bound memory
    means = []
    for first in range(0, resamples, block):
        drawn = rng.integers(len(sizes), size=(min(block, resamples - first), len(sizes)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    tail = _widened_tail(len(sizes))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def sign_flip_p(differences: np.ndarray, clusters: Sequence[str], flips: int = 10_000, seed: int = 0) -> float | None:
    """Two-sided p-value of "the mean of paired `differences` (N,) is 0": the signs of whole clusters are flipped.

    All flips where there are at most `flips` of them, else so many drawn ones (then p is at least 1 / (flips + 1)).
    Deterministic in its arguments. None with fewer than three clusters: p could not be below 0.25.
    """
    values = np.asarray(differences, dtype=np.float64)
    labels = _labels(clusters)
    sums = np.bincount(labels, weights=values) if len(values) else np.zeros(0)
    if len(sums) < MIN_CLUSTERS:
        return None
    observed, slack = abs(sums.sum()), 1e-12 * np.abs(sums).sum()
    if 2 ** len(sums) <= flips:
        signs = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= observed - slack).mean())
    rng = np.random.default_rng(seed)
    block, reached = max(1, 2**21 // len(sums)), 0
    for first in range(0, flips, block):
        signs = 1 - 2 * rng.integers(2, size=(min(block, flips - first), len(sums)))
        reached += int((np.abs(signs @ sums) >= observed - slack).sum())
    return (reached + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values of a family of tests, in their order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def items_needed(deviation: float, difference: float, power: float = 0.8) -> int:
    """Independent items (or sources) at which a two-sided test of level 0.05 finds a mean difference with that power.

    deviation: standard deviation of an item's difference. n = ((z_0.975 + z_power) s / d)^2, the normal approximation.
    Raises ValueError for a difference of 0.
    """
    from scipy.special import ndtri

    if not difference:
        raise ValueError("difference 0: no number of items tells it")
    return max(MIN_CLUSTERS, math.ceil(((ndtri((1 + LEVEL) / 2) + ndtri(power)) * deviation / difference) ** 2))


def _widened_tail(count: int) -> float:
    """The share left out at each end for `count` clusters: Phi(-sqrt(n / (n - 1)) t), 0.025 for many."""
    from scipy.special import ndtr

    return float(ndtr(-math.sqrt(count / (count - 1)) * _t(count - 1)))


def _t(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _labels(clusters: Sequence[str]) -> np.ndarray:
    """Clusters as integers from 0, in order of first appearance."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(c, len(seen)) for c in clusters], dtype=np.int64)


def jackknife_groups(clusters: Sequence[str]) -> list[np.ndarray]:
    """What each replicate of the jackknife leaves out: boolean (N,) masks, one a cluster, or ten groups of clusters."""
    labels = _labels(clusters)
    count = int(labels.max()) + 1 if len(labels) else 0
    if count > MAX_GROUPS:
        labels, count = labels % GROUPS, GROUPS
    return [labels == group for group in range(count)]


def jackknife_interval(estimate: float, replicates: Sequence[float]) -> Interval:
    """estimate +- t standard errors, from the estimates with one group left out each.

    The standard error is the jackknife's (Efron and Tibshirani 1993, chapter 11).
    (None, None) with fewer than three replicates.
    """
    count = len(replicates)
    if count < MIN_CLUSTERS:
        return None, None
    error = math.sqrt((count - 1) * float(np.var(replicates)))
    return estimate - _t(count - 1) * error, estimate + _t(count - 1) * error


def bootstrap(
    statistic: Callable[[np.ndarray], Mapping[str, float]],
    names: Sequence[str],
    clusters: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of figures that are no plain means, resampling whole clusters. Deterministic in its arguments.

    statistic: indices of the items of a resample, (M,), to the figures, by name; names: those wanted. A resample in
    which a figure is not finite does not count for it. (None, None) with fewer than three clusters.
    """
    labels = _labels(clusters)
    members = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)] if len(labels) else []
    if len(members) < MIN_CLUSTERS:
        return dict.fromkeys(names, (None, None))
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(resamples):
        figures = statistic(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]))
        for name in names:
            if math.isfinite(figures[name]):
                drawn[name].append(figures[name])
    tail = _widened_tail(len(members))
    found: dict[str, Interval] = {}
    for name, values in drawn.items():
        found[name] = (None, None)
        if values:
            low, high = np.quantile(values, [tail, 1 - tail])
            found[name] = float(low), float(high)
    return found
