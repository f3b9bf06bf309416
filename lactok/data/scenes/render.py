"""A scene from its seed and index: image, caption, GenEval metadata, objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lactok.data.scenes.backgrounds import BACKGROUNDS, Background, paint, paint_light
from lactok.data.scenes.captions import canonical, caption
from lactok.data.scenes.combinations import Split
from lactok.data.scenes.content import Content, content_of, draw_content, in_one_colour, in_own_colours, metadata
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.layout import UNIT, Place, in_pixels, lay_out
from lactok.data.scenes.loose import random_shape, shade, with_nameless
from lactok.data.scenes.raster import FULL, MAX_SIDE, coverage
from lactok.data.scenes.shapes import silhouette
from lactok.data.scenes.vocabulary import COLOUR_JITTER, COLOURS, NAMELESS, RGB, Style, Thing

MIN_SIDE = 32
"""Pixels; below, four objects are no longer told apart."""
MAX_ASPECT = 4


@dataclass(frozen=True)
class SceneObject:
    """colour: its name; rgb: what it is drawn in; box: x0, y0, x1, y1 in [0, 1], the tight box of all its pixels."""

    class_name: str
    colour: str
    rgb: RGB
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Scene:
    """image: uint8 (H, W, 3) RGB. caption: a natural variant of the short `canonical`; both say what metadata says.

    In styles `plain` and `loose` half of the captions say all that is shown: colours and the relation, too.

    metadata: a line of GenEval's evaluation_metadata.jsonl, whose prompt is `canonical`. objects: in the order drawn;
    where the scene is of two objects, their relation may be shown without being said.
    """

    image: np.ndarray
    caption: str
    canonical: str
    metadata: dict
    objects: tuple[SceneObject, ...]
    background: Background


def scene(
    seed: int,
    index: int,
    size: int | tuple[int, int] = 128,
    split: Split = Split.TRAIN,
    style: Style = Style.VARIED,
) -> Scene:
    """Scene number `index` of the stream of `seed`: a pure function, equal in every byte on every machine.

    size: side or (height, width) in pixels. Class, colour, caption and background are the same at every size, the
    layout at every size of one aspect. Tasks take turns: index i is of TASKS[i % 6]. split: see
    `lactok.data.scenes.combinations`. style: changes background, layout, colours and mirroring, how much the caption
    says and, where it is loose, what is shown. Raises ValueError for a seed or index below 0, a side out of MIN_SIDE to
    MAX_SIDE, an aspect beyond MAX_ASPECT.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed={seed}, index={index}: expected integers of at least 0")
    content, key = draw_content(seed, index, Split(split)), f"lactok scenes 1|{seed}|{index}"
    return _rendered(content, size, key, Style(style), Split(split))


def scene_of(
    line: Mapping[str, Any], key: str, size: int | tuple[int, int] = 128, style: Style = Style.VARIED
) -> Scene:
    """A scene that GenEval's metadata of one, such as `Scene.metadata`, describe; the rest of it follows from `key`.

    Raises ValueError for metadata of another form, such as those of a random shape, and as `scene` does.
    """
    return _rendered(content_of(line, Draws(f"{key}|content")), size, key, Style(style), Split.ALL)


def _rendered(content: Content, size: int | tuple[int, int], key: str, style: Style, split: Split) -> Scene:
    height, width = checked_size(size)

    def draws(purpose: str) -> Draws:
        return Draws(f"{key}|{purpose}")

    full = style is not Style.VARIED and bool(draws("full").below(2))
    if style is not Style.VARIED:
        content = in_one_colour(content) if full else in_own_colours(content, split)
    if style is Style.LOOSE and split is Split.TRAIN:
        content = with_nameless(content, draws("nameless"))
    shorter = min(height, width)
    frame = (UNIT * width // shorter, UNIT * height // shorter)
    places = in_pixels(lay_out(content, *frame, draws("layout"), style), shorter)
    look = draws("background")
    if style is not Style.VARIED:
        background, image = Background.FLAT, paint_light(height, width, look)
    else:
        background = look.choice(BACKGROUNDS)
        image = paint(background, height, width, look)
    objects = _draw(image, content.things, places, style, draws("objects"))
    short = canonical(content)
    return Scene(image, caption(content, draws("caption"), full), short, metadata(content, short), objects, background)


def scenes(
    seed: int, count: int, size: int | tuple[int, int] = 128, split: Split = Split.TRAIN, start: int = 0
) -> Iterator[Scene]:
    """Scenes start to start + count - 1 of the stream, as `scene` makes them. Raises ValueError as it does."""
    if count < 0:
        raise ValueError(f"count={count}: expected at least 0")
    return (scene(seed, index, size, split) for index in range(start, start + count))


def captions(seed: int, count: int, split: Split = Split.TRAIN, start: int = 0) -> Iterator[tuple[str, Content]]:
    """The captions of `scenes(...)` with their contents, without drawing anything."""
    for index in range(start, start + count):
        content = draw_content(seed, index, Split(split))
        yield caption(content, Draws(f"lactok scenes 1|{seed}|{index}|caption")), content


def checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width). Raises ValueError."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_SIDE:
        raise ValueError(f"size {height}x{width}: expected {MIN_SIDE} to {MAX_SIDE} pixels a side")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"size {height}x{width}: expected a longer side of at most {MAX_ASPECT} times the shorter")
    return height, width


def _draw(
    image: np.ndarray, things: Sequence[Thing], places: Sequence[Place], style: Style, draws: Draws
) -> tuple[SceneObject, ...]:
    """Draws the things into `image`. Things of one colour share one drawn shade, so that they look alike.

    draws: of shades, random shapes and mirroring, of which style `plain` has none.
    """
    height, width = image.shape[:2]
    shades: dict[str, RGB] = {}
    nameless = random_shape(draws) if any(thing.class_name == NAMELESS for thing in things) else ()
    objects = []
    for thing, place in zip(things, places, strict=True):
        rgb = shades.setdefault(thing.colour, _shade(thing.colour, style, draws))
        mirrored = style is not Style.PLAIN and bool(draws.below(2))  # drawn for a random shape, too
        if thing.class_name == NAMELESS:
            mask = coverage(nameless, place.side)
        else:
            mask = silhouette(thing.class_name, place.side, mirrored)
        share = mask.astype(np.int32)[..., None]
        patch = image[place.top : place.top + place.side, place.left : place.left + place.side]
        patch[...] = (patch * (FULL - share) + np.array(rgb, np.int32) * share + FULL // 2) // FULL
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (
            (place.left + int(columns[0])) / width,
            (place.top + int(rows[0])) / height,
            (place.left + int(columns[-1]) + 1) / width,
            (place.top + int(rows[-1]) + 1) / height,
        )
        objects.append(SceneObject(thing.class_name, thing.colour, rgb, box))
    return tuple(objects)


def _shade(name: str, style: Style, draws: Draws) -> RGB:
    if style is Style.PLAIN:
        return COLOURS[name]
    if style is Style.LOOSE:
        return shade(name, draws)
    channels = (c + draws.between(-COLOUR_JITTER, COLOUR_JITTER) for c in COLOURS[name])
    red, green, blue = (min(max(c, 0), 255) for c in channels)
    return red, green, blue
