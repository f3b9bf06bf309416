"""What tests of metrics share: items for a batch, and the values of a pair of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from evals.metrics.base import ImageMetric
from lactok.interface import Item


def items(count: int) -> list[Item]:
    """`count` images' items, each in a cluster of its own."""
    return [Item(f"image {i}", f"image {i}", f"{i:064x}") for i in range(count)]


def embed(metric: ImageMetric, images: Tensor) -> Any:
    return metric.embed(images, items(len(images)))


def scores(metric: ImageMetric, reference: Tensor, images: Tensor) -> Mapping[str, Tensor]:
    """All values of `images` against `reference`, uint8 (B, 3, H, W) each."""
    return metric.score(embed(metric, reference), embed(metric, images), items(len(images)))
