"""Scenes: equal bytes everywhere, true labels, captions that say them, a split that holds combinations out."""

import ast
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.color import rgb2lab

from lactok.data import scene_check
from lactok.data.folder import list_images
from lactok.data.held_out import pixels_sha256
from lactok.data.scene_check import detect
from lactok.data.scenes import Scene, Split, Style, scene, scenes, write_folder
from lactok.data.scenes.__main__ import main
from lactok.data.scenes.backgrounds import BACKGROUNDS, FAMILIES, paint
from lactok.data.scenes.combinations import asked_fact, coloured, coloured_pair, counted, facts, is_held_out
from lactok.data.scenes.content import in_one_colour, in_own_colours
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.raster import FULL, SAMPLES, Polygon, coverage, disc, polygon
from lactok.data.scenes.render import captions
from lactok.data.scenes.shapes import SHAPES, silhouette
from lactok.data.scenes.vocabulary import (
    CLASSES,
    COLOUR_JITTER,
    COLOURS,
    NUMBERS,
    RELATIONS,
    TASKS,
    Task,
    Thing,
)
from tests.support import ROOT

PINNED: dict[int | tuple[int, int], str] = {
    64: "942be5978b369d796d5bfac54d4aa60aa2e83fd2ff0b813b2b43d10ee049fd5c",
    128: "86da9f27074e684e13ecc45e21a92eee92faec3b294f5b19745655f00527d23b",
    (160, 240): "cf6cf129706996ca4bafa16ba10c37d9bd17b2635af2e89a23ac0608b4571141",
}


def digest(size: int | tuple[int, int]) -> str:
    """Of twelve scenes, each task twice: pixels, captions, metadata and objects."""
    return digest_of(scenes(5, 12, size))


def digest_of(made_scenes: Iterable[Scene]) -> str:
    content = sha256()
    for made in made_scenes:
        content.update(made.image.tobytes())
        content.update(json.dumps([made.caption, made.metadata, made.background]).encode())
        content.update(json.dumps([[o.class_name, o.colour, o.rgb, o.box] for o in made.objects]).encode())
    return content.hexdigest()


@pytest.mark.parametrize("size", [64, 128, (160, 240)])
def test_the_bytes_are_those_of_every_machine(size):
    assert digest(size) == PINNED[size]


def test_what_is_drawn_needs_no_floating_point_and_no_drawing_library():
    """Boxes alone are quotients, which IEEE 754 rounds correctly everywhere."""
    for path in (ROOT / "lactok" / "data" / "scenes").glob("*.py"):
        tree = ast.parse(path.read_text())
        floats = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, float)]
        quotients = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div)]
        assert not floats, f"{path.name}: {floats}"
        assert len(quotients) == {"render.py": 4, "folder.py": 2}.get(path.name, 0), path.name  # paths, in folder.py
        assert path.name == "folder.py" or "PIL" not in path.read_text()


def same(a: Scene, b: Scene) -> bool:
    said = (a.caption, a.canonical, a.metadata, a.objects, a.background)
    return said == (b.caption, b.canonical, b.metadata, b.objects, b.background) and np.array_equal(a.image, b.image)


def test_a_scene_is_a_function_of_seed_and_index():
    first = list(scenes(3, 8, 64))
    assert same(scene(3, 5, 64), first[5])
    assert [same(a, b) for a, b in zip(scenes(3, 3, 64, start=5), first[5:])] == [True] * 3
    assert not same(scene(4, 5, 64), first[5])
    assert not same(scene(3, 11, 64), first[5])  # the same task


def test_content_and_layout_are_the_same_at_every_size():
    for index in range(12):
        small, large = scene(2, index, 64), scene(2, index, 256)
        assert (small.caption, small.metadata, small.background) == (large.caption, large.metadata, large.background)
        for a, b in zip(small.objects, large.objects, strict=True):
            assert (a.class_name, a.colour, a.rgb) == (b.class_name, b.colour, b.rgb)
            assert a.box == pytest.approx(b.box, abs=2.5 / 64)
        assert scene(2, index, (96, 200)).image.shape == (96, 200, 3)


def test_a_polygon_and_a_disc_cover_exactly_their_points():
    """Against a test of every point by itself, in integers."""
    points, side = ((100, 50), (930, 300), (500, 990), (333, 480)), 21
    n = side * SAMPLES
    ticks = (2 * np.arange(n) + 1) * 1000
    x, y = np.meshgrid(ticks, ticks)
    inside = np.zeros((n, n), bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
        x0, y0, x1, y1 = (2 * n * v for v in (x0, y0, x1, y1))
        spans = (y0 <= y) != (y1 <= y)
        side_of = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        inside ^= spans & np.where(y1 > y0, side_of <= 0, side_of >= 0)
    assert np.array_equal(Polygon(points).fill(n), inside)
    circle = (x - 2 * n * 480) ** 2 + (y - 2 * n * 510) ** 2 <= (2 * n * 333) ** 2
    assert np.array_equal(disc(480, 510, 333).fill(n), circle)
    assert coverage([polygon(0, 0, 1000, 0, 1000, 1000, 0, 1000)], 5).tolist() == [[FULL] * 5] * 5


@pytest.mark.parametrize("name", SHAPES)
def test_a_silhouette_hangs_together_and_fills_its_frame(name: str):
    for side in (24, 96):
        mask = silhouette(name, side) > FULL // 4
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        assert max(np.ptp(np.flatnonzero(mask.any(axis=a))) + 1 for a in (0, 1)) >= 0.85 * side
        assert mask.mean() > 0.15


def test_silhouettes_differ():
    masks = {name: silhouette(name, 48) / FULL for name in SHAPES}
    for a, b in itertools.combinations(masks, 2):
        for other in (masks[b], masks[b][:, ::-1]):
            assert np.minimum(masks[a], other).sum() / np.maximum(masks[a], other).sum() < 0.85, (a, b)


def test_a_silhouette_is_drawn_at_every_size_or_refused():
    assert silhouette("cat", 700).shape == (700, 700)
    with pytest.raises(ValueError, match="side=0: expected 1 to 2048"):
        silhouette("cat", 0)


def lab(colours) -> np.ndarray:
    return rgb2lab(np.asarray(colours, float).reshape(-1, 1, 3) / 255)[:, 0]


def drawn_colours() -> np.ndarray:
    """Lab of the corners of what each colour may be drawn in: (10, 8, 3)."""
    jitter = np.array(list(itertools.product((-COLOUR_JITTER, COLOUR_JITTER), repeat=3)))
    return lab(np.clip(np.array(list(COLOURS.values()))[:, None] + jitter, 0, 255)).reshape(len(COLOURS), 8, 3)


def test_colours_are_well_apart():
    drawn = drawn_colours()
    for a, b in itertools.combinations(range(len(COLOURS)), 2):
        assert np.linalg.norm(drawn[a][:, None] - drawn[b], axis=-1).min() > 24


def test_no_background_has_the_colour_of_an_object():
    objects = drawn_colours().reshape(-1, 3)
    for family in FAMILIES:
        for a, b in itertools.permutations(np.array(family), 2):
            mixed = lab([(a * (8 - k) + b * k) // 8 for k in range(9)])
            assert np.linalg.norm(mixed[:, None] - objects, axis=-1).min() >= 23.9, family


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_a_background_mixes_the_colours_of_a_family(kind):
    for size in ((64, 64), (40, 96)):
        image = paint(kind, *size, Draws("test"))
        assert image.shape == (*size, 3)
        low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
        assert any((low >= np.min(f, axis=0)).all() and (high <= np.max(f, axis=0)).all() for f in FAMILIES)
        assert (image == image[0, 0]).all() == (kind == "flat")


def relations(subject, seen_from) -> list[str]:
    """GenEval's rule for boxes x0, y0, x1, y1, as the repository states it."""
    a, b = np.array(subject).reshape(2, 2), np.array(seen_from).reshape(2, 2)
    offset = a.mean(axis=0) - b.mean(axis=0)
    shrunk = np.maximum(np.abs(offset) - 0.1 * (np.ptp(a, axis=0) + np.ptp(b, axis=0)), 0) * np.sign(offset)
    x, y = shrunk / np.linalg.norm(offset)
    tests = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return [name for name, holds in tests.items() if holds]


@pytest.mark.parametrize("size", [96, (96, 160), (160, 96)])
def test_the_metadata_are_true_by_genevals_rules(size):
    for made in scenes(8, 120, size, Split.ALL):
        line, shown = made.metadata, Counter(o.class_name for o in made.objects)
        assert shown == {clause["class"]: clause["count"] for clause in line["include"]}
        matched: list[list] = []
        for clause in line["include"]:
            objects = [o for o in made.objects if o.class_name == clause["class"]]
            matched.append(objects)
            assert "color" not in clause or {o.colour for o in objects} == {clause["color"]}
            if "position" in clause:
                relation, target = clause["position"]
                assert relations(objects[0].box, matched[target][0].box) == [relation]
        for clause in line.get("exclude", []):
            assert shown[clause["class"]] < clause["count"]


def test_metadata_have_genevals_form():
    by_task = {made.metadata["tag"]: made for made in scenes(1, 6, 64)}
    assert list(by_task) == [str(task) for task in TASKS]
    keys = {tag: (set(m.metadata), [set(c) for c in m.metadata["include"]]) for tag, m in by_task.items()}
    base, clause = {"tag", "include", "prompt"}, {"class", "count"}
    assert keys == {
        "single_object": (base, [clause]),
        "two_object": (base, [clause, clause]),
        "counting": (base | {"exclude"}, [clause]),
        "colors": (base, [clause | {"color"}]),
        "position": (base, [clause, clause | {"position"}]),
        "color_attr": (base, [clause | {"color"}, clause | {"color"}]),
    }
    assert all(made.metadata["prompt"] == made.canonical for made in by_task.values())
    counting = [made.metadata for made in scenes(1, 120, 32) if made.metadata["tag"] == "counting"]
    assert {line["include"][0]["count"] for line in counting} == {1, 2, 3, 4}


def test_objects_stand_apart_and_inside():
    for made in scenes(4, 60, 64, Split.ALL):
        boxes = np.array([o.box for o in made.objects])
        assert boxes.min() > 0
        assert boxes.max() < 1
        for (a0, b0, a1, b1), (c0, d0, c1, d1) in itertools.combinations(boxes, 2):
            assert max(c0 - a1, a0 - c1, d0 - b1, b0 - d1) >= 3 / 64 - 1e-9


def test_a_box_is_tight_around_pixels_of_the_objects_colour():
    for made in scenes(6, 30, 128):
        side = made.image.shape[0]
        for thing in made.objects:
            x0, y0, x1, y1 = (round(v * side) for v in thing.box)
            exact = (made.image == thing.rgb).all(axis=-1)
            rows, columns = (
                np.flatnonzero(exact[y0:y1, x0:x1].any(axis=1)),
                np.flatnonzero(exact[y0:y1, x0:x1].any(axis=0)),
            )
            assert rows[0] <= 4
            assert columns[0] <= 4
            assert (y1 - y0) - rows[-1] <= 5
            assert (x1 - x0) - columns[-1] <= 5


def test_a_caption_says_what_the_metadata_say():
    seen = set()
    plain = [scene(9, index, 32, Split.ALL, Style.PLAIN) for index in range(300)]
    for made in (*scenes(9, 300, 32, Split.ALL), *plain):
        seen.add(made.caption)
        text, include = f" {made.caption} ", made.metadata["include"]
        for clause in include:
            name = clause["class"] if clause["count"] == 1 else CLASSES[clause["class"]]
            assert f" {name} " in text, made.caption
            if made.metadata["tag"] != "counting" and (further := re.findall(rf"\b(?:{'|'.join(COLOURS)})\b", text)):
                assert {thing.colour for thing in made.objects} == set(further)
            if "color" in clause:
                either = rf" {clause['color']} {name} | {name} that is {clause['color']} "
                assert re.search(either, text), made.caption
            if made.metadata["tag"] == "counting":
                colour = f"(?: {made.objects[0].colour})?" if made in plain else ""
                assert re.search(f" {NUMBERS[clause['count']]}{colour} {name} $", text), made.caption
        if made.metadata["tag"] == "position":
            first = include[1]["class"]
            swapped = text.index(f" {first} ") > text.index(f" {include[0]['class']} ")
            words = {"left of": "left", "right of": "right", "above": "above over higher", "below": "below under lower"}
            relation = include[1]["position"][0]
            converse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
            said = words[converse if swapped else relation].split()
            assert any(f" {word} " in text for word in said), made.caption
        assert not re.search(r" an? (?:[aeiou])", text.replace(" an ", " ")), made.caption
        assert not re.search(r" an [^aeiou]", text), made.caption
    assert len(seen) > 250


def test_the_split_holds_a_fifth_out():
    """Of each kind, over all classes."""
    names, colours = list(CLASSES), list(COLOURS)
    things = [Thing(name, colour) for name in names for colour in colours]
    held = [is_held_out(coloured(thing)) for thing in things]
    assert np.mean(held) == pytest.approx(0.2, abs=0.06)
    for kind in (CLASSES, COLOURS):
        for value in kind:
            free = [t for t, h in zip(things, held) if value in (t.class_name, t.colour) and not h]
            assert len(free) >= 5, f"{value} is hardly in train"
    counts = [is_held_out(counted(name, n)) for name in names for n in (2, 3, 4)]
    assert np.mean(counts) == pytest.approx(0.2, abs=0.1)
    pairs = list(itertools.permutations(names, 2))
    for task in (Task.TWO_OBJECT, Task.POSITION, Task.COLOR_ATTR):
        asked = [asked_fact(task, (Thing(a, "red"), Thing(b, "blue")), r) for a, b in pairs for r in RELATIONS]
        assert np.mean([is_held_out(fact) for fact in set(asked)]) == pytest.approx(0.2, abs=0.04), task


def test_train_shows_nothing_held_out_and_held_out_asks_for_it():
    for _, content in captions(1, 900, Split.TRAIN):
        for shown in (content, in_own_colours(content, Split.TRAIN), in_one_colour(content)):
            assert not any(is_held_out(fact) for fact in facts(shown.things, shown.relation))
    for index in range(600):
        first, *others = scene(1, index, 32, Split.TRAIN, Style.PLAIN).objects
        things = [Thing(thing.class_name, thing.colour) for thing in (first, *others)]
        assert not any(is_held_out(coloured(thing)) for thing in things)
        if others and others[0].class_name != first.class_name:
            assert not is_held_out(coloured_pair(*things))
    for _, content in captions(1, 300, Split.HELD_OUT):
        asked = asked_fact(content.task, content.things, content.relation)
        assert (asked is None) == (content.task is Task.SINGLE_OBJECT)
        assert asked is None or is_held_out(asked)


def test_no_held_out_prompt_is_in_train_but_single_objects():
    train = {made.canonical for made in scenes(0, 1200, 32, Split.TRAIN)}
    held = {made.canonical for made in scenes(0, 300, 32, Split.HELD_OUT) if made.metadata["tag"] != "single_object"}
    assert not train & held


def test_every_word_is_in_train():
    words = {split: set() for split in (Split.TRAIN, Split.HELD_OUT)}
    for split, found in words.items():
        for caption, _ in captions(2, 4000, split):
            found.update(caption.split())
    assert words[Split.HELD_OUT] <= words[Split.TRAIN]
    assert {*CLASSES, *CLASSES.values(), *COLOURS, *NUMBERS[1:]} <= words[Split.TRAIN]


def test_a_folder_holds_images_and_captions(tmp_path: Path):
    folder = write_folder(tmp_path / "made", 7, seed=3, size=(48, 64), split=Split.HELD_OUT)
    assert len(list_images(folder)) == 7
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        made = scene(3, index, (48, 64), "held_out")
        pixels = np.asarray(Image.open(folder / line["file"]))
        assert np.array_equal(pixels, made.image)
        assert line["pixels_sha256"] == pixels_sha256(pixels)
        assert {key: line[key] for key in made.metadata} == made.metadata
        assert [line[k] for k in ("caption", "index", "split", "style")] == [made.caption, index, "held_out", "varied"]
        assert [thing["class_name"] for thing in line["objects"]] == [o.class_name for o in made.objects]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_is_whole_or_not_there(tmp_path: Path):
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "made", 7, size=32, done=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_folder(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "lactok.data.scenes",
        f"out={tmp_path / 'made'}",
        "count=4",
        "size=40x32",
        "seed=2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"done: 4 scenes in {tmp_path / 'made'}\n"), done.stderr
    assert Image.open(tmp_path / "made" / "000003.png").size == (32, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["count=3"], "out is missing"),
        (["out={out}"], "count is missing"),
        (["out={out}", "count=many"], "count=many: expected an integer"),
        (["out={out}", "count=0"], "count=0: expected at least 1"),
        (["out={out}", "count=1", "seed=-1"], "seed=-1, index=0: expected integers of at least 0"),
        (["out={out}", "count=1", "size=128x"], "size=128x: expected pixels"),
        (["out={out}", "count=1", "size=16"], "size 16x16: expected 32 to 2048"),
        (["out={out}", "count=1", "size=32x129"], "at most 4 times the shorter"),
        (["out={out}", "count=1", "split=test"], "split=test: expected train, held_out, all"),
        (["out={out}", "count=1", "style=busy"], "style=busy: expected varied, plain"),
        (["out={out}", "count=1", "colour=red"], "'colour=red': expected KEY=VALUE"),
        (["out={full}", "count=1"], "is not an empty folder"),
        (["out={full}/file/made", "count=1"], "can't write"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, tmp_path: Path, capsys: pytest.CaptureFixture):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("x")
    assert main([a.format(out=tmp_path / "out", full=full) for a in arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="count=-1"):
        scenes(0, -1)
    with pytest.raises(ValueError, match="'dev' is not a valid Split"):
        scene(0, 0, 64, "dev")
    with pytest.raises(ValueError, match="n=0, expected at least 1"):
        Draws("x").below(0)


def found_rightly(made: Scene, image: np.ndarray) -> bool:
    """The same objects in the same colours, at a box that overlaps by 0.8."""
    found = detect(image)
    if Counter((d.class_name, d.colour) for d in found) != Counter((o.class_name, o.colour) for o in made.objects):
        return False
    return all(max(overlap(d.box, o.box) for d in found if d.class_name == o.class_name) > 0.8 for o in made.objects)


def overlap(a, b) -> float:
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_what_is_drawn_is_detected():
    assert all(found_rightly(made, made.image) for made in scenes(21, 30, 128, Split.ALL))
    assert all(found_rightly(made, made.image) for made in scenes(22, 6, (96, 160), Split.ALL))


def test_what_is_blurred_is_detected():
    blur = ImageFilter.GaussianBlur(1)
    right = [
        found_rightly(m, np.asarray(Image.fromarray(m.image).filter(blur))) for m in scenes(23, 20, 128, Split.ALL)
    ]
    assert np.mean(right) >= 0.95


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_nothing_is_detected_where_nothing_is(kind):
    for index in range(5):
        assert detect(paint(kind, 96, 96, Draws(f"empty {index}"))) == []
    assert detect(np.zeros((64, 64, 3), np.uint8) + np.uint8(128)) == []


def test_another_object_or_colour_is_noticed():
    """Detection is of the pixels: recoloured, removed."""
    made = scene(21, 5, 128)  # two coloured objects
    first, second = made.objects
    x0, y0, x1, y1 = (round(v * 128) for v in first.box)
    erased = made.image.copy()
    erased[y0:y1, x0:x1] = made.image[0, 0]
    assert [(d.class_name, d.colour) for d in detect(erased)] == [(second.class_name, second.colour)]
    recoloured = made.image.copy()
    recoloured[(made.image == first.rgb).all(axis=-1)] = COLOURS["green"]
    expected = {(first.class_name, "green"), (second.class_name, second.colour)}
    assert {(d.class_name, d.colour) for d in detect(recoloured)} == expected


def test_detection_takes_images_alone():
    with pytest.raises(ValueError, match=r"float32 \(8, 8, 3\): expected uint8"):
        detect(np.zeros((8, 8, 3), np.float32))


def test_the_checks_conversion_to_lab_is_skimages():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.testing.assert_allclose(scene_check._lab(image), rgb2lab(image), atol=0.05)
