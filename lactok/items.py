"""One unit of evaluation. Apart from lactok/interface.py, so that data sets are listed and checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One unit of evaluation: an image or a prompt.

    id: stable and unique in its dataset.
    cluster: what it was cut from or belongs to (intervals resample clusters); the id itself where items stand alone.
    content_hash: sha256 hex of what determines it (a file's bytes, a tile's decoded pixels, a prompt's text).
    payload: a prompt's text; "" for an image, whose pixels the dataset reads.
    tags: what metrics need to know of it beside the payload (GenEval's task and objects), plain JSON values.
    """

    id: str
    cluster: str
    content_hash: str
    payload: str = ""
    tags: Mapping[str, Any] = field(default_factory=dict)
