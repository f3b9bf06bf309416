"""Training checkpoints on disk: written to a partial folder, renamed into place, the last two kept.

Each lists its files with their sha256, so that one which was cut short later, by a full disk or a copy, is not resumed
from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lactok.files import write_synced
from lactok.weights import sha256_of

KEPT = 2
LISTING = "files.json"
"""In each checkpoint: path below it to sha256 hex, of all its other files."""


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that is not as it was written, and what is wrong with it."""

    path: Path
    reason: str


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

    def damaged(self) -> list[Damaged]:
        """Those newer than the newest one whose files are as they were written, the newest first."""
        found = []
        for path in reversed(self.all()):
            if not (reason := _damage(path)):
                break
            found.append(Damaged(path, reason))
        return found

    def set_aside(self, checkpoint: Path) -> Path:
        """Rename a damaged checkpoint, so that it is none any more; returns its new path."""
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(checkpoint, aside)
        return aside

    def save(self, step: int, write: Callable[[Path], object]) -> Path:
        """Let `write` fill a folder, then rename it into place and drop all but the last two."""
        target = self.root / f"step-{step:08d}"
        partial = self.root / f".partial-{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        for file in files:
            _sync(file)
        listing = {file.relative_to(partial).as_posix(): sha256_of(file) for file in files}
        write_synced(partial / LISTING, (json.dumps(listing, indent=2) + "\n").encode())
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


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files; "" for nothing."""
    try:
        listing = json.loads((checkpoint / LISTING).read_bytes())
        for name, expected in listing.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if sha256_of(checkpoint / name) != expected:
                return f"{name} ({(checkpoint / name).stat().st_size:,} bytes) is not as it was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{LISTING} can't be read: {error}"
    return ""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
