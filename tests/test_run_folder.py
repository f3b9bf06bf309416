"""What a run's folder and its export say: settings from before a key existed, and the command that makes a run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lactok.train import run_folder
from lactok.train.config import OptimizerConfig, TrainConfig, _compose, compose_config
from lactok.train.log import LOG
from lactok.train.recipe import Recipe
from lactok.train.run_folder import (
    Inputs,
    RunFolderError,
    _as_override,
    _binding,
    _settings,
    claim,
    code_revision,
    command_line,
)

INPUTS = Inputs("0" * 64)
DRY = "dry_run=true"


def composed(*overrides: str) -> tuple[TrainConfig, type[Recipe]]:
    return compose_config([*overrides, DRY])


def begin(folder: Path) -> None:
    """A step was logged there: the folder belongs to its run."""
    (folder / LOG).write_text("step,loss\n10,1.0\n")


def without(folder: Path, *keys: str) -> None:
    """The folder's settings as a version wrote them that did not have these keys."""
    path = folder / "config.json"
    kept = {key: value for key, value in json.loads(path.read_bytes()).items() if key not in keys}
    path.write_text(json.dumps(kept))


def test_a_key_that_a_run_began_before_counts_as_its_default(tmp_path: Path):
    config, _ = composed("recipe=vq")
    muon = replace(config, optimizer=replace(config.optimizer, name="muon"))
    claim(tmp_path, config, INPUTS)
    begin(tmp_path)
    whole = (tmp_path / "config.json").read_bytes()
    without(tmp_path, "optimizer.name", "options.perceptual_size", "options.model.patch_size", "seed")
    with pytest.raises(RunFolderError, match=r"optimizer\.name: adamw in the folder, muon now\n") as error:
        claim(tmp_path, muon, INPUTS)
    assert "model.patch_size: 1 in the folder, 4 now" in str(error.value), "the dataclass's default, not the preset's"
    assert "seed" not in str(error.value)
    without(tmp_path, "optimizer.name", "seed")
    (tmp_path / "config.json").write_bytes(whole)
    without(tmp_path, "optimizer.name", "options.perceptual_size", "seed")
    claim(tmp_path, config, INPUTS)
    assert (tmp_path / "config.json").read_bytes() == whole, "what it was is written down"


@pytest.mark.parametrize("key", ["data", "processes", "inputs", "steps.unknown"])
def test_what_is_no_key_has_no_default(tmp_path: Path, key: str):
    inputs = replace(INPUTS, files=("1" * 64,))
    config, _ = composed("recipe=vq")
    claim(tmp_path, config, inputs)
    begin(tmp_path)
    if key == "steps.unknown":  # of a later version
        settings = json.loads((tmp_path / "config.json").read_bytes())
        (tmp_path / "config.json").write_text(json.dumps(settings | {key: 3}))
    else:
        without(tmp_path, key)
    with pytest.raises(RunFolderError, match=key):
        claim(tmp_path, config, inputs)


def test_defaults_of_what_a_run_did_not_have_are_not_taken_for_its_own(tmp_path: Path):
    """Not even where all of them are the defaults."""
    fitting = "recipe=generator", "options.model.caption_dim=128"
    config, _ = composed(*fitting, "options.words=null")
    claim(tmp_path, config, INPUTS)
    begin(tmp_path)
    words = type(composed("recipe=generator")[0].options.words)()
    default = replace(config, options=replace(config.options, words=words))
    with pytest.raises(RunFolderError, match=r"options\.words\.dim: None in the folder"):
        claim(tmp_path, default, INPUTS)


EVERYWHERE = (
    *("optimizer.name=muon", "optimizer.learning_rate=1e-05", "optimizer.weight_decay=0.0015"),
    *("batch_size=3", "init='/a file.safetensors'", "minutes=1234567.5", "data.root='/my images'", "seed=12"),
)
SOME = {
    ("vq",): ("options.perceptual_network=lpips-vgg", "options.perceptual_weights=w", "options.model.ch=32"),
    ("vae",): ("data.root=['/a, b','/c']", "data.weights=[0.8,0.2]", "options.model.block_out_channels=[8,16]"),
    ("titok",): ("options.model.is_legacy=true", "options.perceptual_size=64"),
    ("flextok",): ("options.autoencoder='/x/vae'", "options.model.encoder.depth=2"),
    ("seed",): ("options.model.tokenizer.qformer.layer_norm_eps=1e-7",),
    ("ldm",): ("options.model.prediction=epsilon", "precision=auto"),
    ("accelerator", "hypersd"): ("options.lora.alpha=0.3", "options.base='/x'"),
    ("accelerator", "tlcm"): (),
    ("diffusion",): ("options.vq='/x'", "gradient_checkpointing=true", "threads=2", "device=cpu"),
    ("pixel", "hypersd"): ("options.start='/s'", "options.adapter='/a'"),
    ("pixel", "tlcm"): ("scale=paper", "options.networks=sdxl", "options.perceptual_network=lpips-alex"),
    ("generator",): ("options.words=null", "options.start=hub", "options.decoder_weights='/d'"),
    ("generator", None): ("scale=paper", "options.start=null"),
}


def bound(config: TrainConfig, recipe: type[Recipe]) -> dict[str, Any]:
    """What moves the weights, files as whether one is named."""
    paths = {f"options.{name}" for name in recipe.path_options}
    settings = _binding(_settings(config))
    files = {key: settings[key] is not None for key in paths if settings[key] != "hub"}
    return settings | files | {"roots": len(config.data.roots), "init": bool(config.init), "minutes": config.minutes}


def arguments(command: str) -> list[str]:
    return shlex.split(command.partition("-m lactok.train ")[2])


@pytest.mark.parametrize("recipe", SOME)
def test_the_exported_command_gives_the_same_run(recipe: tuple[str | None, ...], tmp_path: Path, monkeypatch):
    accelerator = [f"accelerator={recipe[1]}"] if recipe[1:] and recipe[1] else []
    config, recipe_class = composed(f"recipe={recipe[0]}", *accelerator, *EVERYWHERE, *SOME[recipe])
    for left in ("vae-mini", "vq-mini", "ldm-mini", "diffusion-mini"):  # other runs, where the export is written
        (tmp_path / "runs" / left).mkdir(parents=True)
        (tmp_path / "runs" / left / f"{left}.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    command = command_line(config, recipe_class.path_options)
    monkeypatch.undo()
    assert "/" not in command, "no path of this machine"
    assert bound(*composed(*arguments(command))) == bound(config, recipe_class)


def test_the_command_says_the_processes_that_share_a_step():
    config, _ = composed("recipe=vae")
    command = command_line(config, (), 2)
    assert command == "accelerate launch --num_processes 2 -m lactok.train recipe=vae scale=mini data.root=DIR"


def test_the_command_names_the_precision_that_auto_chose(monkeypatch: pytest.MonkeyPatch):
    config, _ = composed("recipe=vae", "precision=auto")
    monkeypatch.setattr(run_folder, "resolve", lambda precision, device: {"auto": "bf16"}.get(precision, precision))
    assert command_line(config).endswith("data.root=DIR precision=bf16")


def test_of_a_recipe_that_no_package_has_all_is_named():
    config = TrainConfig(recipe="mine", options=OptimizerConfig(name="a b, c", beta1=1e-05))
    said = arguments(command_line(config))
    assert {"options.name='a b, c'", "options.beta1=1e-05", "precision=fp32", "data.weights=null"} <= set(said)


@pytest.mark.parametrize(
    "text",
    [
        *("a,b", "a b", "it's", "a=b", "{x}", "[1]", "null", "True", "1e-5", "12", "", "x\\", "x\\'y", "C:\\dir\\n"),
        *("a:b", '"q"', "ü", "~/x", "$HOME", "a#b", " lead ", "-x", "nan", "a/b.c", "(", "a\\\\'b", "two\nlines"),
    ],
)
def test_any_text_is_an_override(text: str):
    for value in (text, [text, None], {"k": [text, {"j": text}]}):
        assert _compose([f"options.x={_as_override(value)}"], "none", "mini").options.x == value


@pytest.mark.parametrize(
    "value", [1e-05, 0.0015, 0.1 + 0.2, 3.0, 1e6, 1234567.5, -1e-12, float("inf"), True, None, 7, {}]
)
def test_any_number_is_an_override(value: object):
    assert _compose([f"options.x={_as_override(value)}"], "none", "mini").options.x == value


def test_code_inside_another_checkout_is_not_that_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_folder, "__file__", str(Path(run_folder.__file__).parent / "a" / "b" / "run_folder.py"))
    assert code_revision().startswith("lactok ")


def test_settings_of_a_run_that_did_not_begin_bind_nothing(tmp_path: Path):
    """Advice that follows a refusal (another batch size, a smaller data.validation) can be taken."""
    config, _ = composed("recipe=vq")
    other = replace(config, batch_size=config.batch_size + 1)
    claim(tmp_path, config, INPUTS)
    claim(tmp_path, other, INPUTS)
    begin(tmp_path)
    with pytest.raises(RunFolderError, match="batch_size"):
        claim(tmp_path, config, INPUTS)
    claim(tmp_path, other, INPUTS)


def test_settings_of_another_kind_are_not_overwritten(tmp_path: Path):
    """A folder of token shards has a config.json, and neither checkpoints nor a log."""
    config, _ = composed("recipe=vq")
    (tmp_path / "config.json").write_text('{"tokenizer": "llamagen-mini"}')
    with pytest.raises(RunFolderError, match="tokenizer: llamagen-mini in the folder, None now"):
        claim(tmp_path, config, INPUTS)
