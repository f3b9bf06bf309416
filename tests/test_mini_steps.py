"""The benchmark of the miniatures' training steps runs what the trainer runs."""

from __future__ import annotations

import pytest

from benchmarks.mini_steps import RECIPES, main
from lactok.train.config import compose_config


@pytest.mark.parametrize("name", RECIPES)
def test_its_recipes_are_the_trainers(name: str):
    compose_config([*RECIPES[name], "scale=mini", "data.root=none"])


@pytest.mark.slow
def test_a_row_is_printed_for_each_recipe(capsys):
    assert main(["--recipes", "ldm,seed", "--seconds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["`ldm`", "`seed`"]


def test_an_unknown_recipe_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--recipes", "vq,vqq"])
    assert "--recipes vqq: expected some of vae, vq" in capsys.readouterr().err
