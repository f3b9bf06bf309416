"""What passes between the stages of a build: items, in units of work.

A unit is a fixed run of items of the sources. It is what is done or not done: its result is one file, and depends on
the settings and its items alone, whatever was killed meanwhile.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lactok.images.decode import ImageError, decode

KEY_DIGITS = 9


@dataclass
class WorkItem:
    """One item on its way from a source to a shard.

    index: its place in all sources, from 0. source_id: what the source calls it. image: bytes of an image file, b""
    before there is one; format: "png", "jpg" or "webp". seed: of the noise that it was made from, None for an image
    that was not made here. scores: by judge. reason: why it is dropped, one fixed text a kind, "" while it is kept;
    detail: what was seen. prints: of `lactok.data.construct.prints`. planted: of a miniature, what was done to it.
    """

    index: int
    source: str
    source_id: str
    raw_caption: str = ""
    image: bytes = b""
    format: str = ""
    width: int = 0
    height: int = 0
    pixels_sha256: str = ""
    seed: int | None = None
    caption: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""
    signature: bytes = b""
    thumbnail: bytes = b""
    preview: bytes = b""
    planted: str = ""

    @property
    def key(self) -> str:
        return key_of(self.index)

    def drop(self, reason: str, detail: str = "") -> None:
        """It is no longer worked on, for that reason; the first one counts."""
        if not self.reason:
            self.reason, self.detail = reason, detail[:200]

    def decoded(self) -> np.ndarray | None:
        """Its image's pixels, uint8 (H, W, 3); None where it can't be decoded, for which it is dropped."""
        try:
            return decode(self.image).pixels
        except ImageError as error:
            self.drop("image can't be decoded", error.reason)
            return None


@dataclass
class Work:
    """One stage's work on a unit: how many items it took and gave, and how long that took.

    device: what it ran on; seconds: of wall time; gpu_busy: percent, as the driver reports it; None without a GPU.
    """

    stage: str
    items_in: int
    items_out: int
    seconds: float
    device: str = "cpu"
    gpu_busy: float | None = None
    gpu_bytes: int | None = None


@dataclass
class Unit:
    """number: its place among the units, from 0; works: of the stages so far."""

    number: int
    items: list[WorkItem]
    works: list[Work] = field(default_factory=list)

    def alive(self) -> list[WorkItem]:
        """The items that are still kept."""
        return [item for item in self.items if not item.reason]


def key_of(index: int) -> str:
    """The name of an item's files in a shard."""
    return f"{index:0{KEY_DIGITS}d}"


def packed(unit: Unit) -> dict[str, np.ndarray]:
    """A unit as a batch of one row, which Ray can neither split nor merge with another's items."""
    content = np.empty(1, dtype=object)
    content[0] = pickle.dumps(unit, protocol=5)
    return {"unit": np.array([unit.number], dtype=np.int64), "content": content}


def unpacked(batch: Mapping[str, Any]) -> Unit:
    """The unit of a batch of `packed`."""
    if len(batch["content"]) != 1:
        raise ValueError(f"a batch of {len(batch['content'])} units: expected 1")
    return pickle.loads(batch["content"][0])
