"""The image files of a folder, searched recursively; any file name will do.

Files are taken by their ending (those of the formats that are decoded, in upper or lower case), or as the caller says;
other files and hidden ones (name or folder beginning with a dot) are left aside and counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lactok.images.decode import ImageError, has_image_ending

_ESCAPE = re.compile(r"\\x[0-9a-f]{2}")


@dataclass
class Listing:
    """What a folder holds. images: `identifier` of the path below the folder, to the path, in no order; aside: files
    that are not taken, counted by ending (or "hidden"); unlisted: folders that can't be listed."""

    images: dict[str, Path] = field(default_factory=dict)
    aside: Counter[str] = field(default_factory=Counter)
    unlisted: list[ImageError] = field(default_factory=list)

    @property
    def aside_counts(self) -> str:
        """The files that are left aside, the most frequent endings first: "2 .txt, 1 hidden"."""
        return counted_endings(self.aside)


def counted_endings(counts: Mapping[str, int]) -> str:
    """Kinds of files and their numbers, the most frequent first."""
    kinds = sorted(counts.items(), key=lambda k: (-k[1], k[0]))
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds[:8]) + (", ..." if len(kinds) > 8 else "")


def ending(name: str) -> str:
    """What a file is counted by: its ending in lower case, or that it has none."""
    return os.path.splitext(name)[1].lower() or "without an ending"


def by_ending(path: Path) -> bool:
    """Whether a file's name is an image's."""
    return has_image_ending(path.name)


def list_folder(folder: Path, takes: Callable[[Path], bool] = by_ending) -> Listing:
    """Every file below `folder`. takes: whether a file (or a broken link) counts as an image.

    A folder that is reached twice, through links, is listed once: by its real path if it lies inside, else by the
    first link in order. A pipe or a device is never an image.
    """
    listing = Listing()
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    links: list[Path] = []
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        try:
            stat = here.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(here) as scan:
                entries = sorted(scan, key=lambda e: e.name)
        except OSError as error:
            listing.unlisted.append(ImageError(printable(here), f"folder can't be listed: {error.strerror or error}"))
            continue
        for entry in entries:
            path = here / entry.name
            if entry.name.startswith("."):
                listing.aside["hidden"] += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(path)
            elif _is_file(entry) and takes(path):
                listing.images[identifier(path.relative_to(folder))] = path
            else:
                listing.aside[ending(path.name)] += 1
    return listing


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry) -> bool:
    """A file, or a broken link."""
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def printable(path: Path) -> str:
    """The path as text that can be written anywhere: bytes that are no UTF-8 become backslash escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def identifier(path: Path) -> str:
    """The path as `printable` text that no other path has.

    Where the text holds an escape, backslashes of the name itself are doubled: a name that spells an escape is another
    than one that has that byte.
    """
    text = printable(path)
    if _ESCAPE.search(text):
        text = os.fsencode(path.as_posix()).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text
