"""Peak signal-to-noise ratio on RGB uint8: 10 log10(255^2 / MSE), for each picture.

The squared error is summed in integers, so it is exact. Equal to scikit-image's `peak_signal_noise_ratio`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evals.metrics.base import Column, Probe
from evals.metrics.tiles import for_each, tiles


class Psnr(Probe):
    """PSNR in dB; +inf for identical pictures.

    `compare` also gives "MSE" (of values 0 to 255), from whose mean the pooled PSNR follows (`pooled_psnr`).
    """

    name = "psnr"
    columns = (Column("PSNR", "higher", digits=2, unit="dB", note="mean over pictures of the PSNR of RGB uint8"),)

    def view(self, images: Tensor) -> Tensor:
        """The pictures themselves."""
        return images

    def compare(self, originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        """ "PSNR" and "MSE", float64 (B,). Raises ValueError when shapes differ."""
        if originals.shape != reconstructions.shape:
            raise ValueError(f"pictures of shapes {tuple(originals.shape)} and {tuple(reconstructions.shape)}")
        mse = _squared_errors(originals, reconstructions).double() / originals[0].numel()
        return {"PSNR": psnr(mse), "MSE": mse}


def _squared_errors(a: Tensor, b: Tensor) -> Tensor:
    """Sums of squared differences of uint8 (B, 3, H, W), int64 (B,) and exact."""
    parts = tiles(a.shape[1:], 0, a.device)
    sums = torch.empty(len(a), len(parts), dtype=torch.int64, device=a.device)

    def work(picture: int, part: int) -> None:
        index = parts[part].index
        difference = a[picture][index].to(torch.int32).sub_(b[picture][index])
        sums[picture, part] = difference.mul_(difference).sum(dtype=torch.int64)

    for_each(work, len(a), len(parts))
    return sums.sum(dim=1)


def psnr(mse: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors of values 0 to 255; +inf where the error is 0."""
    return 10 * torch.log10(255.0**2 / mse)


def pooled_psnr(mse: Tensor) -> float:
    """PSNR of the mean squared error over all pictures, float64 (N,): a second convention, at most the mean PSNR."""
    return float(psnr(mse.double().mean()))
