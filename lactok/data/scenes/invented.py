"""What style `wide` has beyond `loose`: invented shapes with names of their own, among the classes.

Twenty-four classes in eight of ten colours each are few enough for a small generator to learn as so many images. The
invented shapes come in all ten colours under their names, far more pairs of name and colour than it can keep apart:
what it learns then is what a name looks like in a colour, which holds for pairs that it never saw, too. They are for
training alone, as the random shapes of `loose` are: no class, no prompt of the benchmark, no held-out combination.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache

import numpy as np

from lactok.data.scenes.content import COLOUR_NAMES, Content
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.loose import random_shape
from lactok.data.scenes.raster import FULL, Primitive, Step, coverage
from lactok.data.scenes.vocabulary import INVENTED, Thing

LEAST_SHARE = 6
"""An invented shape fills at least one part of so many of its frame, so that tokens can show what is its own."""
LOOKED_AT = 32
"""Pixels of the frame in which that is looked at."""


def with_invented(content: Content, draws: Draws) -> Content:
    """With each of its classes, in one of two scenes, replaced by an invented one in a colour of all ten.

    One class stays one; two classes become two.
    """
    names: dict[str, Thing] = {}
    for thing in content.things:
        if thing.class_name not in names:
            free = [name for name in INVENTED if name not in {one.class_name for one in names.values()}]
            other = Thing(draws.choice(free), draws.choice(COLOUR_NAMES))
            names[thing.class_name] = other if draws.below(2) else thing
    things = (
        names[thing.class_name] if names[thing.class_name].class_name in INVENTED else thing for thing in content.things
    )
    return replace(content, things=tuple(things))


@cache
def steps_of(name: str) -> tuple[Primitive | Step, ...]:
    """The shape of an invented name: the same everywhere, since it follows from the name."""
    draws = Draws(f"lactok scenes 1|invented|{name}")
    while True:
        steps = random_shape(draws)
        if LEAST_SHARE * coverage(steps, LOOKED_AT).sum() >= FULL * LOOKED_AT**2:
            return steps


@lru_cache(maxsize=1024)
def invented_silhouette(name: str, side: int, mirrored: bool = False) -> np.ndarray:
    """uint8 (side, side) of 0 to `raster.FULL`; mirrored: left and right exchanged."""
    mask = coverage(steps_of(name), side)
    mask.setflags(write=False)
    return mask[:, ::-1] if mirrored else mask
