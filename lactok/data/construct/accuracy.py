"""How much of what the miniature planted was found, and how much else was taken for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lactok.data.construct import units
from lactok.data.construct.inspection import LEAK


@dataclass
class Found:
    """planted: of the kind, where the check saw them; found: of these; false: others that were dropped as such, of
    `clean` that were not planted."""

    planted: int = 0
    found: int = 0
    false: int = 0
    clean: int = 0

    @property
    def recall(self) -> float | None:
        return self.found / self.planted if self.planted else None

    @property
    def false_rate(self) -> float | None:
        return self.false / self.clean if self.clean else None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "recall": self.recall, "false_rate": self.false_rate}


def of_plants(out: Path, total: int, dropped: Mapping[int, tuple[str, int]]) -> dict[str, Found]:
    """Duplicates and leaks of a miniature. total: units; dropped: what de-duplication dropped.

    A duplicate counts where it came as far as the comparison: its own score may have dropped it before, or that of the
    image that it copies (which leaves nothing to be found); it is found when it is dropped, or its original is.
    """
    made = {"duplicates": Found(), "leaks": Found()}
    kept: dict[int, str] = {}
    for table in units.rows(out, range(total), ["index", "reason", "planted"]):
        for row in table.to_pylist():
            is_leak, reason = row["planted"].startswith("leaks"), row["reason"]
            if not reason or reason.startswith(LEAK):
                leaks = made["leaks"]
                leaks.planted += is_leak
                leaks.found += is_leak and bool(reason)
                leaks.clean += not is_leak
                leaks.false += not is_leak and bool(reason)
            if not reason:
                kept[row["index"]] = row["planted"]
    duplicates = made["duplicates"]
    seen: dict[int, list[int]] = {}
    for index, planted in sorted(kept.items()):
        if planted.startswith("duplicates"):
            match = re.search(r"of (\d+)$", planted)
            original = int(match[1]) if match else -1
            seen.setdefault(original, [original] if original in kept else []).append(index)
    copies = {index for group in seen.values() for index in group[1:]}
    duplicates.planted = len(copies)
    duplicates.found = sum(index in dropped for index in copies)
    others = [index for index in kept if index not in copies]
    duplicates.clean = len(others)
    duplicates.false = sum(index in dropped and not dropped[index][0].endswith("caption") for index in others)
    return made
