"""What scenes are made of: tasks, classes, colours and relations, with the words that captions use for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

RGB = tuple[int, int, int]


class Task(StrEnum):
    """GenEval's six tasks, by the `tag` of its metadata, in its order."""

    SINGLE_OBJECT = "single_object"
    TWO_OBJECT = "two_object"
    COUNTING = "counting"
    COLORS = "colors"
    POSITION = "position"
    COLOR_ATTR = "color_attr"


class Relation(StrEnum):
    """Where an object stands, seen from another one; GenEval's words."""

    LEFT_OF = "left of"
    RIGHT_OF = "right of"
    ABOVE = "above"
    BELOW = "below"

    @property
    def converse(self) -> Relation:
        return _CONVERSE[self]


_CONVERSE = {
    Relation.LEFT_OF: Relation.RIGHT_OF,
    Relation.RIGHT_OF: Relation.LEFT_OF,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}


class Style(StrEnum):
    """How a scene looks.

    varied: any background, objects of many sizes anywhere; a tokenizer has to stand it.
    plain: a flat light background, large objects at fixed places, in exactly their colours, never mirrored, a class in
        a colour of its own where the caption says none (`lactok.data.scenes.content.in_own_colours`); a small generator
        learns prompts from it in two hours of a core.
    loose: as plain, but with colours in many shades, objects mirrored at random and, in the split `train`, some classes
        replaced by random shapes ("a red shape"; `lactok.data.scenes.loose`): there are too many images to learn by
        heart, so that form and colour are learned apart.
    """

    VARIED = "varied"
    PLAIN = "plain"
    LOOSE = "loose"


TASKS = tuple(Task)
RELATIONS = tuple(Relation)
MAX_COUNT = 4
NUMBERS = ("zero", "one", "two", "three", "four")

# GenEval's ten colour words. Any two are at least 29 apart in CIELAB (delta E 1976; the nearest: blue and purple).
COLOURS: dict[str, RGB] = {
    "red": (215, 30, 40),
    "orange": (255, 135, 10),
    "yellow": (250, 225, 40),
    "green": (35, 150, 50),
    "blue": (25, 85, 220),
    "purple": (125, 40, 165),
    "pink": (255, 130, 190),
    "brown": (115, 68, 32),
    "black": (22, 22, 24),
    "white": (250, 250, 250),
}
COLOUR_JITTER = 6
"""An object's channels differ from its colour's by at most this."""

# Class to its plural: eight geometric shapes, sixteen pictograms.
CLASSES: dict[str, str] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "ring": "rings",
    "cross": "crosses",
    "diamond": "diamonds",
    "arrow": "arrows",
    "house": "houses",
    "tree": "trees",
    "car": "cars",
    "boat": "boats",
    "fish": "fish",
    "cup": "cups",
    "key": "keys",
    "heart": "hearts",
    "sun": "suns",
    "moon": "moons",
    "flower": "flowers",
    "cat": "cats",
    "mushroom": "mushrooms",
    "umbrella": "umbrellas",
    "rocket": "rockets",
    "bell": "bells",
}

NAMELESS, NAMELESS_PLURAL = "shape", "shapes"
"""What captions of style `loose` call a random shape. It is no class: no prompt asks for it, no combination has it."""

# A class's colour in styles `plain` and `loose` where the caption says none: dark, to stand out, and never held out.
OWN_COLOURS: dict[str, str] = {
    "circle": "blue",
    "square": "red",
    "triangle": "green",
    "star": "purple",
    "ring": "blue",
    "cross": "red",
    "diamond": "purple",
    "arrow": "blue",
    "house": "brown",
    "tree": "green",
    "car": "black",
    "boat": "brown",
    "fish": "purple",
    "cup": "red",
    "key": "black",
    "heart": "purple",
    "sun": "red",
    "moon": "blue",
    "flower": "green",
    "cat": "black",
    "mushroom": "black",
    "umbrella": "blue",
    "rocket": "purple",
    "bell": "brown",
}


@dataclass(frozen=True)
class Thing:
    """An object as words name it. class_name: of CLASSES; colour: of COLOURS."""

    class_name: str
    colour: str
