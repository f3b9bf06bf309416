"""The Inception-v3 of FID: torch-fidelity's own module with the weights of its release (TensorFlow's, 2015-12-05)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lactok.weights import UrlWeights, WeightsError, load_state_dict, locate

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

WEIGHTS = UrlWeights(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


def load(device: torch.device | str = "cpu", features: Sequence[str] = ("2048",)) -> FeatureExtractorInceptionV3:
    """The published network. Raises lactok.weights.MissingWeights when its weights are not available.

    It takes uint8 (B, 3, H, W) RGB of any size, resizes inside as TensorFlow 1 did, and gives a tuple of float32
    (B, D), one for each name in `features`: "64", "192", "768", "2048", "logits_unbiased", "logits" (1008 each).
    """
    return build(load_state_dict(locate(WEIGHTS)), device, features)


def build(
    tensors: Mapping[str, Tensor], device: torch.device | str = "cpu", features: Sequence[str] = ("2048",)
) -> FeatureExtractorInceptionV3:
    """The network with the given weights, but for `num_batches_tracked` entries. Raises WeightsError for others."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The class insists on reading a file, and would unpickle it without restriction: it gets our own bytes.
    file = io.BytesIO()
    torch.save(dict(tensors), file)
    file.seek(0)
    try:
        module = FeatureExtractorInceptionV3("inception-v3-compat", list(features), feature_extractor_weights_path=file)
    except RuntimeError as error:
        raise WeightsError(f"these tensors are not torch-fidelity's Inception-v3: {error}") from error
    return module.to(device)
