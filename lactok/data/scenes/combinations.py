"""Which combinations training never sees.

A combination is a fact of a scene: a class in a colour, a class so many times, two classes together, two classes in a
relation, two coloured objects together. It is held out when sha256 of its text is divisible by five: 20 %. The rule
needs no list and no seed, so that two folders made apart agree.

A scene of the split `train` shows none that is held out, in its caption or not. A scene of `held_out` shows one that
is, the one that its task asks for: a purple cat for `colors`, four keys for `counting`. What has no combination is in
both: `single_object`. A random shape of style `loose` has no class, and so no combination. Single objects are never
held out (nor is a count of one), and every class, colour, number and relation is in `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cache
from hashlib import sha256

from lactok.data.scenes.vocabulary import Relation, Task, Thing

HELD_OUT_OF = 5


class Split(StrEnum):
    """train: shows nothing held out; held_out: its task's combination is held out; all: either."""

    TRAIN = "train"
    HELD_OUT = "held_out"
    ALL = "all"


@cache
def is_held_out(fact: str) -> bool:
    """Whether the combination with this text belongs to the held-out fifth."""
    return int.from_bytes(sha256(f"lactok scenes 1|{fact}".encode()).digest()[:8], "big") % HELD_OUT_OF == 0


def coloured(thing: Thing) -> str:
    """A class in a colour."""
    return f"colour|{thing.colour} {thing.class_name}"


def counted(class_name: str, count: int) -> str:
    """A class so many times."""
    return f"count|{count} {class_name}"


def together(first: str, second: str) -> str:
    """Two classes, in either order."""
    return "pair|" + "|".join(sorted((first, second)))


def related(first: str, relation: Relation, second: str) -> str:
    """`first` is `relation` `second`; "A right of B" and "B left of A" are one fact."""
    if relation in (Relation.RIGHT_OF, Relation.BELOW):
        first, relation, second = second, relation.converse, first
    return f"relation|{first} {relation} {second}"


def coloured_pair(first: Thing, second: Thing) -> str:
    """Two coloured objects, in either order."""
    return "coloured pair|" + "|".join(sorted(f"{thing.colour} {thing.class_name}" for thing in (first, second)))


def facts(things: Sequence[Thing], relation: Relation | None) -> list[str]:
    """All that a scene shows: of one class (relation None), or of two objects, things[0] `relation` things[1]."""
    shown = [coloured(thing) for thing in things]
    if relation is None:
        return [*shown, counted(things[0].class_name, len(things))] if len(things) > 1 else shown
    first, second = things
    return [
        *shown,
        together(first.class_name, second.class_name),
        related(first.class_name, relation, second.class_name),
        coloured_pair(first, second),
    ]


def asked_fact(task: Task, things: Sequence[Thing], relation: Relation | None) -> str | None:
    """The combination that the task is about; None for a single object."""
    if task is Task.COLORS:
        return coloured(things[0])
    if task is Task.COUNTING:
        return counted(things[0].class_name, len(things)) if len(things) > 1 else None
    if task is Task.SINGLE_OBJECT or relation is None:
        return None
    first, second = things
    if task is Task.TWO_OBJECT:
        return together(first.class_name, second.class_name)
    if task is Task.POSITION:
        return related(first.class_name, relation, second.class_name)
    return coloured_pair(first, second)


def belongs(split: Split, task: Task, things: Sequence[Thing], relation: Relation | None) -> bool:
    """Whether a scene of this content is in the split."""
    if split is Split.TRAIN:
        return not any(is_held_out(fact) for fact in facts(things, relation))
    if split is Split.HELD_OUT and task is not Task.SINGLE_OBJECT:
        asked = asked_fact(task, things, relation)
        return asked is not None and is_held_out(asked)
    return True
