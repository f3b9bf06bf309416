"""Random integers that are the same on every machine and with every version of every library: SHA-256 and SHAKE-256."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256, shake_256
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """A stream of integers that is a function of `key` alone: the k-th comes from sha256("key/k")."""

    def __init__(self, key: str) -> None:
        self._key, self._count = key, 0

    def below(self, n: int) -> int:
        """An integer of 0 to n - 1; its bias is below n / 2^64. Raises ValueError for n < 1."""
        if n < 1:
            raise ValueError(f"no integer is drawn from 0 to {n - 1}: n={n}, expected at least 1")
        digest = sha256(f"{self._key}/{self._count}".encode()).digest()
        self._count += 1
        return int.from_bytes(digest[:8], "big") % n

    def between(self, low: int, high: int) -> int:
        """An integer of low to high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def two(self, values: Sequence[T]) -> tuple[T, T]:
        """Two values at different places, in drawn order."""
        first = self.below(len(values))
        second = self.below(len(values) - 1)
        return values[first], values[second + (second >= first)]

    def octets(self, n: int) -> np.ndarray:
        """uint8 (n,), uniform, from SHAKE-256."""
        data = shake_256(f"{self._key}/{self._count}".encode()).digest(n)
        self._count += 1
        return np.frombuffer(data, np.uint8)
