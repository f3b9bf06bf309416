"""The styles `plain` and `loose` of scenes: what each changes, and that nothing held out is shown."""

from collections import Counter

import numpy as np
import pytest

from lactok.data.scenes import Split, Style, scene, scene_of
from lactok.data.scenes.backgrounds import LIGHT
from lactok.data.scenes.combinations import coloured, facts, is_held_out
from lactok.data.scenes.content import Content, in_own_colours
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.loose import random_shape
from lactok.data.scenes.raster import FULL, coverage
from lactok.data.scenes.vocabulary import (
    CLASSES,
    COLOURS,
    NAMELESS,
    OWN_COLOURS,
    RELATIONS,
    Relation,
    Task,
    Thing,
)
from lactok.generators.word_encoder import scene_words
from tests.test_scenes import digest_of

STYLES = {
    Style.PLAIN: "110261bde68ebabbcc611e38b72ef62070914d405c7adece8070b40557338903",
    Style.LOOSE: "f5cac4fcef5efdee4afe555d67867e099a340410c639a1eafd1cb04440742956",
}


def test_a_plain_scene_asks_the_same_and_shows_it_large_on_a_flat_background():
    for index in range(24):
        varied, plain = scene(6, index, 96), scene(6, index, 96, style=Style.PLAIN)
        assert (plain.canonical, plain.metadata) == (varied.canonical, varied.metadata)
        assert plain.background == "flat"
        behind = np.ones(plain.image.shape[:2], bool)
        for left, top, right, low in (thing.box for thing in plain.objects):
            behind[round(top * 96) : round(low * 96), round(left * 96) : round(right * 96)] = False
        (colour,) = np.unique(plain.image[behind], axis=0)
        assert tuple(colour) in LIGHT
        least = 0.81 if len(plain.objects) == 1 and plain.objects[0].box[2] - plain.objects[0].box[0] > 0.5 else 0.43
        for thing in plain.objects:
            assert max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) >= 0.7 * least
            assert thing.rgb == COLOURS[thing.colour]
    alone = [scene(6, 6 * index, 96, style=Style.PLAIN).objects[0].box for index in range(24)]
    assert {right - left > 0.5 or low - top > 0.5 for left, top, right, low in alone} == {True, False}
    assert {scene(6, index, 64).background for index in range(24)} > {"flat"}
    with pytest.raises(ValueError, match="busy"):
        scene(6, 0, 64, style="busy")  # type: ignore[arg-type]


def test_a_plain_scene_has_colours_that_its_caption_says_or_each_class_its_own():
    told = Counter()
    for split in Split:
        for index in range(240):
            made = scene(6, index, 32, split, Style.PLAIN)
            said = [colour for colour in COLOURS if f" {colour} " in f" {made.caption} "]
            told[bool(said)] += 1
            colours = {thing.colour for thing in made.objects}
            if said:
                assert colours == set(said), made.caption
                continue
            assert made.metadata["tag"] not in ("colors", "color_attr")
            first, *others = made.objects
            assert first.colour == OWN_COLOURS[first.class_name]
            if split is not Split.TRAIN or made.metadata["tag"] == "counting":
                assert all(o.colour == OWN_COLOURS[o.class_name] for o in others)
    assert told[False] > 200
    assert told[True] > 400
    assert set(OWN_COLOURS) == set(CLASSES)
    assert not any(is_held_out(coloured(Thing(*item))) for item in OWN_COLOURS.items())


def test_colours_stay_as_drawn_where_each_own_one_would_be_held_out():
    """A rocket in no class's colour may stand beside a black key in the split `train`."""
    things, relation = (Thing("key", "orange"), Thing("rocket", "yellow")), Relation.RIGHT_OF
    assert not any(is_held_out(fact) for fact in facts(things, relation))
    for colour in OWN_COLOURS.values():
        own = (Thing("key", OWN_COLOURS["key"]), Thing("rocket", colour))
        assert any(is_held_out(fact) for fact in facts(own, relation))
    content = Content(Task.TWO_OBJECT, things, relation)
    assert in_own_colours(content, Split.TRAIN) == content
    assert in_own_colours(content, Split.ALL).things == tuple(Thing(c, OWN_COLOURS[c]) for c in ("key", "rocket"))


def test_a_plain_scene_shows_an_object_by_the_same_pixels_wherever_it_stands():
    """At 64 pixels frames are 16 or 32 pixels apart: a multiple of the 8 pixels that an id of llamagen-mini covers."""

    def red_cat(relation: Relation) -> tuple[np.ndarray, int, int]:
        cat = {"class": "cat", "color": "red", "position": [str(relation), 0]}
        line = {"tag": "position", "include": [{"class": "cup", "color": "blue"}, cat]}
        made = scene_of(line, "this says its colours", 64, Style.PLAIN)
        assert [(thing.class_name, thing.colour) for thing in made.objects] == [("cat", "red"), ("cup", "blue")]
        red = (made.image == COLOURS["red"]).all(-1)
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        return red[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(rows[0]), int(columns[0])

    seen = {relation: red_cat(relation) for relation in RELATIONS}
    shapes = [shape for shape, _, _ in seen.values()]
    assert all(np.array_equal(shape, shapes[0]) for shape in shapes)
    assert len({top % 8 for _, top, _ in seen.values()}) == len({left % 8 for _, _, left in seen.values()}) == 1


def test_a_plain_scene_of_another_aspect_has_its_places_in_the_middle():
    wide, square = scene(6, 4, (64, 128), style=Style.PLAIN), scene(6, 4, 64, style=Style.PLAIN)
    assert np.array_equal(wide.image[:, 32:96], square.image)


@pytest.mark.parametrize("style", STYLES)
def test_the_bytes_of_other_styles_are_those_of_every_machine(style: Style):
    assert digest_of(scene(5, index, 64, style=style) for index in range(24)) == STYLES[style]


def test_a_loose_scene_is_a_plain_one_in_shades_with_random_shapes():
    made = [scene(6, index, 64, Split.TRAIN, Style.LOOSE) for index in range(360)]
    nameless = [one for one in made if any(thing.class_name == NAMELESS for thing in one.objects)]
    assert 0.3 < len(nameless) / len(made) < 0.5
    assert {thing.colour for one in nameless for thing in one.objects if thing.class_name == NAMELESS} == set(COLOURS)
    exact = 0
    for index, one in enumerate(made):
        plain = scene(6, index, 64, Split.TRAIN, Style.PLAIN)
        assert one.background == plain.background
        assert np.array_equal(one.image[0, -1], plain.image[0, -1]), "the corner shows the background"
        assert (NAMELESS in one.caption) == (one in nameless)
        for thing, exactly in zip(one.objects, plain.objects, strict=True):
            assert thing.class_name in (NAMELESS, exactly.class_name)
            assert thing.class_name == NAMELESS or thing.colour == exactly.colour
            apart = {name: sum((a - b) ** 2 for a, b in zip(thing.rgb, rgb)) for name, rgb in COLOURS.items()}
            assert 2 * apart.pop(thing.colour) <= min(apart.values()), "the shade is nearest to another colour"
            exact += thing.rgb == COLOURS[thing.colour]
    assert 0.25 < exact / sum(len(one.objects) for one in made) < 0.6


def test_nothing_held_out_is_in_loose_scenes_of_train():
    for index in range(600):
        things = [Thing(t.class_name, t.colour) for t in scene(2, index, 32, Split.TRAIN, Style.LOOSE).objects]
        named = [thing for thing in things if thing.class_name != NAMELESS]
        assert not any(is_held_out(coloured(thing)) for thing in named)


def test_no_prompt_asks_for_a_random_shape():
    line = {"tag": "single_object", "include": [{"class": NAMELESS, "count": 1}], "prompt": "a shape"}
    with pytest.raises(ValueError, match="expected 1 to 4 of the classes and colours of scenes"):
        scene_of(line, "key")
    assert NAMELESS not in scene_words(), "to the text encoder it is a word that it does not know"


def test_random_shapes_fill_some_of_their_frame():
    shares = [np.mean(coverage(random_shape(Draws(f"shape {i}")), 32)) / FULL for i in range(200)]
    assert min(shares) > 0.01
    assert np.mean(shares) > 0.15
    assert len(set(shares)) > 190
