"""Where objects stand: never over the edge, never over each other.

Lengths are in units of 1/1024 of the image's shorter side, so that a scene is laid out alike at every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lactok.data.scenes.content import Content
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.vocabulary import Relation, Style

UNIT = 1024
MARGIN = 56
"""At least so much between two objects, and in style `varied` to the edge of the image."""
SIDES = {1: (400, 820), 2: (300, 420), 3: (270, 400), 4: (250, 380)}
"""Of an object's frame in style `varied`, least and most, by the number of objects."""
TRIES = 40
# Styles `plain` and `loose`: frames of nearly half the square that begin at multiples of a quarter of it; half of the
# scenes of one object have it large and in the middle. A tokenizer of 8x8 or 16x16 ids sees all smaller frames in one
# phase, so that a shape has nearly the same ids wherever, and what is learned from one object holds for two.
ALONE = 832
SLOT = 456
NEAR, MIDDLE, FAR = 0, 256, 512
PAIRS = {
    Relation.LEFT_OF: ((NEAR, MIDDLE), (FAR, MIDDLE)),
    Relation.RIGHT_OF: ((FAR, MIDDLE), (NEAR, MIDDLE)),
    Relation.ABOVE: ((MIDDLE, NEAR), (MIDDLE, FAR)),
    Relation.BELOW: ((MIDDLE, FAR), (MIDDLE, NEAR)),
}
"""Left and upper edge of the first and of the second object, by what the first is, seen from the second."""
GROUPS = {
    2: PAIRS[Relation.LEFT_OF],
    3: ((NEAR, NEAR), (FAR, NEAR), (MIDDLE, FAR)),
    4: ((NEAR, NEAR), (FAR, NEAR), (NEAR, FAR), (FAR, FAR)),
}


@dataclass(frozen=True)
class Place:
    """A square frame: its left and upper edge and its side."""

    left: int
    top: int
    side: int

    @property
    def middle(self) -> tuple[int, int]:
        """Twice the centre (x, y), an integer."""
        return 2 * self.left + self.side, 2 * self.top + self.side

    def clear_of(self, other: Place) -> bool:
        gaps = (
            other.left - self.left - self.side,
            self.left - other.left - other.side,
            other.top - self.top - self.side,
            self.top - other.top - other.side,
        )
        return max(gaps) >= MARGIN


def lay_out(content: Content, width: int, height: int, draws: Draws, style: Style = Style.VARIED) -> tuple[Place, ...]:
    """A place for each of content's things. width, height: of the image, in units, the shorter of them UNIT.

    Styles `plain` and `loose` have their places in the image's central square.
    """
    if style is not Style.VARIED:
        return _fixed(content, (width - UNIT) // 2, (height - UNIT) // 2, draws)
    least, most = SIDES[len(content.things)]
    if content.relation is not None:
        return _pair(content.relation, least, most, width, height, draws)
    while True:  # drawn anew when there is no room for the last ones; from `least` on there always is some
        places: list[Place] = []
        for _ in range(TRIES):
            place = _drawn(draws.between(least, most), width, height, draws)
            if all(place.clear_of(other) for other in places):
                places.append(place)
            if len(places) == len(content.things):
                return tuple(places)


def _fixed(content: Content, across: int, down: int, draws: Draws) -> tuple[Place, ...]:
    side, number = SLOT, len(content.things)
    places: tuple[tuple[int, int], ...]
    if content.relation is not None:
        places = PAIRS[content.relation]
    elif number > 1:
        places = GROUPS[number]
    elif draws.below(2):
        places = ((draws.choice((NEAR, MIDDLE, FAR)), draws.choice((NEAR, MIDDLE, FAR))),)
    else:
        side, places = ALONE, (((UNIT - ALONE) // 2, (UNIT - ALONE) // 2),)
    return tuple(Place(left + across, top + down, side) for left, top in places)


def _drawn(side: int, width: int, height: int, draws: Draws) -> Place:
    left = draws.between(MARGIN, width - MARGIN - side)
    return Place(left, draws.between(MARGIN, height - MARGIN - side), side)


def _pair(relation: Relation, least: int, most: int, width: int, height: int, draws: Draws) -> tuple[Place, ...]:
    while True:
        first, second = (_drawn(draws.between(least, most), width, height, draws) for _ in range(2))
        if first.clear_of(second):
            if relation_of(second, first) is relation:
                return second, first
            if relation_of(first, second) is relation:
                return first, second


def relation_of(first: Place, second: Place) -> Relation | None:
    """What `first` is, seen from `second`: None unless one axis of the centres' offset is 2.5 times the other.

    At that ratio GenEval's rule (0.5 of the length along an axis) gives this relation and no other.
    """
    across = first.middle[0] - second.middle[0]
    down = first.middle[1] - second.middle[1]
    if 2 * abs(across) >= 5 * abs(down):
        return Relation.LEFT_OF if across < 0 else Relation.RIGHT_OF
    if 2 * abs(down) >= 5 * abs(across):
        return Relation.ABOVE if down < 0 else Relation.BELOW
    return None


def in_pixels(places: Sequence[Place], shorter: int) -> list[Place]:
    """Snapped to whole pixels, rounded down. shorter: the image's shorter side in pixels."""
    return [Place(*(value * shorter // UNIT for value in (p.left, p.top, p.side))) for p in places]
