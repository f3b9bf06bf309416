"""What style `loose` has beyond `plain`: shades of the colours, and random shapes in place of some classes.

In style `plain` a class in a colour at a place is always the same image, and there are a few thousand of them: a small
generator learns each by heart, and then knows a colour with those classes alone that it saw in it. Here a colour is
any shade that is nearest to it in RGB, and a random shape comes in all ten colours, held-out ones of no class. In
integers alone, as all of a scene. It is for training: the judge of scenes compares colours in CIELAB, where some of the
shades are nearest to another name.
"""

from __future__ import annotations

from dataclasses import replace

from lactok.data.scenes.backgrounds import LIGHT
from lactok.data.scenes.content import COLOUR_NAMES, Content
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.raster import FULL, Primitive, Step, box, coverage, cut, disc, polygon
from lactok.data.scenes.vocabulary import COLOURS, NAMELESS, RGB, Thing

NAMELESS_OF_TEN = 4
"""In so many of ten scenes a class becomes a random shape."""
EXACT_OF = 3
"""At least one colour of so many is drawn as it is; the others are shades of it."""
MOST_MIXED = 60
"""Percent of a random colour in a shade, at most."""
TRIES = 40
"""Of a shade; where none fits, the colour is drawn as it is."""
LEAST_SHARE = 50
"""A random shape fills at least one part of so many of its frame."""
LOOKED_AT = 14
"""Pixels of the smallest frame of style `plain`, that of images of 32 pixels."""
CLEAR = 60
"""Least length of the RGB difference between a shade and every background of style `plain`."""

_QUARTER = ((1000, 0), (924, 383), (707, 707), (383, 924))
DIRECTIONS = (
    *_QUARTER,
    *((-y, x) for x, y in _QUARTER),
    *((-x, -y) for x, y in _QUARTER),
    *((y, -x) for x, y in _QUARTER),
)
"""Sixteen, evenly around, in thousandths."""


def with_nameless(content: Content, draws: Draws) -> Content:
    """With one of its classes replaced by NAMELESS in a colour of all ten, in NAMELESS_OF_TEN of ten scenes."""
    if draws.below(10) >= NAMELESS_OF_TEN:
        return content
    replaced = draws.choice(content.things).class_name
    nameless = Thing(NAMELESS, draws.choice(COLOUR_NAMES))
    things = (nameless if thing.class_name == replaced else thing for thing in content.things)
    return replace(content, things=tuple(things))


def shade(name: str, draws: Draws) -> RGB:
    """A colour nearest in RGB to the named one: its distance to the next is at least 1.4 times as large."""
    own = COLOURS[name]
    if draws.below(EXACT_OF) == 0:
        return own
    for _ in range(TRIES):
        share = draws.below(MOST_MIXED + 1)
        red, green, blue = ((c * (100 - share) + draws.below(256) * share) // 100 for c in own)
        mixed = red, green, blue
        others = min(_apart(mixed, colour) for other, colour in COLOURS.items() if other != name)
        if 2 * _apart(mixed, own) <= others and min(_apart(mixed, colour) for colour in LIGHT) >= CLEAR**2:
            return mixed
    return own


def random_shape(draws: Draws) -> tuple[Primitive | Step, ...]:
    """A polygon, often with a disc or a box added or a hole cut into it; drawn anew until there is enough of it."""
    while True:
        steps = _steps(draws)
        if LEAST_SHARE * coverage(steps, LOOKED_AT).sum() >= FULL * LOOKED_AT**2:
            return steps


def _steps(draws: Draws) -> tuple[Primitive | Step, ...]:
    corners = sorted({draws.below(len(DIRECTIONS)) for _ in range(draws.between(4, 10))})
    points = []
    for corner in corners if len(corners) > 2 else (0, 5, 11):
        (x, y), radius = DIRECTIONS[corner], draws.between(180, 500)
        points += [500 + radius * x // 1000, 500 + radius * y // 1000]
    steps: list[Primitive | Step] = [polygon(*points)]
    if draws.below(2):
        steps.append(disc(draws.between(300, 700), draws.between(300, 700), draws.between(80, 280)))
    if draws.below(2):
        left, top = draws.between(50, 650), draws.between(50, 650)
        steps.append(box(left, top, left + draws.between(100, 300), top + draws.between(100, 300)))
    if draws.below(2):
        steps.append(cut(disc(draws.between(250, 750), draws.between(250, 750), draws.between(50, 150))))
    return tuple(steps)


def _apart(one: RGB, other: RGB) -> int:
    """The squared length of the difference."""
    return sum((a - b) ** 2 for a, b in zip(one, other))
