"""The images below data.root, and what is said of those that can't be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from lactok.images.decode import Decoding, ImageError, decode, holds_image
from lactok.images.folder import by_ending, list_folder, printable


class DataError(Exception):
    """Training data can't be used; the message says what was looked for, where, and the way out."""


def unreadable(bad: Sequence[ImageError]) -> DataError:
    """One error that lists every image that can't be read."""
    lines = "\n".join(f"  {error}" for error in bad)
    return DataError(f"{len(bad)} image(s) can't be read:\n{lines}\nRepair or remove them, then run again")


def decoded(data: bytes) -> np.ndarray:
    """An image file's pixels, uint8 (H, W, 3) RGB, as `lactok.images.decode.decode` gives them. Raises ImageError."""
    return decode(data, Decoding(larger="reduce it")).pixels


def list_images(root: str | os.PathLike) -> dict[str, Path]:
    """All images below `root`, folder by folder: name (`lactok.images.folder.identifier` of the path below it) to path.

    A file counts when its ending is an image's (even if it turns out unreadable) or its content is. Raises DataError
    when `root` is no folder or holds none, or when a folder in it can't be listed.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.root={root}: no such folder; name a folder of images")
    listing = list_folder(folder, lambda path: by_ending(path) or holds_image(path))
    if listing.unlisted:
        raise unreadable(listing.unlisted)
    if not listing.images:
        found = f" ({listing.aside_counts})" if listing.aside else ""
        raise DataError(
            f"data.root={printable(folder)}: no image among the {listing.aside.total()} file(s) in it and its "
            f"folders{found}; name a folder of JPEG, PNG, WebP or other images"
        )
    # as Path sorts: a folder's files stand together, whatever its name; the order determines what is drawn
    return dict(sorted(listing.images.items(), key=lambda item: item[0].split("/")))


def name_rank(name: str) -> int:
    """64 bits, the first of the sha256 of an image's name: the order in which images are held back for validation."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big")
