"""One unit of evaluation, and its seeds. Apart from lactok/interface.py, so that data sets are listed without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any


@dataclass(frozen=True)
class Item:
    """One unit of evaluation: an image or a prompt.

    id: stable and unique in its dataset.
    cluster: what it was cut from or belongs to (intervals resample clusters); the id itself where items stand alone.
    content_hash: sha256 hex of what determines it (a file's bytes, a tile's decoded pixels, a prompt's text).
    payload: a prompt's text; "" for an image, whose pixels the dataset reads.
    tags: what metrics need to know of it besides the payload (GenEval's task and objects), plain JSON values.
    metadata: what else is known of it (a caption, a label), plain JSON values, for models that ask for it. It
    identifies neither the item nor its dataset.
    """

    id: str
    cluster: str
    content_hash: str
    payload: str = ""
    tags: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


def item_seed(seed: int, seed_index: int, content_hash: str) -> int:
    """A 63-bit seed of an item's seed_index-th output, from the run's seed and the item's content alone."""
    return int.from_bytes(sha256(f"{seed}/{seed_index}/{content_hash}".encode()).digest()[:8], "big") >> 1


def prompt_hash(prompt: str) -> str:
    """The content hash of a prompt: the same prompt is the same work wherever it stands."""
    return sha256(prompt.encode()).hexdigest()
