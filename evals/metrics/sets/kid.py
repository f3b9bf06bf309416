"""Kernel Inception Distance (Binkowski et al. 2018), computed by torch-fidelity's own function.

Polynomial kernel (x . y / D + 1)^3, unbiased estimate, mean over 100 subsets drawn without replacement, seed 2020:
torch-fidelity's defaults. Its subset size is 1000; here it is the number of images where there are fewer.
"""

from __future__ import annotations

from torch import Tensor

from evals.metrics.base import Column, SetMetric
from evals.metrics.sets.frechet import check_features

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020


def kid(a: Tensor, b: Tensor, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE) -> tuple[float, float]:
    """Mean and standard deviation over the subsets, of feature rows (N1, D) and (N2, D).

    Raises FeatureError for fewer than two rows, different widths, or values that are not finite.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    check_features(a, b)
    found = kid_features_to_metric(
        a.float(),
        b.float(),
        kid_subsets=subsets,
        kid_subset_size=min(subset_size, len(a), len(b)),
        rng_seed=SEED,
        verbose=False,
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


class Kid(SetMetric):
    """KID on Inception-v3's 2048-d features.

    `compute` also gives "KID-std", the standard deviation over the subsets (0 where each is the whole set).
    """

    name = "kid"
    summary = "kernel Inception distance"
    features_of = "inception"
    columns = (
        Column(
            "KID",
            "lower",
            digits=5,
            note="torch-fidelity's, subsets of min(1000, N)",
            blind_to=("shuffled", "brighter", "shift"),
        ),
    )

    def compute(self, features: Tensor, reference_features: Tensor) -> dict[str, float]:
        """ "KID" and "KID-std". Raises FeatureError for fewer than two images."""
        return dict(zip(("KID", "KID-std"), kid(reference_features, features), strict=True))

    def note(self, count: int) -> str:
        if count < SUBSET_SIZE:
            return f"one subset of N={count} images, not 100 subsets of {SUBSET_SIZE}"
        return ""
