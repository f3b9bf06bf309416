"""Training checkpoints on disk: written beside, renamed into place, the last two kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

KEPT = 2


class CheckpointFolder:
    """`<run>/checkpoints/step-00001234/`, each complete: a folder gets its name only when all of it is on disk."""

    def __init__(self, run: Path) -> None:
        self.root = run / "checkpoints"

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if re.fullmatch(r"step-\d{8}", p.name))

    def last(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        found = self.all()
        return found[-1] if found else None

    def save(self, step: int, write: Callable[[Path], object]) -> Path:
        """Let `write` fill a folder, then rename it into place and drop all but the last two."""
        target = self.root / f"step-{step:08d}"
        partial = self.root / f".partial-{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        _sync(partial)
        if target.exists():  # the same step saved again, at the end of a run say: the first one is as good
            shutil.rmtree(partial)
            return target
        os.rename(partial, target)
        _sync(self.root)
        for old in self.all()[:-KEPT]:
            self._remove(old)
        return target

    def clean(self) -> None:
        """Remove what a killed process left half written or half removed."""
        for leftover in self.root.glob(".*"):
            shutil.rmtree(leftover)

    def _remove(self, old: Path) -> None:
        doomed = old.with_name(f".removed-{old.name}")  # never a half-removed folder under a checkpoint's name
        os.rename(old, doomed)
        shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
