"""Reconstructions that another system made: a folder of images, each paired with a reference of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lactok.images.decode import MAX_PIXELS, Decoding, ImageError, decode
from lactok.images.pairing import NAME, STEM, Pairing, PairingError, Unpaired, split_name
from lactok.interface import Item, ItemsRefused, Recorded, RecordedInfo
from lactok.weights import LocalFiles, WeightsError, WeightsSource


@dataclass
class ReconstructionFolderOptions:
    """Which images.

    root: their folder, or NAME=DIR, which names the row. pair: "name", "stem" or a CSV (lactok/images/pairing.py).
    resize: whether images of another size than their reference's and the evaluation image's are resized by the
    protocol's back_filter. max_pixels: images with more are refused.
    """

    root: str | None = None
    pair: str = NAME
    resize: bool = False
    max_pixels: int = MAX_PIXELS


class ReconstructionFolder(Recorded):
    """The images of options.root, decoded as a data set's are (lactok/images/decode.py).

    `python -m evals score` makes such rows. A reference without an image that can be read is refused, by name.
    """

    Options: ClassVar[type] = ReconstructionFolderOptions
    path_options = ("root",)
    scale = "none"  # it has nothing to show without a root
    code_licence = "Apache-2.0"
    weights_licence = "that of the images"

    @classmethod
    def label(cls, options: Any) -> str | None:
        """NAME of root=NAME=DIR."""
        return None if options.root is None else split_name(options.root)[0]

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        """All images of the folder as one, with the table that pairs them. Raises WeightsError."""
        if options.root is None:
            return (LocalFiles("reconstructions", "", (), "name their folder by options.NAME.root=DIR"),)
        pairing = _pairing(options)
        table = [] if options.pair in (NAME, STEM) else [Path(options.pair).expanduser()]
        files = tuple(map(str, [*sorted(pairing.images.values()), *table]))
        return (LocalFiles(f"images of {options.root}", str(pairing.folder), files, "leave them where they are"),)

    @property
    def info(self) -> RecordedInfo:
        return RecordedInfo("recorded", any_size=self.options.resize)

    def images(self, items: Sequence[Item], seed_indices: Sequence[int]) -> list[Tensor]:
        """The images paired with these items, float32 (3, H, W) in [0, 1]. Raises ItemsRefused naming the file."""
        refused, made = {}, []
        how = Decoding(self.options.max_pixels, self.colour, larger="options.folder.max_pixels=N")
        for place, item in enumerate(items):
            try:
                pixels = decode(self._pairing.images[self._pairing.find(item.id)], how).pixels
                made.append(torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).float() / 255)
            except (Unpaired, ImageError) as error:
                refused[place] = str(error)
        if refused:
            raise ItemsRefused(refused)
        return made

    @cached_property
    def _pairing(self) -> Pairing:
        return _pairing(self.options)


def _pairing(options: Any) -> Pairing:
    try:
        return Pairing.of_folder(split_name(options.root)[1], options.pair)
    except PairingError as error:
        raise WeightsError(str(error)) from error
