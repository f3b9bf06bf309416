"""`limit=N`: which N samples of a list a limited run takes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from evals.datasets.base import DatasetError


def spread(ids: Sequence[str], limit: int | None) -> list[str]:
    """The first `limit` of `ids` in a fixed pseudo-random order, then listed in the order of `ids`; None: all.

    The order is that of sha256 over the id, so a sample's place depends on nothing but its id, a larger limit only
    adds samples, and a limited run spreads over the sources. Raises DatasetError for a limit below 1.
    """
    if limit is None:
        return list(ids)
    if limit < 1:
        raise DatasetError(f"limit={limit}: expected a whole number of at least 1, or nothing for all pictures")
    taken = set(sorted(ids, key=lambda i: sha256(f"lactok limit\n{i}".encode()).digest())[:limit])
    return [i for i in ids if i in taken]
