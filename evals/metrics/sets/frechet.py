"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), with means m and sample covariances S (n - 1). With centred rows
A = (X - m) / sqrt(n - 1) the last trace is the sum of the singular values of A1 A2^T. That form is symmetric, needs no
matrix root and no offset on the diagonal, and stays exact for singular covariances (fewer images than dimensions).
All in float64; the result is not clipped, so it may be negative by a rounding error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from evals.metrics.base import Column, SetMetric
from evals.metrics.intervals import RFID_EVIDENCE, RFID_EVIDENCE_N, Interval, jackknife_groups, jackknife_interval


class FeatureError(ValueError):
    """Sets of features between which no distance is defined."""


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The distance between two sets of feature rows, (N1, D) and (N2, D), on one device.

    Raises FeatureError for fewer than two rows, different widths, or values that are not finite.
    """
    check_features(a, b)
    a, b = a.double(), b.double()
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    a, b = _factor(a - mean_a), _factor(b - mean_b)
    traces = a.square().sum() + b.square().sum()
    return float((mean_a - mean_b).square().sum() + traces - 2 * torch.linalg.svdvals(a @ b.T).sum())


def _factor(centred: Tensor) -> Tensor:
    """A with A^T A = S and at most D rows: the scaled rows, or their triangular factor where there are more."""
    rows = centred / (len(centred) - 1) ** 0.5
    return torch.linalg.qr(rows, mode="r").R if rows.shape[0] > rows.shape[1] else rows


def check_features(a: Tensor, b: Tensor) -> None:
    """Raises FeatureError unless a distance between these sets of rows is defined."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise FeatureError(f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: expected (N1, D) and (N2, D)")
    if min(len(a), len(b)) < 2:
        raise FeatureError(f"sets of {len(a)} and {len(b)} images; a distance needs at least 2 in each")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise FeatureError("features that are not finite")


def jackknife_frechet(features: Sequence[Tensor], reference: Tensor, clusters: Sequence[str]) -> Interval:
    """95 % interval of the mean over seed indices of the distance to `reference`, leaving out clusters.

    features: one (N, D) a seed index; reference: (N, D); row i of each belongs to clusters[i]. A replicate leaves one
    group of clusters out of every set and is the mean over seed indices of what remains, as the figure is: the
    interval holds for the mean, not for one seed index. (None, None) with fewer than three clusters, or where a
    replicate would keep fewer than two images. Raises FeatureError where the sets are not of the same items.
    """
    for rows in features:
        check_features(reference, rows)
        if not len(reference) == len(rows) == len(clusters):
            raise FeatureError(
                f"{len(reference)} and {len(rows)} rows with {len(clusters)} clusters: expected the same images"
            )
    kept = [torch.from_numpy(~mask).to(reference.device) for mask in jackknife_groups(clusters)]
    if any(int(keep.sum()) < 2 for keep in kept):
        return None, None
    estimate = float(np.mean([frechet_distance(reference, rows) for rows in features]))
    replicates = np.mean([_left_out(reference.double(), rows.double(), kept) for rows in features], axis=0)
    return jackknife_interval(estimate, replicates.tolist())


def _left_out(a: Tensor, b: Tensor, kept: Sequence[Tensor]) -> list[float]:
    """The distance between the kept rows of a and b, float64 (N, D), for each mask."""
    if len(a) <= a.shape[1]:
        return _from_products(a - a.mean(dim=0), b - b.mean(dim=0), a.mean(dim=0) - b.mean(dim=0), kept)
    return [frechet_distance(a[keep], b[keep]) for keep in kept]


def _from_products(a: Tensor, b: Tensor, difference: Tensor, kept: Sequence[Tensor]) -> list[float]:
    """Distances of the kept rows from one matrix of products: centring rows is centring that matrix.

    a, b: centred rows (N, D) of both sets; difference: between the means that were subtracted, (D,).
    """
    products = a @ b.T
    norms_a, norms_b = a.square().sum(dim=1), b.square().sum(dim=1)
    found = []
    for keep in kept:
        n = int(keep.sum())
        mean_a, mean_b = a[keep].mean(dim=0), b[keep].mean(dim=0)
        part = products[keep][:, keep]
        part = part - part.mean(dim=0) - part.mean(dim=1, keepdim=True) + part.mean()
        means = (difference + mean_a - mean_b).square().sum()
        spreads = norms_a[keep].sum() + norms_b[keep].sum() - n * (mean_a.square().sum() + mean_b.square().sum())
        found.append(float(means + (spreads - 2 * torch.linalg.svdvals(part).sum()) / (n - 1)))
    return found


def bias_note(count: int, dim: int) -> str:
    """A sentence where a Fréchet distance over `count` images is known to be biased upwards; "" elsewhere.

    Below D + 1 images the covariances are singular; the bias falls as 1/N (Chong and Forsyth 2020), and published
    figures use 50,000 (rFID) or at least 5,000 images.
    """
    if count <= dim:
        return f"N={count} is no more than the {dim} dimensions: singular covariances, strongly biased; ranks only"
    if count < 5 * dim:
        return f"N={count} is small for {dim} dimensions: biased; compare only at equal N"
    return ""


class Frechet(SetMetric):
    """A Fréchet distance on the features of one image metric, of paired sets. dim: their width."""

    dim: ClassVar[int]

    def compute(self, features: Tensor, reference_features: Tensor) -> dict[str, float]:
        return {self.columns[0].name: frechet_distance(reference_features, features)}

    def interval(self, features: Sequence[Tensor], reference_features: Tensor, clusters: Sequence[str]) -> Interval:
        """By the jackknife over clusters; (None, None) with fewer than three of them."""
        return jackknife_frechet(features, reference_features, clusters)

    def note(self, count: int) -> str:
        return bias_note(count, self.dim)


class Rfid(Frechet):
    """Reconstruction FID: Inception-v3's 2048-d features, against the very images that were encoded."""

    name = "rfid"
    summary = "reconstruction FID"
    features_of = "inception"
    columns = (
        Column(
            "rFID",
            "lower",
            digits=3,
            note="Fréchet distance, torch-fidelity's Inception-v3 (2048-d)",
            blind_to=("shuffled", "brighter"),
        ),
    )
    dim = 2048

    def note(self, count: int) -> str:
        """The bias at this N, and from what size on a difference means anything."""
        note = super().note(count)
        if count <= RFID_EVIDENCE_N:
            note += f"; differences under {RFID_EVIDENCE} at N = {RFID_EVIDENCE_N} are not evidence"
        return note


class FdEffnet(Frechet):
    """The Fréchet distance on EfficientNet-Lite0's 1280-d features."""

    name = "fd-effnet"
    summary = "Fréchet distance on EfficientNet-Lite0"
    features_of = "effnet"
    columns = (
        Column(
            "FD-effnet",
            "lower",
            digits=1,
            note="Fréchet distance, EfficientNet-Lite0 (1280-d)",
            blind_to=("shuffled", "brighter"),
        ),
    )
    dim = 1280
