"""Kernel Inception Distance (Binkowski et al. 2018), computed by torch-fidelity's own function.

Polynomial kernel (x . y / D + 1)^3, unbiased estimate, mean over 100 subsets drawn without replacement, seed 2020:
torch-fidelity's defaults. Its subset size is 1000; here it is the number of pictures where there are fewer.
"""

from __future__ import annotations

from torch import Tensor

from evals.metrics.base import Column, Distance
from evals.metrics.frechet import check_features

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020


class Kid(Distance):
    """KID on Inception-v3's 2048-d features.

    `compute` also gives "KID-std", the standard deviation over the subsets (0 where each is the whole set).
    """

    name = "kid"
    probe = "inception"
    columns = (Column("KID", "lower", digits=5, note="torch-fidelity's, subsets of min(1000, N)"),)

    def compute(self, originals: Tensor, reconstructions: Tensor) -> dict[str, float]:
        """ "KID" and "KID-std". Raises FeatureError for fewer than two pictures."""
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        check_features(originals, reconstructions)
        found = kid_features_to_metric(
            originals.float(),
            reconstructions.float(),
            kid_subsets=SUBSETS,
            kid_subset_size=min(SUBSET_SIZE, len(originals), len(reconstructions)),
            rng_seed=SEED,
            verbose=False,
        )
        return {"KID": found[KEY_METRIC_KID_MEAN], "KID-std": found[KEY_METRIC_KID_STD]}

    def note(self, count: int) -> str:
        if count < SUBSET_SIZE:
            return f"one subset of N={count} pictures, not 100 subsets of {SUBSET_SIZE}"
        return ""
