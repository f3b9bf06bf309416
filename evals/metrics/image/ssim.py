"""Structural similarity (Wang et al. 2004) of RGB uint8: mean over the channels, data range 255, K = (0.01, 0.03).

Two windows, each equal to scikit-image's `structural_similarity` with the arguments given:
- uniform7: its default (7x7 uniform, sample covariance). The sums over a window stay integers, hence exact.
- gauss11: gaussian_weights=True, sigma=1.5, use_sample_covariance=False; float64.
Both leave out the border where the window does not fit (3 or 5 pixels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from evals.metrics.base import Column, ImageMetric, require_side
from evals.metrics.image.tiles import for_each, tiles
from lactok.interface import Item

WindowName = Literal["uniform7", "gauss11"]

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
N = 49  # pixels in the uniform window
SIGMA, TRUNCATE = 1.5, 3.5  # scikit-image's, which make the 11 taps of Wang et al.
RADIUS = int(TRUNCATE * SIGMA + 0.5)
_WEIGHTS = [math.exp(-0.5 * (i / SIGMA) ** 2) for i in range(-RADIUS, RADIUS + 1)]
TAPS = tuple(w / sum(_WEIGHTS) for w in _WEIGHTS)


@dataclass(frozen=True)
class SsimEmbedding:
    """images: uint8 (B, 3, H, W). local: what the window sums to around each pixel, (B, 3, H - k + 1, W - k + 1):
    int16 sums for uniform7, float64 weighted means for gauss11."""

    images: Tensor
    local: Tensor


@dataclass(frozen=True)
class _Window:
    """size: k; dtype: of `local`; local: pixels (C, H, W) of that dtype to their local sums or means;
    similarity: from two uint8 (C, H, W) and their local sums to the SSIM of each window position, float64, over 4."""

    size: int
    dtype: torch.dtype
    local: Callable[[Tensor], Tensor]
    quarter_ssim: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Ssim(ImageMetric):
    """Mean SSIM of each image. window: "uniform7" or "gauss11"."""

    name = "ssim"
    summary = "SSIM with the protocol's window (uniform7)"
    columns = (Column("SSIM", "higher", digits=4, note="window as the protocol says; RGB mean, data range 255"),)
    protocol_fields: ClassVar[tuple[str, ...]] = ("ssim_window",)

    def __init__(self, window: WindowName = "uniform7") -> None:
        if window not in WINDOWS:
            raise ValueError(f"SSIM window {window!r}: expected {' or '.join(WINDOWS)}")
        self.window = WINDOWS[window]

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> Ssim:
        """With the protocol's window."""
        return cls(settings["ssim_window"])

    def embed(self, images: Tensor, items: Sequence[Item]) -> SsimEmbedding:
        """The images and their local sums. Raises ValueError for images smaller than the window."""
        size = self.window.size
        count, channels, height, width = images.shape
        require_side(images, size, "the SSIM window")
        local = torch.empty(
            (count, channels, height - size + 1, width - size + 1), dtype=self.window.dtype, device=images.device
        )
        parts = tiles(local.shape[1:], size - 1, images.device)

        def work(image: int, part: int) -> None:
            pixels = images[image][parts[part].grown(size - 1)].to(self.window.dtype)
            local[image][parts[part].index] = self.window.local(pixels)

        for_each(work, count, len(parts))
        return SsimEmbedding(images, local)

    def score(self, reference: SsimEmbedding, embedding: SsimEmbedding, items: Sequence[Item]) -> dict[str, Tensor]:
        """The column's values, float64 (B,). Raises ValueError when shapes differ."""
        x, y = reference, embedding
        if x.images.shape != y.images.shape:
            raise ValueError(f"images of shapes {tuple(x.images.shape)} and {tuple(y.images.shape)}")
        parts = tiles(x.local.shape[1:], self.window.size - 1, x.local.device)
        sums = torch.empty(len(x.local), len(parts), dtype=torch.float64, device=x.local.device)

        def work(image: int, part: int) -> None:
            pixels, local = parts[part].grown(self.window.size - 1), parts[part].index
            values = x.images[image][pixels], y.images[image][pixels], x.local[image][local], y.local[image][local]
            sums[image, part] = self.window.quarter_ssim(*values).sum()

        for_each(work, len(sums), len(parts))
        return {self.columns[0].name: 4 * sums.sum(dim=1) / x.local[0].numel()}


class SsimGauss11(Ssim):
    """SSIM with the Gaussian window under a name of its own, whatever window the protocol names."""

    name = "ssim-gauss11"
    summary = "SSIM with the 11-tap Gaussian window"
    columns = (Column("SSIM-gauss11", "higher", digits=4, note="11-tap Gaussian window (Wang et al. 2004)"),)
    protocol_fields = ()

    def __init__(self) -> None:
        super().__init__("gauss11")

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> SsimGauss11:
        return cls()


def _sum7(x: Tensor) -> Tensor:
    """Sums over 7x7 windows: (C, H, W) to (C, H - 6, W - 6), by doubling (2, 4, then 4 + 2 + 1)."""
    for dim in (1, 2):
        length = x.shape[dim] - 6
        two = x.narrow(dim, 0, length + 5) + x.narrow(dim, 1, length + 5)
        four = two.narrow(dim, 0, length + 3) + two.narrow(dim, 2, length + 3)
        x = four.narrow(dim, 0, length).add_(two.narrow(dim, 4, length)).add_(x.narrow(dim, 6, length))
    return x


def _uniform7(x: Tensor, y: Tensor, sum_x: Tensor, sum_y: Tensor) -> Tensor:
    """With sums s over N pixels, numerator and denominator both times N^3 (N - 1), so that they stay integers:
    (2 sx sy + N^2 C1) (2 (N sxy - sx sy) + N (N - 1) C2) over
    (sx^2 + sy^2 + N^2 C1) (N (sxx + syy) - sx^2 - sy^2 + N (N - 1) C2). All fit int32: at most 2 (49 x 255)^2."""
    x, y = x.to(torch.int32), y.to(torch.int32)
    covariance = _sum7(x * y)
    variances = _sum7(x.mul_(x).add_(y.mul_(y)))
    sum_x, sum_y = sum_x.to(torch.int32), sum_y.to(torch.int32)
    product = sum_x * sum_y
    squares = sum_x.mul_(sum_x).add_(sum_y.mul_(sum_y))
    covariance.mul_(N).sub_(product)
    variances.mul_(N).sub_(squares)
    return _quotient(product, squares, covariance, variances, C1 * N * N, C2 * N * (N - 1))


def gaussian_mean(x: Tensor) -> Tensor:
    """Gaussian means: float64 (C, H, W) to (C, H - 10, W - 10), rows first as scipy does."""
    for dim in (1, 2):
        length = x.shape[dim] - 2 * RADIUS
        mean = x.narrow(dim, RADIUS, length) * TAPS[RADIUS]
        for i in range(RADIUS):
            pair = x.narrow(dim, i, length) + x.narrow(dim, 2 * RADIUS - i, length)
            mean.add_(pair, alpha=TAPS[i])
        x = mean
    return x


def _gauss11(x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    covariance = gaussian_mean(x * y)
    variances = gaussian_mean(x.mul_(x).add_(y.mul_(y)))
    product = mean_x * mean_y
    squares = (mean_x * mean_x).addcmul_(mean_y, mean_y)
    covariance.sub_(product)
    variances.sub_(squares)
    return _quotient(product, squares, covariance, variances, C1, C2)


def _quotient(product: Tensor, squares: Tensor, covariance: Tensor, variances: Tensor, c1: float, c2: float) -> Tensor:
    """(p + c1/2) (cov + c2/2) / ((q + c1) (var + c2)): a quarter of SSIM, in float64 (exactly 1/4 where x = y)."""
    numerator = product.double().add_(c1 / 2).mul_(covariance.double().add_(c2 / 2))
    denominator = squares.double().add_(c1).mul_(variances.double().add_(c2))
    return numerator.div_(denominator)


WINDOWS: dict[str, _Window] = {
    "uniform7": _Window(7, torch.int16, _sum7, _uniform7),
    "gauss11": _Window(2 * RADIUS + 1, torch.float64, gaussian_mean, _gauss11),
}
