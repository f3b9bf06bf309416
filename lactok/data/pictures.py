"""A folder's pictures: which files they are, and how one is decoded to RGB uint8."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class DataError(Exception):
    """Training data can't be used; the message says what was looked for, where, and the way out."""


@dataclass(frozen=True)
class Unreadable:
    """A file that should be a picture and can't be read, and why."""

    path: str
    reason: str


def unreadable_error(bad: list[Unreadable]) -> DataError:
    """One error that lists every unreadable picture."""
    lines = "\n".join(f"  {b.path}: {b.reason}" for b in bad)
    return DataError(f"{len(bad)} picture(s) can't be read:\n{lines}\nRepair or remove them, then run again")


def list_pictures(root: str | os.PathLike) -> list[Path]:
    """All pictures below `root`, whatever their names, ordered by relative path; hidden files and folders left out.

    A file counts when its suffix is a picture's (even if it turns out unreadable) or its content is.
    Raises DataError when `root` is no folder or holds none.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.root={root}: no such folder; name a folder of pictures")
    suffixes = set(Image.registered_extensions())
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder)))
    found = [p for p in files if p.suffix.lower() in suffixes or _looks_like_picture(p)]
    if not found:
        raise DataError(
            f"data.root={root}: no picture among the {len(files)} file(s) in it and its folders; "
            "name a folder of JPEG, PNG, WebP or other pictures"
        )
    return found


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _looks_like_picture(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return False


def decode(path: str | os.PathLike) -> np.ndarray:
    """The picture as uint8 (H, W, 3) RGB: EXIF orientation applied, 16-bit scaled, alpha over white, first frame.

    Raises ValueError with the reason when it can't be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's decoders raise all three on damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow's convert would clip instead of scale
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
