"""The three kinds of metric, and the table columns that they fill.

A `Probe` looks at pictures: per-image values come from comparing its views of an original and a reconstruction, and a
probe with features gives one row a picture, from which a `Distance` between the two sets is computed. Values are
float64. Every probe sees the same uint8 pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor


@dataclass(frozen=True)
class Column:
    """One column of a table.

    name: as the field writes it ("PSNR").
    better: which direction is good; "zero" where the figure closest to 0 is best, None where none is.
    digits: decimals shown; note: one line for the report's legend.
    unit: "dB", "%" or ""; values of a "%" column are fractions, 0 to 1, which a report shows times 100.
    """

    name: str
    better: Literal["higher", "lower", "zero"] | None
    digits: int = 3
    unit: str = ""
    note: str = ""


class Probe(ABC):
    """One look at pictures, batched, on one device.

    Class attributes:
        name: as in `metrics=[...]` and in the store's keys.
        version: raise it when the same pictures give other values.
        columns: the per-image columns that `compare` fills; the table shows their mean.
        feature_dim: width of the feature rows that `features` gives, 0 where the probe has none.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[Column, ...]] = ()
    feature_dim: ClassVar[int] = 0

    @abstractmethod
    def view(self, images: Tensor) -> Any:
        """What the probe keeps of pictures, so that one view of the originals serves every reconstruction.

        images: uint8 (B, 3, H, W) on the probe's device. Returns the probe's own record; each row depends on its
        picture alone.
        """

    def compare(self, originals: Any, reconstructions: Any) -> dict[str, Tensor]:
        """Per-image values: column name to float64 (B,), from two views of the same batch; {} without columns.

        It may give values that are no column (PSNR's "MSE"), for figures that are derived from them.
        """
        return {}

    def features(self, view: Any) -> Tensor:
        """Feature rows of a view: float32 (B, feature_dim). Only for probes with feature_dim > 0."""
        raise NotImplementedError(f"probe {self.name} has no features")


class Distance(ABC):
    """A distance between two sets of feature rows of one probe.

    name: as in `metrics=[...]`; probe: the name of the probe whose features it reads; columns: what `compute` gives.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    probe: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]] = ()

    @abstractmethod
    def compute(self, originals: Tensor, reconstructions: Tensor) -> Mapping[str, float]:
        """Column name to value. originals, reconstructions: float32 (N, D) on the CPU, rows in the same order.

        It may give values that are no column (KID's "KID-std"). Raises ValueError where the distance is not defined.
        """

    def interval(
        self, originals: Tensor, reconstructions: Tensor, clusters: Sequence[str]
    ) -> tuple[float | None, float | None]:
        """95 % interval of the first column, by source; (None, None) where none is defined."""
        return None, None

    def replicates(self, originals: Tensor, reconstructions: Tensor, clusters: Sequence[str]) -> list[float] | None:
        """The first column with each group of sources left out, for the jackknife; None where `interval` is no such.

        The replicates of several decodings of the same images are averaged one by one: the interval of their mean.
        """
        return None

    def note(self, count: int) -> str:
        """What a reader must know of this figure at this number of pictures; "" when nothing."""
        return ""
