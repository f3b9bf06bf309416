"""Exact accounting: every item of the sources is kept, or dropped for one reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


class BooksDoNotBalance(Exception):
    """Items are lost or counted twice; the message has the figures."""


@dataclass
class Books:
    """items: of the sources; kept: in the shards; dropped: by reason."""

    items: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def require_balance(self) -> None:
        """Raises BooksDoNotBalance unless items = kept + dropped."""
        lost = sum(self.dropped.values())
        if self.items != self.kept + lost:
            raise BooksDoNotBalance(
                f"{self.items:,} items came in, {self.kept:,} are kept and {lost:,} dropped: "
                f"{self.items - self.kept - lost:,} are not accounted for. The shards are not declared finished: "
                "delete the build's work folder and run again"
            )

    def as_json(self) -> dict[str, Any]:
        return {"in": self.items, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}
