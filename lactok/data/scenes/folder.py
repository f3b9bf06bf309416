"""Scenes as a folder of PNG files with captions, made whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from lactok.data.folder import DataError
from lactok.data.held_out import pixels_sha256
from lactok.data.scenes.combinations import Split
from lactok.data.scenes.render import Scene, checked_size, scene
from lactok.data.scenes.vocabulary import Style
from lactok.files import explained

CAPTIONS = "captions.jsonl"


def write_folder(
    folder: str | os.PathLike,
    count: int,
    seed: int = 0,
    size: int | tuple[int, int] = 128,
    split: Split = Split.TRAIN,
    done: Callable[[int], None] = lambda _: None,
    style: Style = Style.VARIED,
) -> Path:
    """Writes scenes 0 to count - 1 as `000000.png` ... and `captions.jsonl`; returns the folder.

    All is made in a folder beside it, which gets its name when it is complete. A line of captions.jsonl has file,
    caption, GenEval's metadata (prompt is the short form), objects, background, seed, index, split, style and the
    sha256 of the pixels as `lactok.data.held_out.pixels_sha256` takes it (a PNG's own bytes depend on the zlib that
    wrote them).
    done: told how many are written. Raises ValueError for wrong numbers, DataError when the folder exists and is not
    empty, WriteError when it can't be written.
    """
    if count < 1:
        raise ValueError(f"count={count}: expected at least 1")
    checked_size(size)
    target = Path(folder).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} exists and is not an empty folder: remove it, or name another by out=DIR")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with explained(target):
            temporary.mkdir(parents=True)
            with open(temporary / CAPTIONS, "w", encoding="utf-8") as lines:
                for index in range(count):
                    made = scene(seed, index, size, split, style)
                    name = f"{index:06d}.png"
                    Image.fromarray(made.image).save(temporary / name, compress_level=1)
                    lines.write(json.dumps(_line(name, made, seed, index, Split(split), Style(style))) + "\n")
                    done(index + 1)
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _line(name: str, made: Scene, seed: int, index: int, split: Split, style: Style) -> dict:
    return {
        "file": name,
        "caption": made.caption,
        **made.metadata,
        "objects": [asdict(thing) for thing in made.objects],
        "background": str(made.background),
        "seed": seed,
        "index": index,
        "split": str(split),
        "style": str(style),
        "pixels_sha256": pixels_sha256(made.image),
    }
