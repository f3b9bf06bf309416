"""LacTok's own recipes, trained in a tiny chain: resume, what learns, gradients, and the parts that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from lactok.checkpoint_file import read_checkpoint, save_checkpoint
from lactok.tokenizers.mini_parts import load_few_step_lora, load_ldm, vq_source
from lactok.train.config import TrainConfig, TrainConfigError, compose_config
from lactok.train.loop import _Run, accumulate_gradients, train
from lactok.train.noise import normal, timesteps
from lactok.train.recipe import Batch, Recipe
from lactok.train.recipes.few_step_lora import POINT
from lactok.train.recipes.pixel import SAMPLER
from lactok.train.recipes.trainable_copy import TrainableCopyRecipe
from lactok.train.schedule import Progress
from lactok.weights import WeightsError, locate
from tests.support import pictures
from tests.tiny_lactok import CHAIN, quick_training, settings

RUNS = [name for name in CHAIN if name != "vae-mini"]
COPIES = [name for name in RUNS if CHAIN[name][0] in ("diffusion", "pixel")]
STEPS = ("steps=6", "checkpoint_every=3", "optimizer.learning_rate=1e-2")


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick_training():
        yield


@dataclass(frozen=True)
class Trained:
    """A finished run. before, after: sha256 by name of everything in the recipe's state."""

    config: TrainConfig
    recipe: type[Recipe]
    file: Path
    before: dict[str, str]
    after: dict[str, str]
    learn: set[str]

    def build(self, seed: int = 0, **options: object) -> Recipe:
        """The recipe anew, with other options."""
        torch.manual_seed(0)
        return self.recipe(replace(self.config.options, **options), self.config.steps, seed)


def hashes(recipe: Recipe) -> dict[str, str]:
    return {n: sha256(t.contiguous().numpy().tobytes()).hexdigest() for n, t in recipe.state_dict().items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), count=8)


@pytest.fixture(scope="module")
def chain(data: Path, tmp_path_factory) -> dict[str, Trained]:
    """All runs, each from the files of those before it."""
    runs, done = tmp_path_factory.mktemp("runs"), {}
    for name in CHAIN:
        config, recipe = settings(name, data, runs, *STEPS)
        run = _Run(config, recipe, check_held_out=True)
        before = hashes(run.recipe)
        outcome = run.go()
        assert outcome.finished
        learn = {n for n, p in run.recipe.named_parameters() if p.requires_grad}
        done[name] = Trained(config, recipe, outcome.export, before, hashes(run.recipe), learn)
    return done


def images_of(data: Path, count: int, size: int = 32) -> Tensor:
    """Different photographs (count, 3, size, size) in [0, 1]."""
    files = sorted(data.iterdir())[:count]
    return torch.stack([to_tensor(Image.open(file).convert("RGB").resize((size, size))) for file in files])


def moved(recipe: Recipe) -> Recipe:
    """With trained parameters away from their start, where zeros would hide what they do."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in recipe.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return recipe


def gradient(recipe: Recipe) -> Tensor:
    return torch.cat([p.grad.flatten() for p in recipe.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", RUNS)
def test_loss_falls_on_photographs(name: str, chain: dict[str, Trained], data: Path):
    recipe, seeds = chain[name].build(), (1, 2, 3)
    if name == "accelerator-tlcm-mini":  # at the grid's end its target is the teacher's; before, it moves as it learns
        recipe.options.evaluated_share = 1.0
        at_the_end = [s for s in range(50) if timesteps((s,), torch.device("cpu"), 3, POINT).item() == 2]
        seeds = tuple(at_the_end[:3])
    rate = 5e-3 if CHAIN[name][0] == "accelerator" else 1e-2
    optimizer = torch.optim.AdamW([p for p in recipe.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    batch, losses = Batch(images_of(data, 3), seeds, 0), []
    for _ in range(6):
        optimizer.zero_grad()
        loss = recipe(batch).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.985 * losses[0]


def test_errors_on_held_out_crops_fall(chain: dict[str, Trained]):
    for name, columns in {
        "ldm-mini": ("error_0", "error_250", "error_500", "error_750"),
        "accelerator-hypersd-mini": ("latents", "differences"),
        "diffusion-mini": ("error",),
    }.items():
        header, *rows = (chain[name].file.parent / "validation.csv").read_text().splitlines()
        first, last = ([float(v) for v in row.split(",")] for row in (rows[0], rows[-1]))
        for column in columns:
            place = header.split(",").index(column)
            assert last[place] < first[place], f"{name}: {column}"


class Died(BaseException):
    pass


@pytest.mark.parametrize("name", ["ldm-mini", "accelerator-tlcm-mini", "diffusion-mini", "pixel-tlcm-mini"])
def test_a_run_that_dies_ends_in_the_same_bits(name: str, chain: dict[str, Trained], tmp_path: Path):
    whole = chain[name]
    config = replace(whole.config, out=str(tmp_path / name))
    with pytest.MonkeyPatch.context() as patch:
        tick = Progress.tick

        def die(self, images):
            tick(self, images)
            if self.step == 4:
                raise Died

        patch.setattr(Progress, "tick", die)
        with pytest.raises(Died):
            train(config, whole.recipe)
    assert [p.name for p in (tmp_path / name / "checkpoints").iterdir()] == ["step-00000003"]
    again = train(config, whole.recipe)
    for file in (again.export, tmp_path / name / "checkpoints" / "step-00000006" / "trained.safetensors"):
        got, expected = load_file(file), load_file(whole.file.parent / file.relative_to(tmp_path / name))
        assert got.keys() == expected.keys()
        assert [n for n in got if not torch.equal(got[n], expected[n])] == []
    for log in ("log.csv", "validation.csv"):
        rows = [
            [row.split(",")[:-1] for row in (folder / log).read_text().splitlines()]  # the last column is a speed
            for folder in (tmp_path / name, whole.file.parent)
        ]
        assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("ldm-mini", "unet."),
        ("accelerator-hypersd-mini", ".lora_"),
        ("accelerator-tlcm-mini", ".lora_"),
        ("diffusion-mini", "control."),
        ("pixel-hypersd-mini", "control."),
        ("pixel-tlcm-mini", "control."),
    ],
)
def test_only_what_should_learn_changes(name: str, inside: str, chain: dict[str, Trained]):
    run = chain[name]
    changed = {n for n in run.before if run.before[n] != run.after[n]}
    assert run.before.keys() == run.after.keys()
    assert changed
    assert all(inside in n and not n.startswith("frozen.") for n in changed | run.learn)
    assert changed <= run.learn
    attention_to_zeros = ".attn2."  # the text is zero: what reads it gets no gradient
    assert [n for n in run.learn - changed if attention_to_zeros not in n and ".norm2." not in n] == []
    frozen = {n.split(".")[1] for n in run.before if n.startswith("frozen.")}
    assert (
        frozen
        == {
            "ldm": {"autoencoder"},
            "accelerator": {"autoencoder", "teacher"},
            "diffusion": {"vq", "unet", "vae"},
            "pixel": {"vq", "unet", "vae", "perceptual"},
        }[CHAIN[name][0]]
    )
    saved = load_file(run.file.parent / "checkpoints" / "step-00000006" / "trained.safetensors")
    assert set(saved) == run.learn


def test_the_accelerator_is_merged_into_the_frozen_network(chain: dict[str, Trained]):
    for accelerator in ("hypersd", "tlcm"):
        recipe = chain[f"pixel-{accelerator}-mini"].build()
        unet, _, _ = load_ldm(str(chain["ldm-mini"].file))
        plain = {n: t.clone() for n, t in unet.state_dict().items()}
        load_few_step_lora(accelerator, str(chain[f"accelerator-{accelerator}-mini"].file)).merge(unet)
        expected = unet.state_dict()
        assert all(torch.equal(t, expected[n]) for n, t in recipe.frozen["unet"].state_dict().items())
        assert any(not torch.equal(plain[n], t) for n, t in expected.items())
        start = load_file(chain["diffusion-mini"].file)
        assert all(torch.equal(t, start[n].float()) for n, t in recipe.control.state_dict().items())


@pytest.mark.parametrize("name", RUNS)
def test_micro_batches_add_up_to_one_large_batch(name: str, chain: dict[str, Trained], data: Path):
    recipe, images = moved(chain[name].build()), images_of(data, 4)

    def of(*parts: slice) -> Tensor:
        recipe.zero_grad()
        batches = [Batch(images[part], tuple(range(11, 15))[part], 6) for part in parts]
        accumulate_gradients(Accelerator(cpu=True), recipe, batches)
        return gradient(recipe)

    whole, parts = of(slice(0, 4)), of(*(slice(i, i + 1) for i in range(4)))
    assert whole.abs().max() > 1e-4
    assert (whole - parts).norm() < 1e-5 * whole.norm()


def test_tlcm_chain_has_a_gradient_through_its_last_evaluation_alone(chain: dict[str, Trained], data: Path):
    recipe, images, seeds = moved(chain["pixel-tlcm-mini"].build()), images_of(data, 2), (7, 8)
    assert recipe.timesteps == (999, 499)
    recipe(Batch(images, seeds, 0)).total.backward()
    got = gradient(recipe)

    def by_hand(detached: bool) -> Tensor:
        recipe.zero_grad()
        network, codes = recipe.lactok(), recipe.embeddings(images, recipe.encoder_size(0))
        first, second = (normal(seeds, images.new_empty(2, 4, 8, 8), SAMPLER + i) for i in range(2))
        schedule, predict = recipe.schedule, network.decoder.predict
        clean = schedule.clean(first, predict(first, 999, codes), 999)
        x = schedule.noised(clean.detach() if detached else clean, second, 499)
        output = network.images_of(schedule.clean(x, predict(x, 499, codes), 499))
        terms = recipe._distances(images, output)
        (terms["pixel"].mean() + terms["perceptual"].mean()).backward()
        return gradient(recipe)

    stopped, through = by_hand(detached=True), by_hand(detached=False)
    scale = stopped.abs().max()
    assert (got - stopped).abs().max() < 1e-4 * scale
    assert (through - stopped).abs().max() > 1e-2 * scale, "the chain's first evaluation matters to this test"


def test_colour_is_off_by_default_and_counts_cells_means_when_on(chain: dict[str, Trained], data: Path):
    for scale in ("mini", "paper"):
        config, _ = compose_config(
            ["recipe=pixel", f"scale={scale}", "accelerator=hypersd", f"data.root='{data}'", f"out='{data}/none/run'"]
        )
        assert config.options.colour == 0.0
    run, images = chain["pixel-hypersd-mini"], images_of(data, 2)
    batch = Batch(images, (1, 2), 0)
    off, on = run.build()(batch), run.build(colour=3.0)(batch)
    parts = off.parts
    assert off.total.item() == pytest.approx((parts["pixel"] + parts["perceptual"]).item(), rel=1e-6)
    assert (on.total - off.total).item() == pytest.approx(3.0 * parts["colour"].item(), rel=1e-4)

    recipe, target = run.build(), images * 2 - 1
    shifted = recipe._distances(images, target + 0.2)["colour"]
    torch.testing.assert_close(shifted, torch.full((2,), 0.04))
    checkers = torch.ones(32, 32)
    checkers[::2, ::2] = checkers[1::2, 1::2] = -1
    assert recipe._distances(images, target + 0.2 * checkers)["colour"].abs().max() < 1e-12
    alone = run.build(pixel=0.0, perceptual=0.0, colour=1.0)
    alone(batch).total.backward()
    assert gradient(alone).abs().max() > 0


@pytest.mark.parametrize("name", COPIES)
def test_the_encoders_size_is_a_function_of_seed_and_step(
    name: str, chain: dict[str, Trained], data: Path, monkeypatch
):
    one, other = (
        TrainableCopyRecipe.encoder_size.__get__(SimpleNamespace(options=chain[name].config.options, seed=s))
        for s in (0, 1)
    )
    sizes = [one(step) for step in range(300)]
    assert [one(step) for step in reversed(range(300))] == sizes[::-1]
    assert {size: sizes.count(size) > 70 for size in set(sizes)} == {56: True, 64: True, 72: True}
    assert [other(step) for step in range(300)] != sizes
    if name != "diffusion-mini":
        return
    recipe, seen = chain[name].build(), []
    embeddings = recipe.embeddings
    monkeypatch.setattr(recipe, "embeddings", lambda images, size: seen.append(size) or embeddings(images, size))
    for step in range(6):
        recipe(Batch(images_of(data, 1), (1,), step))
    assert seen == sizes[:6]
    assert embeddings(images_of(data, 1), 72).shape[-2:] == (9, 9)


def altered(file: Path, folder: Path) -> str:
    """The path of a copy of a part whose weights are a little different."""
    state, metadata = read_checkpoint(file)
    name = next(n for n, t in state.items() if t.is_floating_point() and t.numel() > 1)
    state[name] = state[name] + 0.25
    save_checkpoint(folder / file.name, state, metadata)
    return str(folder / file.name)


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("accelerator-hypersd-mini", "autoencoder", "was trained with another autoencoder"),
        ("diffusion-mini", "autoencoder", "was trained with another autoencoder"),
        ("pixel-hypersd-mini", "vq", r"diffusion-mini.safetensors was trained with another VQ encoder"),
        ("pixel-hypersd-mini", "base", r"diffusion-mini.safetensors was trained with another diffusion UNet"),
        ("pixel-tlcm-mini", "base", "name the file that it was trained with, or train it anew"),
    ],
)
def test_files_trained_with_other_parts_are_refused(
    name: str, part: str, message: str, chain: dict[str, Trained], tmp_path: Path
):
    file = {
        "vq": locate(vq_source(None)),
        "base": chain["ldm-mini"].file,
        "autoencoder": chain["vae-mini"].file,
    }[part]
    with pytest.raises(WeightsError, match=message):
        chain[name].build(**{part: altered(file, tmp_path)})


def test_an_adapter_or_a_copy_of_another_kind_is_refused(chain: dict[str, Trained], tmp_path: Path):
    pixel = chain["pixel-hypersd-mini"]
    with pytest.raises(WeightsError, match="is the few-step LoRA tlcm, expected hypersd"):
        pixel.build(adapter=str(chain["accelerator-tlcm-mini"].file))
    state, metadata = read_checkpoint(chain["accelerator-hypersd-mini"].file)
    other = replace(metadata, config={**metadata.config, "base": "0" * 64})
    save_checkpoint(tmp_path / "adapter.safetensors", state, other)
    with pytest.raises(WeightsError, match=r"adapter.safetensors was trained with another diffusion UNet"):
        pixel.build(adapter=str(tmp_path / "adapter.safetensors"))
    with pytest.raises(WeightsError, match=r"other sizes than options\.condition_widths"):
        pixel.build(condition_widths=[16])
    with pytest.raises(WeightsError, match=r"ldm-mini.safetensors: .*config is none of TrainableCopyConfig"):
        pixel.build(start=str(chain["ldm-mini"].file))
    with pytest.raises(WeightsError, match=r"diffusion-mini.safetensors: .*config is none of LDMFileConfig"):
        chain["diffusion-mini"].build(base=str(chain["diffusion-mini"].file))


def test_a_scoring_network_trains_no_miniature(data: Path):
    with pytest.raises(TrainConfigError, match="it scores, and a miniature is not trained on what scores it"):
        compose_config(
            ["recipe=pixel", "accelerator=tlcm", f"data.root='{data}'", "options.perceptual_network=lpips-alex"]
        )


@pytest.mark.parametrize("name", RUNS)
def test_files_say_what_they_were_made_with(name: str, chain: dict[str, Trained]):
    _, metadata = read_checkpoint(chain[name].file)
    recipe, accelerator = CHAIN[name]
    chosen = f"{recipe} accelerator={accelerator}" if accelerator else recipe
    assert metadata.recipe.startswith(f"python -m lactok.train recipe={chosen} scale=mini data.root=DIR steps=6 ")
    assert (metadata.training.steps, metadata.training.images, metadata.image_size) == (6, 24, 32)
    if recipe == "pixel":
        assert metadata.config["timesteps"] == ([999] if accelerator == "hypersd" else [999, 499])
        first = read_checkpoint(chain["diffusion-mini"].file)[1].training.core_hours
        assert metadata.training.core_hours >= first
