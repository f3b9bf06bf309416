"""`sharding=full` in two processes (gloo): the numbers of whole networks, half of them in each, exact resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from lactok.data.folder import DataError
from lactok.train.__main__ import main
from lactok.train.config import TrainConfigError, compose_config
from lactok.train.dry_run import plan
from lactok.train.log import CsvLog
from lactok.train.recipes.generator import GeneratorRecipe
from lactok.train.sharding import ONE_PROCESS, Shards
from tests.commands import Command
from tests.support import environment
from tests.test_generator_recipe import tensors_of
from tests.tiny_generator import quick, scene_shards, settings, train_tiny

SHARDED = "sharding=full"
CLIPPED = "optimizer.clip_norm=0.1"
"""Below every gradient's norm here, so that the norm over all parts is in every weight."""
TOLERANCE = 1e-4
"""Of float32 tensors, as a fraction of their largest value: the norm is summed in another order. float16: half a
digit."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quick():
        return scene_shards(tmp_path_factory.mktemp("captions"))


def in_pairs(shards: Path, *groups: list[list[str]]) -> str:
    """Run each group's runs (tests/sharded_runs.py) in two processes; what they printed."""
    given = ["-m", "tests.sharded_runs", str(shards), *map(json.dumps, groups)]
    done = Command(given, environment()).end()
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of data parallelism, of sharding, and of sharding that is killed after step 5, then started again."""
    folder = tmp_path_factory.mktemp("runs")
    paths = {name: folder / name for name in ("whole", "sharded", "killed")}
    whole, sharded, killed = map(str, paths.values())
    said = in_pairs(
        shards,
        [[killed, "step,5", CLIPPED, SHARDED]],
        [[whole, "", CLIPPED], [sharded, "", CLIPPED, SHARDED], [killed, "", CLIPPED, SHARDED]],
    )
    assert said.count("generator-mini: starting of 6") == 3
    assert said.count("generator-mini: going on from step 3 of 6") == 1
    return paths


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of tensors as a fraction of the largest value; of float16 ones beyond their rounding."""
    assert one.keys() == other.keys()
    found = 0.0
    for name, tensor in one.items():
        value = other[name]
        assert (tensor.shape, tensor.dtype) == (value.shape, value.dtype), name
        difference = (tensor.float() - value.float()).abs()
        if tensor.dtype == torch.float16:
            difference = (difference - torch.finfo(torch.float16).eps * tensor.float().abs()).clamp(min=0)
        found = max(found, (difference.max() / tensor.float().abs().max().clamp(min=1e-12)).item())
    return found


def curve(run: Path, name: str = "log.csv") -> list[list[float]]:
    timed = ("images_per_second", "tokens_per_second", "matrix_share")
    return [[value for key, value in row.items() if key not in timed] for row in CsvLog(run / name).rows()]


def test_the_numbers_are_those_of_whole_networks(runs: dict[str, Path]):
    assert 0 < furthest(tensors_of(runs["whole"]), tensors_of(runs["sharded"])) < TOLERANCE
    for table in ("log.csv", "validation.csv"):
        assert np.array(curve(runs["sharded"], table)) == pytest.approx(np.array(curve(runs["whole"], table)), rel=1e-5)
    assert min(row["gradient_norm"] for row in CsvLog(runs["whole"] / "log.csv").rows()) > 0.1


def test_a_process_holds_half(runs: dict[str, Path]):
    parts = [json.loads((runs["sharded"] / f"rank-{number}.json").read_text()) for number in range(2)]
    for part in parts:
        assert part["parameters"] == pytest.approx(part["all"] / 2, rel=0.01)
        assert part["average"] == part["parameters"]
        assert part["moments"] == 2 * part["parameters"]
    assert sum(part["parameters"] for part in parts) == parts[0]["all"]
    whole = json.loads((runs["whole"] / "rank-1.json").read_text())
    assert whole["parameters"] == whole["average"] == whole["moments"] / 2 == parts[0]["all"]


def test_kill_and_the_same_command_give_the_same_bits(runs: dict[str, Path]):
    wanted, got = tensors_of(runs["sharded"]), tensors_of(runs["killed"])
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], got[name])] == []
    assert curve(runs["killed"]) == curve(runs["sharded"])
    assert curve(runs["killed"], "validation.csv") == curve(runs["sharded"], "validation.csv")


@pytest.mark.slow
def test_other_settings_and_the_way_there_and_back(shards: Path, tmp_path: Path):
    """bf16, dropout, micro-batches and gradient checkpointing; a kill in the middle of a checkpoint; the checkpoint of
    a whole run goes on sharded, and the other way round."""

    def run(name: str, *more: str, death: str = "") -> list[str]:
        return [str(tmp_path / name), death, *more]

    much = (
        *("accumulation=2", "gradient_checkpointing=true", "options.model.resid_dropout_p=0.2"),
        "options.model.ffn_dropout_p=0.2",
    )
    both = [run("bf16", "precision=bf16"), run("bf16-sharded", "precision=bf16", SHARDED)]
    both += [run("much", *much), run("much-sharded", *much, SHARDED)]
    in_pairs(
        shards,
        [run("saving", SHARDED, death="save,2")],
        [run("to-whole", SHARDED, death="step,5")],
        [run("to-shards", death="step,4")],
        [run("whole"), run("saving", SHARDED), run("to-whole"), run("to-shards", SHARDED), *both],
    )
    for one, other in (("bf16", "bf16-sharded"), ("much", "much-sharded")):
        assert furthest(tensors_of(tmp_path / one), tensors_of(tmp_path / other)) < TOLERANCE
    whole = tensors_of(tmp_path / "whole")
    for name in ("saving", "to-whole", "to-shards"):  # two processes, no clipping: sums of two are in no other order
        got = tensors_of(tmp_path / name)
        assert [key for key in whole if not torch.equal(whole[key], got[key])] == [], name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks(shards: Path, tmp_path: Path):
    whole, compiled = str(tmp_path / "whole"), str(tmp_path / "compiled")
    in_pairs(shards, [[whole, "", SHARDED]], [[compiled, "", SHARDED, "options.compile=true"]])
    assert 0 < furthest(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "compiled")) < TOLERANCE


def test_one_process_says_that_there_is_nothing_to_divide(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with quick():
        train_tiny(shards, tmp_path / "run", SHARDED, "steps=1")
    said = capsys.readouterr()
    assert ONE_PROCESS in said.out + said.err


def test_what_can_not_be_sharded_is_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(TrainConfigError, match="recipe=tokens does not use sharding: leave it out"):
        compose_config(["recipe=tokens", "data.root=x", SHARDED])
    for recipe in ("vq", "ldm"):
        with pytest.raises(
            TrainConfigError, match=rf"sharding=full: recipe={recipe} trains whole networks; recipe=gen"
        ):
            compose_config([f"recipe={recipe}", "data.root=x", SHARDED])
    with pytest.raises(TrainConfigError, match="sharding=half: expected none or full"):
        settings(shards, tmp_path, "sharding=half")
    config = settings(shards, tmp_path)
    monkeypatch.setattr(GeneratorRecipe, "sharded_by", None)
    with pytest.raises(DataError, match=r"GeneratorRecipe does not say by which blocks \(Recipe\.sharded_by\)"):
        Shards(GeneratorRecipe(config.options, 1, 0), Accelerator(cpu=True))


def test_a_dry_run_divides_the_memory(capsys: pytest.CaptureFixture[str]):
    config, recipe = compose_config(["recipe=generator", "dry_run=true", "steps=1", SHARDED])
    needed = plan(config, recipe)
    fixed = sum(size for name, size in needed.memory.items() if name != "activations")
    assert needed.sharded_memory(2) - needed.sharded_memory(4) == pytest.approx(fixed / 4, abs=1)
    outside = needed.parameters - 5 * (block := 4 * 144**2 + 3 * 144 * 384 + 2 * 144)
    assert needed.gathered == outside + 2 * block
    assert main(["recipe=generator", "dry_run=true", "steps=1", SHARDED]) == 0
    assert f"GiB in each of 8 processes: all is divided\n  but activations, and {needed.gathered / 1e6:.2f} M" in (
        capsys.readouterr().out
    )
