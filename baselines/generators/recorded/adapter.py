"""Images that another system made of the prompts, evaluated as they are: any size, format and mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from baselines.generators.recorded.layout import Layout, read_layout
from lactok.images.decode import MAX_PIXELS, Decoding, ImageError, decode
from lactok.images.pairing import split_name
from lactok.interface import Item, ItemsRefused, Recorded, RecordedInfo
from lactok.weights import LocalFiles, WeightsSource


@dataclass
class ImageFolderOptions:
    """Which images.

    root: a folder in GenEval's layout, or a table of prompts and files (baselines/generators/recorded/layout.py);
    NAME=ROOT names the row.
    missing: "stop" with the list of all files that are missing, or "refuse" their prompts, which are then counted and
    not scored, as are prompts that root does not have. max_pixels: images with more are refused.
    """

    root: str | None = None
    missing: Literal["stop", "refuse"] = "stop"
    max_pixels: int = MAX_PIXELS


class ImageFolder(Recorded):
    """The images of options.root. `seeds=K` takes the first K of each prompt, where root has several.

    Files are decoded as a dataset's are (lactok/images/decode.py): upright, alpha over white, 16 bits to 8.
    """

    Options: ClassVar[type] = ImageFolderOptions
    path_options = ("root",)
    scale = "none"  # it has nothing to show without a root
    code_licence = "Apache-2.0"
    weights_licence = "that of the images"

    def __init__(self, options: Any, device: torch.device) -> None:
        """Raises WeightsError for a root that is none."""
        super().__init__(options, device)
        self.layout = _layout(options)

    @classmethod
    def label(cls, options: Any) -> str | None:
        """NAME of root=NAME=DIR."""
        return None if options.root is None else split_name(options.root)[0]

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """All files as one: those that say which images there are, and the images."""
        name = "name them by options.NAME.root=DIR (GenEval's layout) or FILE (.csv, .json, .jsonl)"
        if options.root is None:
            return (LocalFiles("images that another system made", "", (), name),)
        layout = _layout(options)
        images = [path for files in layout.images.values() for path in files]
        if options.missing == "refuse":
            images = [path for path in images if path.is_file()]
        files = tuple(map(str, [*layout.read, *dict.fromkeys(images)]))
        otherwise = "add them, or leave out their prompts by options.NAME.missing=refuse:"
        return (LocalFiles(f"images of {options.root}", str(layout.folder), files, otherwise),)

    @property
    def info(self) -> RecordedInfo:
        return RecordedInfo("recorded", deterministic=self.layout.most <= 1)

    def images(self, items: Sequence[Item], seed_indices: Sequence[int]) -> list[Tensor]:
        """The recorded images, float32 (3, H, W) in [0, 1]. Raises ItemsRefused naming prompt or file."""
        refused, made = {}, []
        for place, (item, index) in enumerate(zip(items, seed_indices, strict=True)):
            try:
                made.append(self._image(item, index))
            except _NotHere as error:
                refused[place] = str(error)
        if refused:
            raise ItemsRefused(refused)
        return made

    def _image(self, item: Item, index: int) -> Tensor:
        files = self.layout.files(item.payload)
        if not files:
            raise _NotHere(f"{self.options.root} has no image of the prompt {item.payload!r}")
        if index >= len(files):
            raise _NotHere(f"{self.options.root} has {len(files)} images of the prompt, not the one of index {index}")
        if not files[index].is_file():
            raise _NotHere(f"{files[index]} is missing")
        try:
            how = Decoding(self.options.max_pixels, larger="options.folder.max_pixels=N")
            pixels = decode(files[index], how).pixels
        except ImageError as error:
            raise _NotHere(str(error)) from error
        return torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).float() / 255


class _NotHere(Exception):
    """An item has no image that can be read; the message is the reason."""


def _layout(options: Any) -> Layout:
    return read_layout(Path(split_name(options.root)[1]).expanduser())
