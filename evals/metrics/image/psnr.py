"""Peak signal-to-noise ratio on RGB uint8: 10 log10(255^2 / MSE), for each image.

The squared error is summed in integers, so it is exact. Equal to scikit-image's `peak_signal_noise_ratio`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evals.metrics.base import Column, ImageMetric
from evals.metrics.image.tiles import for_each, tiles
from lactok.interface import Item


class Psnr(ImageMetric):
    """PSNR in dB; +inf for identical images.

    `score` also gives "MSE" (of values 0 to 255), from whose mean the pooled PSNR follows (`pooled_psnr`).
    """

    name = "psnr"
    summary = "PSNR in dB, RGB uint8; mean over images, and pooled"
    columns = (
        Column("PSNR", "higher", digits=2, unit="dB", note="mean over images of the PSNR of RGB uint8"),
        Column(
            "PSNR-pooled",
            "higher",
            digits=2,
            unit="dB",
            note="PSNR of the mean squared error over all images",
            mean=False,
        ),
    )

    def embed(self, images: Tensor, items: Sequence[Item]) -> Tensor:
        """The images themselves."""
        return images

    def score(self, reference: Tensor, embedding: Tensor, items: Sequence[Item]) -> dict[str, Tensor]:
        """ "PSNR" and "MSE", float64 (B,). Raises ValueError when shapes differ."""
        if reference.shape != embedding.shape:
            raise ValueError(f"images of shapes {tuple(reference.shape)} and {tuple(embedding.shape)}")
        mse = _squared_errors(reference, embedding).double() / reference[0].numel()
        return {"PSNR": psnr(mse), "MSE": mse}

    @classmethod
    def summarise(cls, values: Mapping[str, np.ndarray], items: Sequence[Item]) -> dict[str, float]:
        """ "PSNR-pooled", from "MSE" of all items and seed indices."""
        return {"PSNR-pooled": pooled_psnr(torch.from_numpy(values["MSE"].ravel()))}


def _squared_errors(a: Tensor, b: Tensor) -> Tensor:
    """Sums of squared differences of uint8 (B, 3, H, W), int64 (B,) and exact."""
    parts = tiles(a.shape[1:], 0, a.device)
    sums = torch.empty(len(a), len(parts), dtype=torch.int64, device=a.device)

    def work(image: int, part: int) -> None:
        index = parts[part].index
        difference = a[image][index].to(torch.int32).sub_(b[image][index])
        sums[image, part] = difference.mul_(difference).sum(dtype=torch.int64)

    for_each(work, len(a), len(parts))
    return sums.sum(dim=1)


def psnr(mse: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors of values 0 to 255; +inf where the error is 0."""
    return 10 * torch.log10(255.0**2 / mse)


def pooled_psnr(mse: Tensor) -> float:
    """PSNR of the mean squared error over all images, float64 (N,): a second convention, at most the mean PSNR."""
    return float(psnr(mse.double().mean()))
