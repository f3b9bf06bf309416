"""The three kinds of metric, and the table columns that they fill. Register a class under the entry-point group
`lactok.metrics`.

An `ImageMetric` scores images one by one, with or without a reference; one with features gives a row an image, from
which a `SetMetric` is computed between two sets. A `TokenMetric` reads a tokenizer's tokens. Every metric sees the same
uint8 images. Values are float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from evals.metrics.intervals import Interval
from lactok import registry
from lactok.interface import Item, TokenizerInfo, Tokens
from lactok.weights import WeightsSource


@dataclass(frozen=True)
class Column:
    """One column of a table.

    name: as the field writes it ("PSNR").
    better: which direction is good; "zero" where the figure closest to 0 is best, None where none is.
    digits: decimals shown; note: one line for the report's legend.
    unit: "dB", "%" or ""; values of a "%" column are fractions, 0 to 1, which a report shows times 100.
    mean: whether the figure is the mean of per-image values; False: `ImageMetric.summarise` makes it.
    shown: whether the short table on the terminal has it; reports and table.csv have all.
    blind_to: the controls of evals/metrics/controls.py to which the figure does not react; it gets worse by all others.
    """

    name: str
    better: Literal["higher", "lower", "zero"] | None
    digits: int = 3
    unit: str = ""
    note: str = ""
    mean: bool = True
    shown: bool = True
    blind_to: tuple[str, ...] = ()


class Metric(ABC):
    """What every metric has.

    Class attributes:
        name: as in `metrics=[...]` and in the cache's keys.
        summary: one line for `python -m evals list`.
        version: raise it when the same inputs give other values.
        columns: the columns that it fills, in the table's order.
        shares_network_with: losses (TrainingCompute.losses) of the same network: a model trained on one gets a note
            beside its figures.
        protocol_fields: fields of the task's protocol on which its values depend; `build` is given their values.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[Column, ...]] = ()
    shares_network_with: ClassVar[tuple[str, ...]] = ()
    protocol_fields: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        """The files of the networks that it scores with; () where it has none."""
        return ()

    @classmethod
    def backend(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What else determines its values under these settings, for keys, as plain JSON; {} where its code and weights
        are all. settings: the values of `protocol_fields`. Raises lactok.weights.WeightsError for what is not here."""
        return {}


class ImageMetric(Metric):
    """Scores images, batched, on one device. An image's values depend on that image, its item and its reference alone.

    feature_dim: width of the feature rows that `features` gives, 0 where there are none.
    needs_reference: whether `score` compares with a reference image; False for judges that read the item's prompt.
    """

    feature_dim: ClassVar[int] = 0
    needs_reference: ClassVar[bool] = True

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> ImageMetric:
        """A ready metric, its network loaded on `device`. settings: the values of `protocol_fields`.

        Raises lactok.weights.MissingWeights.
        """
        return cls()

    @abstractmethod
    def embed(self, images: Tensor, items: Sequence[Item]) -> Any:
        """What the metric keeps of a batch, so that a network runs once an image; a reference's embedding serves every
        model. images: uint8 (B, 3, H, W) on the metric's device."""

    def score(self, reference: Any, embedding: Any, items: Sequence[Item]) -> Mapping[str, Tensor]:
        """Per-image values: name to float64 (B,). reference: the embedding of the reference images of the same items,
        None where `needs_reference` is False. Names that are no column (PSNR's "MSE") are kept for `summarise`.

        Raises ValueError for images that the metric is not defined on.
        """
        return {}

    def reasons(self, embedding: Any) -> Sequence[Sequence[str]] | None:
        """Why each of the B images is scored as it is, lines of text an image (of a judge); None: nothing is told.

        They are kept beside the values, and report.html shows them.
        """
        return None

    def features(self, embedding: Any) -> Tensor:
        """Feature rows: float32 (B, feature_dim). Only for metrics with feature_dim > 0."""
        raise NotImplementedError(f"metric {self.name} has no features")

    @classmethod
    def summarise(cls, values: Mapping[str, np.ndarray], items: Sequence[Item]) -> Mapping[str, float]:
        """The figures of the columns whose `mean` is False; their intervals resample clusters through this function.

        values: what `score` gave, name to float64 (S, N), S seed indices of N items. Columns with `mean` are averaged
        by the engine: over seed indices, then over the items whose value is finite. NaN stands for a figure that these
        items do not define (a task without a prompt): its cell is empty. All names are given for every choice of items.
        """
        return {}


class SetMetric(Metric):
    """A distance between two sets of feature rows of one image metric.

    features_of: the name of the image metric whose features it reads.
    paired: whether row i of both sets belongs to item i (the mean over seed indices is reported); False: all seed
        indices are pooled against the reference set.
    """

    features_of: ClassVar[str]
    paired: ClassVar[bool] = True

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        """Those of the image metric whose features it reads."""
        return registry.load("metrics", cls.features_of).weights()

    @abstractmethod
    def compute(self, features: Tensor, reference_features: Tensor) -> Mapping[str, float]:
        """Column name to value. float32 (N, D) each, on the CPU. Names that are no column (KID's "KID-std") are kept.

        Raises ValueError where the distance is not defined.
        """

    def interval(self, features: Sequence[Tensor], reference_features: Tensor, clusters: Sequence[str]) -> Interval:
        """95 % interval of the first column's mean over seed indices, by cluster; (None, None) where none is defined.

        features: one (N, D) a seed index.
        """
        return None, None

    def replicates(self, originals: Tensor, reconstructions: Tensor, clusters: Sequence[str]) -> list[float] | None:
        """The first column with each group of sources left out, for the jackknife; None where `interval` is no such.

        The replicates of several decodings of the same images are averaged one by one: the interval of their mean.
        """
        return None

    def note(self, count: int) -> str:
        """What a reader must know of this figure at this number of images; "" when nothing."""
        return ""


class TokenMetric(Metric):
    """Figures of a tokenizer's tokens over the whole dataset."""

    @abstractmethod
    def compute(self, tokens: Tokens, info: TokenizerInfo) -> Mapping[str, float]:
        """Column name to value. tokens: all items', on the CPU. Raises ValueError where it is not defined."""


def require_side(images: Tensor, smallest: int, metric: str) -> None:
    """Raises ValueError when images (B, 3, H, W) have a side under `smallest` pixels, the least that `metric` takes."""
    height, width = images.shape[-2:]
    if min(height, width) < smallest:
        raise ValueError(f"images of {height}x{width} pixels; {metric} needs {smallest}x{smallest} or more")
