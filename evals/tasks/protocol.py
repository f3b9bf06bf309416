"""Every convention that moves a number, in one frozen, hashed record a task. Imports no torch; tasks carry them out.

What published evaluators do differs on nearly every field (docs/protocol.md says who does what). A result holds its
protocol's hash; a table never mixes hashes without saying so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar, Literal

from lactok.typed import typed

Filter = Literal["nearest", "bilinear", "bicubic"]
PilFilter = Literal["box", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Conventions:
    """What the protocols share. `name` is a label only and does not enter the hash.

    later: fields that were added after figures had been published under the hash. With its default such a field stands
    for what was done before there was one; it then enters neither the hash nor the keys of stored results, so that
    these stay what they were.
    Values are normalised, so that one convention has one hash. Raises ValueError for a value of another type or range.
    """

    name: str
    later: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, value in typed(type(self), vars(self), "protocol.").items():
            object.__setattr__(self, name, value)

    def subset(self, *fields: str) -> dict[str, object]:
        """The named fields, for the key of a step that depends on these alone; see `later`."""
        usual = {f.name: f.default for f in dataclasses.fields(self) if f.name in self.later}
        found = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in found.items() if name not in usual or value != usual[name]}

    def as_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """First 12 hex digits of the sha256 of all fields but the name; see `later`."""
        fields = self.subset(*(name for name in self.as_dict() if name != "name"))
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ReconstructionProtocol(Conventions):
    """The conventions of a reconstruction run.

    eval_size: side in pixels of the square images that metrics see.
    fit: "squash" scales both sides to eval_size ("resized to 1024x1024", LacTok section 5); "crop" scales the shorter
        side to it and crops the centre (offset floor((size - eval_size) / 2), as torchvision's rounding does not).
    eval_filter: Pillow's filter for that, always antialiased; the result is uint8.
    native_from: whether a tokenizer's native image is made from the rounded evaluation image or from the source.
    native_filter, native_antialias: torch's filter to the native size, in float32, clamped to [0, 1].
    back_filter, back_antialias: the same from the tokenizer's output to eval_size.
    rounding: to uint8, once: "half_up" is floor(255 x + 0.5), "truncate" is floor(255 x); both clamp first.
    ssim_window: of the column SSIM: "uniform7" (scikit-image's default) or "gauss11" (Wang et al. 2004).
    effnet_size: input side in pixels of EfficientNet-Lite0; images of another size are resized to it
        (bilinear, antialiased).
    decode: the version of the decoding rules of lactok/images/decode.py (EXIF applied, RGB, alpha over white, 16
        bits scaled, first frame).
    colour: "ignore" colour profiles of the files, as published evaluators do, or convert to "srgb" by them: relative
        colorimetric with black-point compensation (lactok/images/colour.py).
    """

    eval_size: int
    fit: Literal["squash", "crop"]
    eval_filter: PilFilter = "bicubic"
    native_from: Literal["evaluation", "source"] = "evaluation"
    native_filter: Filter = "bicubic"
    native_antialias: bool = True
    back_filter: Filter = "bicubic"
    back_antialias: bool = True
    rounding: Literal["half_up", "truncate"] = "half_up"
    ssim_window: Literal["uniform7", "gauss11"] = "uniform7"
    effnet_size: int = 224
    decode: int = 1
    colour: Literal["ignore", "srgb"] = "ignore"
    later: ClassVar[tuple[str, ...]] = ("colour",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 16 <= self.eval_size <= 16384:
            raise ValueError(f"protocol.eval_size={self.eval_size}: expected 16 to 16384 pixels")
        if not 32 <= self.effnet_size <= 1024:
            raise ValueError(f"protocol.effnet_size={self.effnet_size}: expected 32 to 1024 pixels")

    @property
    def evaluation_fields(self) -> dict[str, object]:
        """What determines an evaluation image, given the file."""
        return self.subset("eval_size", "fit", "eval_filter", "decode", "colour")

    @property
    def native_fields(self) -> dict[str, object]:
        """What determines a native image, given the source (and the native size)."""
        return self.evaluation_fields | self.subset("native_from", "native_filter", "native_antialias")

    @property
    def backward_fields(self) -> dict[str, object]:
        """What determines the uint8 reconstruction, given the tokenizer's output."""
        return self.subset("eval_size", "back_filter", "back_antialias", "rounding")


@dataclass(frozen=True)
class GenerationProtocol(Conventions):
    """The conventions of a generation run.

    image_size: side in pixels to which images are resized before they are scored; None: scored as generated.
    resize_filter: torch's antialiased filter for that, in float32, clamped to [0, 1].
    rounding: to uint8, once: "half_up" is floor(255 x + 0.5), "truncate" is floor(255 x); both clamp first.
    judges: whose code judges have: "ported", this project's, or "original", the published packages in processes of
        their own (judges.backend on the command line).
    """

    image_size: int | None = None
    resize_filter: Literal["bilinear", "bicubic"] = "bicubic"
    rounding: Literal["half_up", "truncate"] = "half_up"
    judges: Literal["ported", "original"] = "ported"
    later: ClassVar[tuple[str, ...]] = ("judges",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and not 16 <= self.image_size <= 16384:
            raise ValueError(f"protocol.image_size={self.image_size}: expected 16 to 16384 pixels, or null")
