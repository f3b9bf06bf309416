"""What counts as the same picture: copies, small crops, mirrored evaluation images; and its benchmark."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from benchmarks import duplicates as benchmark
from lactok.data.construct import inspection, prints
from lactok.data.construct.inspection import EvaluationSet
from lactok.data.construct.miniature import copied
from lactok.data.construct.prints import mirrored, print_of, same_picture
from lactok.data.held_out import pixels_sha256
from tests.support import pictures

DIRECTIONS = "c8fff6b07f2f4dc5336be3a143c570ad0982034c98499703b354e77ae85a0ab4"


def test_small_crops_and_mirrored_copies_are_leaks_and_moved_objects_are_not():
    held = EvaluationSet([("cat", data.chelsea()), ("coffee", data.coffee())])
    for cut in (data.chelsea()[:, 20:], data.coffee()[12:-12, 15:-15]):
        made = copied(np.ascontiguousarray(cut), "jpeg of a resized one")
        assert held.by_picture(made, pixels_sha256(made)) in ("cat", "coffee")
    assert held.by_picture(mirrored(data.coffee()), "") == "coffee, mirrored"
    assert held.by_picture(data.rocket(), "") == ""
    ground = np.full((64, 64, 3), 90, np.uint8)
    there, moved = ground.copy(), ground.copy()
    there[20:40, 20:40] = moved[24:44, 26:46] = (220, 40, 40)
    assert not same_picture(print_of(there).thumbnail, print_of(moved).thumbnail)


def test_the_nearest_hashes_are_compared_first_where_many_are_near():
    cup = data.coffee()[:200, :300]
    draws = np.random.default_rng(0)
    noise = [np.clip(cup // 2 + draws.integers(0, 128, cup.shape), 0, 255).astype(np.uint8) for _ in range(3)]
    crowd = [(f"near {i}", noise[i % 3]) for i in range(inspection.CANDIDATES + 6)]
    held = EvaluationSet([*crowd, ("cup", cup)])
    assert held.by_picture(copied(cup, "jpeg"), "") == "cup"


def test_the_hash_is_the_same_on_every_machine():
    """Units that other machines made must compare: the directions are pinned."""

    directions = prints._directions()
    assert sha256(directions.astype("<i8").tobytes()).hexdigest() == DIRECTIONS
    assert directions.shape == (256, 192)


def test_the_benchmark_counts_what_is_found_and_what_is_taken_for_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = pictures(tmp_path / "photos", 6)
    target = tmp_path / "figures.json"
    given = [str(folder), "--photos", "6", "--scenes", "12", "--seed", "3", "--json", str(target)]
    assert benchmark.main([*given, "--changes", "planted"]) == 0
    figures = json.loads(target.read_text())
    for label, count in (("photographs", 6), ("scenes", 12)):
        assert figures[label]["images"] == count
        assert figures[label]["pairs"] == count * (count - 1) // 2
        assert figures[label]["false_duplicates"] == figures[label]["false_leaks"] == []
        assert {row["duplicates"] for row in figures[label]["found"].values()} == {1.0}
    assert "planted: jpeg of a resized one" in capsys.readouterr().out
    twice = [data.coffee()[:64, :64], data.rocket()[:64, :64], data.coffee()[:64, :64]]
    assert benchmark.false_duplicates([print_of(image) for image in twice])[0] == [2], "what is no copy must be told"
    with pytest.raises(SystemExit, match="holds 6 images, 7 are asked for"):
        benchmark.photographs(folder, 7)


def test_what_a_change_does_is_what_its_name_says():
    cup = data.coffee()[:100, :200]
    assert benchmark.CHANGES["cut by 10 %, centred"](cup).shape == (90, 180, 3)
    np.testing.assert_array_equal(benchmark.CHANGES["cut by 10 %, one side"](cup), cup[10:, 20:])
    assert benchmark.CHANGES["half the size"](cup).shape == (50, 100, 3)
    assert not benchmark.found_as_duplicate(print_of(cup), print_of(benchmark.CHANGES["grey"](data.rocket())))
