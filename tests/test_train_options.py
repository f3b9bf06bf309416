"""Settings of a training run beside its recipe: several folders, a start, a fixed time, the perceptual network."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from baselines.tokenizers.llamagen.objective import VQOptions, VQRecipe
from lactok.checkpoint_file import read_checkpoint
from lactok.data.folder import DataError
from lactok.feature_extractors import imagenet
from lactok.train.config import TrainConfigError, compose_config
from lactok.train.distances import PerceptualDistance, PerceptualOptions, save_half_backbone
from lactok.train.loop import train
from lactok.train.run_folder import RunFolderError, finished
from lactok.weights import WeightsError
from tests.support import pictures
from tests.tiny_lactok import SHARED, TINY, quick_training


@pytest.fixture(autouse=True, scope="module")
def _quick():
    with quick_training():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), count=6)


def run(out: Path, *more: str, steps: int = 2):
    config = compose_config(["recipe=vae", f"out='{out}'", f"steps={steps}", *SHARED, *TINY["vae"], *more])
    return config, train(*config)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_networks_cut_up_by_accelerate_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """Before accelerate fails at it, or leaves them whole without a word, as it does on CPUs."""
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(DataError, match=rf"cut networks up \({kind}\): expected that of sharding=full alone"):
        run(tmp_path / "run", f"data.root='{data}'")


def test_a_run_begins_with_the_weights_of_its_start(data: Path, tmp_path: Path):
    root = f"data.root='{data}'"
    (first, _), _ = run(tmp_path / "first", root)
    # a rate of zero leaves the start as it is
    (second, _), _ = run(tmp_path / "second", root, f"init='{first.export_path}'", "optimizer.learning_rate=0")
    before, after = load_file(first.export_path), load_file(second.export_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    scaling = [read_checkpoint(c.export_path)[1].config["scaling_factor"] for c in (first, second)]
    training = [read_checkpoint(c.export_path)[1].training for c in (first, second)]
    assert [t.steps for t in training] == [2, 4], "what made the start counts, too"
    assert training[1].images == 2 * training[0].images
    assert training[1].data == training[0].data
    assert scaling[1] == pytest.approx(scaling[0], rel=0.05), "the power of the latents starts as it was measured"
    (other, _), _ = run(tmp_path / "other", root, "seed=1")
    with pytest.raises(RunFolderError, match="inputs"):
        run(tmp_path / "second", root, f"init='{other.export_path}'", "optimizer.learning_rate=0")


def test_a_start_of_another_network_is_refused(data: Path, tmp_path: Path):
    (first, _), _ = run(tmp_path / "first", f"data.root='{data}'")
    with pytest.raises(WeightsError, match="this is not a checkpoint of this recipe's network"):
        run(
            tmp_path / "other",
            f"data.root='{data}'",
            f"init='{first.export_path}'",
            "options.model.block_out_channels=[8,12]",
        )


def test_a_run_by_the_clock_ends_in_time_with_a_rate_of_nearly_zero(data: Path, tmp_path: Path):
    more = f"data.root='{data}'", "minutes=0.05"
    (config, recipe), outcome = run(tmp_path / "run", *more, steps=100_000)
    assert outcome.finished
    assert 5 < outcome.step < 100_000
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[-1] < 0.05 * max(rates)
    assert read_checkpoint(config.export_path)[1].training.steps == outcome.step
    assert finished(config, recipe)
    _, again = run(tmp_path / "run", *more, steps=100_000)
    assert (again.step, again.finished) == (outcome.step, True), "the same command takes no further step"


def test_several_folders_with_weights(data: Path, tmp_path: Path):
    other = pictures(tmp_path / "other", count=3)
    roots = f"data.root=['{data}','{other}']"
    (config, _), outcome = run(tmp_path / "run", roots, "data.weights=[3,1]")
    assert outcome.finished
    assert f"9 images of the folders {data.name}, other" in read_checkpoint(config.export_path)[1].training.data
    with pytest.raises(RunFolderError, match=r"data\.weights: \[3\.0, 1\.0\] in the folder, \[1\.0, 1\.0\] now"):
        run(tmp_path / "run", roots, "data.weights=[1,1]")


def test_samples_cut_by_processes_train_the_same_network(data: Path, tmp_path: Path):
    exports = []
    for workers in (0, 2):
        (config, _), _ = run(tmp_path / str(workers), f"data.root='{data}'", f"data.workers={workers}", steps=4)
        exports.append(config.export_path)
    assert load_file(exports[0]).keys() == load_file(exports[1]).keys()
    assert all(torch.equal(tensor, load_file(exports[1])[name]) for name, tensor in load_file(exports[0]).items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["data.root=[a,b]", "data.weights=[1]"],
            r"has 1 number\(s\), data\.root 2 folder\(s\)",
        ),
        (["data.root=[a,b]", "data.weights=[1,0]"], "expected numbers above 0"),
        (["data.root=[a,3]"], "expected a folder, or a list of them"),
        (["data.root=[]"], r"data\.root is missing"),
        (["data.root=a", "minutes=0"], "minutes=0: expected more than 0"),
        (["data.root=a", "data.workers=-1"], r"data\.workers=-1: expected 0 or more"),
        (
            ["data.root=a", "options.perceptual_network=lpips-alex"],
            "it scores, and .* not trained on what scores it",
        ),
        (["data.root=a", "options.perceptual_network=vgg"], "expected one of effnet-lite2, lpips-vgg, lpips-alex"),
        (["data.root=a", "options.perceptual_size=8"], "perceptual_size=8: expected 16 pixels or more"),
        (["data.root=a", "options.perceptual_weights=w"], "effnet-lite2 comes with its own; leave it out"),
    ],
)
@pytest.mark.parametrize("recipe", ["vq", "vae", "titok"])
def test_wrong_settings_are_explained(recipe: str, more: list[str], message: str):
    with pytest.raises(TrainConfigError, match=message):
        compose_config([f"recipe={recipe}", *more])


def test_a_folder_that_is_held_back_whole_is_named(data: Path, tmp_path: Path):
    single = pictures(tmp_path / "single", count=1)
    with pytest.raises(DataError, match="held back"):
        run(tmp_path / "run", f"data.root=['{single}','{single}']", "data.weights=[1,1]", "data.validation=2")


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """VGG-16's feature layers in half precision."""
    path = tmp_path_factory.mktemp("weights") / "vgg.safetensors"
    save_half_backbone(str(path))
    return path


def test_lpips_by_a_smaller_file_is_nearly_the_published_one(half: Path):
    assert half.stat().st_size < 31e6
    a, b = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    distances = [
        PerceptualDistance(PerceptualOptions(perceptual_network="lpips-vgg", perceptual_weights=weights))(a, b)
        for weights in (None, str(half))
    ]
    assert distances[1] == pytest.approx(distances[0], rel=0.01)
    assert not torch.equal(*distances)


def test_images_are_enlarged_for_the_network(half: Path):
    a, b = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = PerceptualOptions(perceptual_network="lpips-vgg", perceptual_weights=str(half), perceptual_size=32)
    enlarged = [torch.nn.functional.interpolate(x, (32, 32), mode="bilinear") for x in (a, b)]
    distance = PerceptualDistance(options)
    assert torch.equal(distance(a, b), distance.distance(*enlarged))


def test_what_was_trained_on_lpips_says_so():
    assert PerceptualOptions(perceptual_network="lpips-vgg").losses == ("lpips-vgg",)
    assert PerceptualOptions(perceptual_network="lpips-vgg", perceptual=0).losses == ()
    assert PerceptualOptions().losses == ()
    options = VQOptions(perceptual_network="lpips-vgg")
    assert VQRecipe.sources(options)[0] is imagenet.BACKBONES["vgg"]
    assert VQRecipe.sources(VQOptions()) == ()


def test_every_option_of_a_recipe_is_a_key():
    """Those, too, that its preset does not name."""
    given = ["options.model.n_layer=2", "options.model.n_head=2", "options.model.dim=16", "options.words.dim=96"]
    given += ["options.embeddings=codebook", "options.model.caption_dim=96", "options.model.cls_token_num=24"]
    config, _ = compose_config(["recipe=generator", "scale=paper", "data.root=a", "options.start=null", *given])
    assert (config.options.model.n_layer, config.options.words.dim, config.options.embeddings) == (2, 96, "codebook")
    assert compose_config(
        ["recipe=pixel", "accelerator=tlcm", "scale=paper", "data.root=a", "options.perceptual_size=64"]
    )
    with pytest.raises(
        TrainConfigError, match=r"unknown key 'options\.model\.n_leyer': did you mean options\.model\.n_l"
    ):
        compose_config(["recipe=generator", "scale=paper", "data.root=a", "options.model.n_leyer=2"])


def test_a_run_in_its_own_data_is_refused_before_anything_is_written(data: Path):
    """It would train on its sample images, and be refused when it resumes, as its data changed."""
    before = sorted(data.rglob("*"))
    with pytest.raises(DataError, match=r"out=.*own lies inside data\.root=.*name another out="):
        run(data / "own", f"data.root='{data}'")
    assert sorted(data.rglob("*")) == before
