"""Captions from a grammar: a short canonical form, and natural variants that say the same."""

from __future__ import annotations

from lactok.data.scenes.content import Content
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.vocabulary import CLASSES, NAMELESS, NAMELESS_PLURAL, NUMBERS, Relation, Task, Thing

OPENINGS = ("", "", "an image of ", "a drawing of ", "a scene with ", "an illustration of ", "we see ")
JOINED = ("{} and {}", "{} and {}", "{} with {}", "{} together with {}", "both {} and {}")
PLURALS = {**CLASSES, NAMELESS: NAMELESS_PLURAL}
COLOURED = ("{article} {colour} {name}", "{article} {colour} {name}", "{name_article} {name} that is {colour}")
RELATED: dict[Relation, tuple[str, ...]] = {
    Relation.LEFT_OF: ("{} left of {}", "{} to the left of {}", "{} on the left of {}"),
    Relation.RIGHT_OF: ("{} right of {}", "{} to the right of {}", "{} on the right of {}"),
    Relation.ABOVE: ("{} above {}", "{} over {}", "{} higher than {}"),
    Relation.BELOW: ("{} below {}", "{} under {}", "{} lower than {}"),
}


def canonical(content: Content) -> str:
    """The short form that prompts use: "three keys", "a red cat", "a boat left of an umbrella"."""
    things = content.things
    if content.task is Task.COUNTING:
        return _counted(content)
    if content.task in (Task.COLORS, Task.COLOR_ATTR):
        return " and ".join(_coloured(thing, COLOURED[0]) for thing in things)
    if content.task is Task.POSITION and content.relation is not None:
        return RELATED[content.relation][0].format(*(_plain(thing) for thing in things))
    return " and ".join(_plain(thing) for thing in things)


def caption(content: Content, draws: Draws, full: bool = False) -> str:
    """A variant: an opening, an order of the objects, a way to say colour and relation. Says what `canonical` says.

    full: says all that the scene shows, colours and relation too. Things of one class then have one colour.
    """
    opening, things = draws.choice(OPENINGS), content.things
    if content.task is Task.COUNTING:
        return opening + _counted(content, full)
    if full or content.task in (Task.COLORS, Task.COLOR_ATTR):
        form = draws.choice(COLOURED)
        phrases = [_coloured(thing, form) for thing in things]
    else:
        phrases = [_plain(thing) for thing in things]
    if len(phrases) == 1:
        return opening + phrases[0]
    relation = content.relation
    if draws.below(2):
        phrases, relation = phrases[::-1], relation and relation.converse
    if relation is not None and (full or content.task is Task.POSITION):
        return opening + draws.choice(RELATED[relation]).format(*phrases)
    return opening + draws.choice(JOINED).format(*phrases)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _plain(thing: Thing) -> str:
    return f"{_article(thing.class_name)} {thing.class_name}"


def _coloured(thing: Thing, form: str) -> str:
    return form.format(
        article=_article(thing.colour),
        colour=thing.colour,
        name=thing.class_name,
        name_article=_article(thing.class_name),
    )


def _counted(content: Content, full: bool = False) -> str:
    (name, colour), number = (content.things[0].class_name, content.things[0].colour), len(content.things)
    said = [NUMBERS[number], colour, name if number == 1 else PLURALS[name]]
    return " ".join(said if full else said[::2])
