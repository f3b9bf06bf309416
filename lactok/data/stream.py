"""Images read and decoded when a sample asks for them: nothing of a large set is held, in memory or decoded on disk.

What a packed image is (lactok/data/pack.py) is what is made here each time, so both give the same samples.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from lactok.data.folder import DataError, decoded, name_rank, unreadable
from lactok.data.held_out import held_out_name
from lactok.data.pack import evaluated, shrink
from lactok.data.sources import ImageFiles
from lactok.files import append_line, write_atomically
from lactok.images.decode import VERSION, ImageError
from lactok.progress import Meter

OnBad = Literal["stop", "skip"]
CHECKED, BAD = "checked.json", "unreadable.jsonl"
"""Which sets were looked through before training; which images could not be read, a line each (perhaps several times,
as processes and epochs meet them)."""
_MOST_BAD = 0.01
"""Share of unreadable images among those that a process has read, above which it stops."""
_FEW = 10
"""So many unreadable images stop nothing, and are shown."""
_BLOCK = 4096
"""Images that are looked at by one call of the threads."""


class StreamedImages:
    """The images of several roots, one after the other: `images[i]` is uint8 (H, W, 3) RGB, decoded now.

    side: as in `open_pack`. on_bad: what is done about an image that can't be read: "stop", or "skip", where another
    one takes its place. folder: where `BAD` is written.
    """

    of_what = "sha256 of the images' names and sizes in bytes, and of some of their content"

    def __init__(
        self, files: Sequence[ImageFiles], side: int, folder: Path, on_bad: OnBad = "stop", check_held_out: bool = True
    ) -> None:
        self.files, self.side, self.folder, self.on_bad = list(files), side, folder, on_bad
        self.counts = [len(of) for of in files]
        self._ends = np.cumsum(self.counts)
        self._check = check_held_out
        self._read = 0
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def ranks(self) -> np.ndarray:
        """uint64 (N,), see `name_rank`; those of several roots as a pack's names have them."""
        if len(self.files) == 1:
            return self.files[0].ranks
        return np.concatenate([_prefixed(place, of) for place, of in enumerate(self.files)])

    @property
    def fingerprint(self) -> str:
        """sha256 hex over those of the roots. Raises DataError."""
        return sha256(json.dumps([of.fingerprint for of in self.files]).encode()).hexdigest()

    def __getitem__(self, i: int) -> np.ndarray:
        files, own = self._place(i)
        self._read += 1
        try:
            data = files.read(own)
            pixels = decoded(data)
        except ImageError as error:
            self._note(i, ImageError(files.label(own), error.reason))
            raise
        if self._check and (name := held_out_name(sha256(data).hexdigest(), pixels)):
            raise evaluated([f"  {files.label(own)}: is {name} of scikit-image"])
        return shrink(pixels, self.side)

    def _place(self, i: int) -> tuple[ImageFiles, int]:
        place = int(np.searchsorted(self._ends, i, side="right"))
        return self.files[place], i - (int(self._ends[place - 1]) if place else 0)

    def _note(self, i: int, error: ImageError) -> None:
        """Write down an image that can't be read. Raises DataError where that is not to be done without."""
        if self.on_bad == "stop":
            raise DataError(f"{error}\nGet it again, or train without such images by data.on_bad_image=skip")
        if i in self._bad:
            return
        self._bad.add(i)
        line = json.dumps({"image": error.path, "reason": error.reason}) + "\n"
        append_line(self.folder / BAD, line.encode())
        if len(self._bad) <= _FEW:
            more = f"; more of them are in {self.folder / BAD} alone" if len(self._bad) == _FEW else ""
            print(f"warning: {error}; another image takes its place{more}", file=sys.stderr)
        elif len(self._bad) > _MOST_BAD * self._read:
            raise DataError(
                f"{len(self._bad):,} of {self._read:,} images that this process read can't be read (all are listed in "
                f"{self.folder / BAD}), expected at most {_MOST_BAD:.0%}: get the data again"
            )

    def check(self) -> None:
        """Decode each image once, unless that was done before, or by what made the shards.

        Raises DataError that lists all that can't be read and all that belong to the evaluation set, WriteError.
        """
        done = _checked(self.folder)
        for of in self.files:
            key = sha256("\n".join([_rules(self._check), *of.stamps()]).encode()).hexdigest()
            if of.trusted or key in done:
                continue
            _look_through(of, self._check)
            done.append(key)
            write_atomically(self.folder / CHECKED, json.dumps(done).encode())
        self._check &= any(of.trusted for of in self.files)  # of the others, none is the evaluation's

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_read": 0, "_bad": set()}


def _rules(check_held_out: bool) -> str:
    return f"{VERSION} {PIL.__version__} {check_held_out}"


def _checked(folder: Path) -> list[str]:
    try:
        found = json.loads((folder / CHECKED).read_bytes())
        return found if isinstance(found, list) else []
    except (OSError, ValueError):
        return []


def _look_through(files: ImageFiles, check_held_out: bool) -> None:
    bad: list[ImageError] = []
    refused: list[str] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, Meter(len(files), "checking images") as meter:
        for start in range(0, len(files), _BLOCK):
            numbers = range(start, min(start + _BLOCK, len(files)))
            for i, why in zip(numbers, pool.map(lambda i: _why_not(files, i, check_held_out), numbers)):
                if isinstance(why, ImageError):
                    bad.append(ImageError(files.label(i), why.reason))
                elif why:
                    refused.append(f"  {files.label(i)}: {why}")
                meter.advance()
    if bad:
        error = unreadable(bad)
        raise DataError(f"{error}, or train without them by data.on_bad_image=skip")
    if refused:
        raise evaluated(refused)


def _why_not(files: ImageFiles, i: int, check_held_out: bool) -> ImageError | str:
    try:
        data = files.read(i)
        pixels = decoded(data)
    except ImageError as error:
        return error
    name = held_out_name(sha256(data).hexdigest(), pixels) if check_held_out else None
    return f"is {name} of scikit-image" if name else ""


def _prefixed(place: int, files: ImageFiles) -> np.ndarray:
    return np.array([name_rank(f"{place}/{files.name(i)}") for i in range(len(files))], np.uint64)
