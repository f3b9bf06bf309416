"""The settings of a build: every key of the command line, its default in each recipe, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

VERSION = 3
"""Raised when the same settings and sources give other shards; a build that was begun by another version is refused."""
STAGES = ("synthesise", "caption", "judge", "inspect")
"""The stages that every unit passes, in order; each has actors of its own."""
NO_EFFECT = ("out", "address", "cpus", "store", "stages", "every")
"""Settings that do not change what the shards hold."""


class SpecError(Exception):
    """Settings that can't be used; the message has the value seen and what is expected."""


class Stage(BaseModel):
    """How a stage runs. actors: processes, at least and at most (Ray adds and removes them); cpus, gpus: of each, may
    be parts; batch: images that its network takes at once."""

    model_config = ConfigDict(extra="forbid")
    actors: tuple[int, int] = (1, 1)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    batch: int = Field(default=16, ge=1)

    @field_validator("actors", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        if isinstance(value, (int, str)):
            ends = [int(end) for end in str(value).split(":")]
            return (ends[0], ends[-1])
        return value

    @field_validator("actors")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("expected N or LEAST:MOST, at least 1")
        return value


class Stages(BaseModel):
    """The settings of each stage."""

    model_config = ConfigDict(extra="forbid")
    synthesise: Stage = Stage()
    caption: Stage = Stage()
    judge: Stage = Stage()
    inspect: Stage = Stage()


class Plant(BaseModel):
    """Of the miniature: parts of all items that are made into something that must be found."""

    model_config = ConfigDict(extra="forbid")
    duplicates: float = Field(default=0.02, ge=0, le=0.3)
    leaks: float = Field(default=0.01, ge=0, le=0.3)
    broken: float = Field(default=0.01, ge=0, le=0.3)
    hostile: float = Field(default=0.005, ge=0, le=0.3)


class Spec(BaseModel):
    """Every setting of a build.

    captions: files or folders of captions to synthesise images of. images: folders, WebDataset tars or Parquet files of
    images. items: the most that are taken of all sources, 0: all. seed: of the miniature's scenes. unit: items of a
    unit of work. shard: images of a shard. keep_format: format of images that are made here. quality: of JPEG and WebP.
    judges: name to the score that an image must exceed. copies: the most images of one caption, 0: any number.
    leakage: folders of evaluation images, "photos" (the benchmark's own) or, in the miniature, "scenes:COUNT".
    leak_cosine: of EfficientNet-Lite0's features; above it an image is one of an evaluation set, 1: never.
    every: seconds between two lines of the live view where the output is no terminal.
    """

    model_config = ConfigDict(extra="forbid")
    recipe: Literal["paper", "mini"]
    out: Path
    captions: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    items: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    unit: int = Field(default=64, ge=1, le=4096)
    shard: int = Field(default=1000, ge=1)
    size: int = Field(default=1024, ge=32, le=4096)
    keep_format: Literal["png", "jpg", "webp"] = "jpg"
    quality: int = Field(default=95, ge=50, le=100)
    generator: str = "flux.1-dev"
    options: dict[str, str] = {}
    captioner: str = "72b"
    words: int = Field(default=20, ge=1)
    tries: int = Field(default=3, ge=1)
    judges: dict[str, float] = {}
    duplicates: tuple[Literal["content", "perceptual", "caption"], ...] = ("content", "perceptual", "caption")
    copies: int = Field(default=1, ge=0)
    leakage: tuple[str, ...] = ()
    leak_cosine: float = Field(default=0.95, gt=0, le=1)
    longest_caption: int = Field(default=2000, ge=1)
    plant: Plant = Plant()
    stages: Stages = Stages()
    address: str = ""
    cpus: int = Field(default=0, ge=0)
    store: int = Field(default=0, ge=0, description="MB of Ray's object store; 0: Ray's default")
    every: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _has_sources(self) -> Spec:
        if self.recipe == "mini":
            if self.captions or self.images:
                raise ValueError("recipe=mini renders its own scenes: leave captions and images out, or recipe=paper")
            if not self.items:
                raise ValueError("recipe=mini needs items=N, how many scenes")
        elif not self.captions and not self.images:
            raise ValueError("no source: captions=[FILE,...], or images=[FOLDER or FILE.tar or FILE.parquet,...]")
        return self

    def stage(self, name: str) -> Stage:
        """How a stage runs: as it is set, but where there are no captions no network synthesises, on no GPU."""
        stage: Stage = getattr(self.stages, name)
        idle = name == "synthesise" and not self.captions
        return stage.model_copy(update={"gpus": 0.0}) if idle else stage

    def that_matters(self) -> dict[str, Any]:
        """What determines the shards, as plain JSON: everything but where and how fast, with the rules' version."""
        settings = self.model_dump(mode="json", exclude=set(NO_EFFECT))
        if self.recipe != "mini":
            del settings["plant"]
        return {"version": VERSION, **settings}

    def sha256(self) -> str:
        """Of `that_matters`."""
        return hashlib.sha256(json.dumps(self.that_matters(), sort_keys=True).encode()).hexdigest()


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "judges": {"imagereward": 0.9, "mps": 12.0},  # section 4.4
        "leakage": ["photos"],
        "stages": {
            "synthesise": {"actors": "1:64", "gpus": 1, "batch": 4},
            "caption": {"actors": "1:16", "gpus": 4, "batch": 16},
            "judge": {"actors": "1:8", "gpus": 1, "batch": 64},
            "inspect": {"actors": "1:64", "batch": 64},
        },
    },
    "mini": {
        "size": 64,
        "unit": 200,
        "keep_format": "png",
        "generator": "scenes",
        "captioner": "labels",
        "judges": {"confidence": 0.03},
        "copies": 0,
        "leakage": ["scenes:100"],
        "leak_cosine": 1.0,
        "store": 200,
        "cpus": 2,
        "stages": {name: {"cpus": 0.3, "batch": 50} for name in STAGES},
    },
}
"""What a recipe sets."""

LISTS = ("captions", "images", "duplicates", "leakage", "judges")


def parse(words: Sequence[str]) -> Spec:
    """The settings of a command line of key=value words; lists as a,b or [a,b]. Raises SpecError."""
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z_]+(\.[\w-]+)*", key):
            raise SpecError(f"{word!r}: expected KEY=VALUE; `python -m lactok.data build --help` lists the keys")
        _put(given, key.split("."), _listed(value) if key in LISTS else value, word)
    recipe = given.get("recipe")
    if recipe not in PRESETS:
        raise SpecError(f"recipe={recipe or ''}: expected {' or '.join(PRESETS)}")
    if not given.get("out"):
        raise SpecError("out is missing: out=DIR, the folder that gets the shards")
    if isinstance(given.get("judges"), list):
        given["judges"] = _judges(given["judges"])
    given["out"] = os.path.expanduser(given["out"])
    try:
        return Spec.model_validate(_merged(PRESETS[recipe], given))
    except ValidationError as error:
        raise SpecError("; ".join(_told(one) for one in error.errors())) from None


def _listed(text: str) -> list[str]:
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [part.strip() for part in inner.split(",") if part.strip()]


def _judges(words: Sequence[str]) -> dict[str, float]:
    judges = {}
    for word in words:
        name, above, threshold = word.partition(">")
        try:
            if not above:
                raise ValueError
            judges[name.strip()] = float(threshold)
        except ValueError:
            raise SpecError(f"judges: {word!r}: expected NAME>SCORE, as imagereward>0.9") from None
    return judges


def _put(into: dict[str, Any], path: Sequence[str], value: Any, word: str) -> None:
    for part in path[:-1]:
        into = into.setdefault(part, {})
        if not isinstance(into, dict):
            raise SpecError(f"{word!r}: {part} has a value already")
    if path[-1] in into:
        raise SpecError(f"{word!r}: {'.'.join(path)} is given twice")
    into[path[-1]] = value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, tables key by key; a judge given by the user replaces the recipe's."""
    made = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(made.get(key), Mapping) and key != "judges":
            made[key] = _merged(made[key], value)
        else:
            made[key] = value
    return made


def _told(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        table, _, inner = place.partition(".")
        kinds: dict[str, type[BaseModel]] = {"stages": Stage if "." in inner else Stages, "plant": Plant}
        known = ", ".join(kinds.get(table, Spec).model_fields if inner else Spec.model_fields)
        return f"{place}: no such key; known: {known}"
    return f"{place}={error['input']}: {message}" if place else message
