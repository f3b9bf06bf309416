"""What a scene shows, before anything is placed or drawn; and GenEval's metadata for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from lactok.data.scenes.combinations import Split, belongs
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.vocabulary import (
    CLASSES,
    COLOURS,
    MAX_COUNT,
    OWN_COLOURS,
    RELATIONS,
    TASKS,
    Relation,
    Task,
    Thing,
)

CLASS_NAMES, COLOUR_NAMES = tuple(CLASSES), tuple(COLOURS)


@dataclass(frozen=True)
class Content:
    """One class once or more (relation None), or two objects of two classes: things[0] is `relation` things[1]."""

    task: Task
    things: tuple[Thing, ...]
    relation: Relation | None = None


def draw_content(seed: int, index: int, split: Split) -> Content:
    """Tasks take turns: that of index i is TASKS[i % 6]. The content is drawn until it belongs to the split."""
    task = TASKS[index % len(TASKS)]
    draws = Draws(f"lactok scenes 1|{seed}|{index}|content")
    for _ in count():
        content = _draw(task, draws)
        if belongs(split, task, content.things, content.relation):
            return content
    raise AssertionError("count() does not end")


def _draw(task: Task, draws: Draws) -> Content:
    if task in (Task.SINGLE_OBJECT, Task.COLORS):
        return Content(task, (Thing(draws.choice(CLASS_NAMES), draws.choice(COLOUR_NAMES)),))
    if task is Task.COUNTING:
        class_name, number = draws.choice(CLASS_NAMES), draws.between(1, MAX_COUNT)
        if draws.below(2):
            return Content(task, (Thing(class_name, draws.choice(COLOUR_NAMES)),) * number)
        return Content(task, tuple(Thing(class_name, draws.choice(COLOUR_NAMES)) for _ in range(number)))
    classes, relation = draws.two(CLASS_NAMES), draws.choice(RELATIONS)
    if task is Task.COLOR_ATTR:  # equal colours would need no attribution
        colours = draws.two(COLOUR_NAMES)
    else:
        colours = (draws.choice(COLOUR_NAMES), draws.choice(COLOUR_NAMES))
    return Content(task, (Thing(classes[0], colours[0]), Thing(classes[1], colours[1])), relation)


def in_one_colour(content: Content) -> Content:
    """With things of one class in the first one's colour, so that words can say it."""
    return (
        content if content.relation is not None else replace(content, things=content.things[:1] * len(content.things))
    )


def in_own_colours(content: Content, split: Split) -> Content:
    """With objects whose colour is not said in their class's own (OWN_COLOURS).

    A generator then learns what a colour is from captions that say one, and not, from those that say none, which
    colours a class never has: the held-out ones. In the split `train` a second object whose own colour would make a
    held-out pair has another class's; where all do, the colours stay as they were drawn.
    """
    if content.task in (Task.COLORS, Task.COLOR_ATTR):
        return content
    *others, last = (Thing(thing.class_name, OWN_COLOURS[thing.class_name]) for thing in content.things)
    for colour in (last.colour, *OWN_COLOURS.values()):
        things = (*others, replace(last, colour=colour))
        if content.relation is None or belongs(split, content.task, things, content.relation):
            return replace(content, things=things)
    return content


def content_of(line: Mapping[str, Any], draws: Draws) -> Content:
    """What a scene that `metadata` describes may show; what it leaves open (a colour, a relation) is drawn.

    Raises ValueError for a line that is none of `metadata`'s.
    """
    try:
        task, include = Task(line["tag"]), line["include"]
        if task is Task.COUNTING:
            (clause,) = include
            name, number = clause["class"], clause["count"]
            same = draws.choice(COLOUR_NAMES) if draws.below(2) else None
            things = tuple(Thing(name, same or draws.choice(COLOUR_NAMES)) for _ in range(number))
            return _checked(Content(task, things))
        relation = draws.choice(RELATIONS) if len(include) == 2 else None
        if task is Task.POSITION:
            include = include[::-1]
            relation = Relation(include[0]["position"][0])
        things = tuple(Thing(one["class"], one.get("color") or draws.choice(COLOUR_NAMES)) for one in include)
        return _checked(Content(task, things, relation))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{dict(line)} is no metadata of a scene: {type(error).__name__}: {error}") from error


def _checked(content: Content) -> Content:
    strange = [t for t in content.things if t.class_name not in CLASSES or t.colour not in COLOURS]
    if strange or not 1 <= len(content.things) <= MAX_COUNT:
        raise ValueError(f"{strange or content.things}: expected 1 to {MAX_COUNT} of the classes and colours of scenes")
    return content


def metadata(content: Content, prompt: str) -> dict:
    """As a line of GenEval's evaluation_metadata.jsonl: tag, include, exclude (counting only), prompt.

    A clause's position is [relation, number of the clause that it is seen from].
    """
    task, things = content.task, content.things
    include: list[dict] = [{"class": name, "count": n} for name, n in Counter(t.class_name for t in things).items()]
    if task in (Task.COLORS, Task.COLOR_ATTR):
        for clause, thing in zip(include, things, strict=True):
            clause["color"] = thing.colour
    if task is Task.POSITION:
        include.reverse()
        include[1]["position"] = [str(content.relation), 0]
    line: dict = {"tag": str(task), "include": include}
    if task is Task.COUNTING:
        line["exclude"] = [{"class": things[0].class_name, "count": len(things) + 1}]
    return {**line, "prompt": prompt}
