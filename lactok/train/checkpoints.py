"""Training checkpoints on disk: written to a partial folder, renamed into place, the last two kept.

Each lists its files with their sha256, so that one which was cut short later, by a full disk or a copy, is not resumed
from.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from lactok.files import explained, write_synced
from lactok.weights import sha256_of

KEPT = 2
FULL = 2**20
"""Bytes: a disk with fewer free ones is full."""
LISTING = "files.json"
"""In each checkpoint: path below it to sha256 hex, of all its other files."""
PARTIAL, REMOVED, JOINT = ".partial-", ".removed-", ".joint"
"""How the names of folders begin that are no checkpoints yet, or none any more; JOINT: what several ranks write."""


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
        partial = self.root / f"{PARTIAL}{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        with written(partial):
            partial.mkdir(parents=True)
            write(partial)
            self._list(partial)
            if not target.exists():
                os.rename(partial, target)
                _sync(self.root)
        if partial.exists():  # the same step saved again, at the end of a run say: the first one is as good
            shutil.rmtree(partial)
            return target
        for old in self.all()[:-KEPT]:
            self._remove(old)
        return target

    def _list(self, partial: Path) -> None:
        """Write LISTING, and wait until all is on disk."""
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        for file in files:
            _sync(file)
        listing = {file.relative_to(partial).as_posix(): sha256_of(file) for file in files}
        write_synced(partial / LISTING, (json.dumps(listing, indent=2) + "\n").encode())
        _sync(partial)

    def clean(self) -> None:
        """Remove what a killed process left half written or half removed; what others put there (.DS_Store) stays."""
        for leftover in [path for pattern in (PARTIAL, REMOVED, JOINT) for path in self.root.glob(f"{pattern}*")]:
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)

    def _remove(self, old: Path) -> None:
        doomed = old.with_name(f"{REMOVED}{old.name}")  # never a half-removed folder under a checkpoint's name
        os.rename(old, doomed)
        shutil.rmtree(doomed)


@contextlib.contextmanager
def written(partial: Path) -> Iterator[None]:
    """Turns what writing a checkpoint's files raises (torch and safetensors have errors of their own for a full disk)
    into a WriteError, and removes what was written."""
    try:
        with explained(partial):
            try:
                yield
            except (RuntimeError, SafetensorError) as error:
                if (reason := _write_failure(partial, error)) is None:
                    raise
                raise reason from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_failure(partial: Path, error: Exception) -> OSError | None:
    """What the file system said, or None for an error of another kind."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
        return None
    full = partial.is_dir() and shutil.disk_usage(partial).free < FULL  # torch does not say why
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else OSError(errno.EIO, str(error))


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
