"""The recipes of the baselines' miniatures and of their autoencoder: resume, what learns, what their files become."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from baselines.tokenizers.flextok.objective import FlexTokRecipe
from baselines.tokenizers.seedtok.objective import SeedRecipe, SeedTrainingOptions, _means
from baselines.tokenizers.titok.objective import TiTokRecipe
from lactok.checkpoint_file import latents_sha256, read_checkpoint, save_checkpoint, tensors_sha256
from lactok.models import autoencoder
from lactok.registry import load
from lactok.train.attention_start import grid_places, mimetic_, spread_cells
from lactok.train.config import TrainConfigError, compose_config
from lactok.train.log import CsvLog
from lactok.train.loop import _Run, train
from lactok.train.recipe import Batch
from lactok.train.run_folder import RunFolderError
from lactok.train.schedule import Progress
from lactok.weights import WeightsError, locate
from tests.support import pictures

CPU = torch.device("cpu")
TINY = {
    "vae": (
        "options.image_size=32", "options.perceptual=0", "options.model.block_out_channels=[8,16]",
        "options.model.norm_num_groups=4", "options.model.latent_channels=4",
    ),
    "titok": (
        "options.perceptual=0", "options.quantize_from=2", "options.revive_every=3", "options.model.image_size=32",
        "options.model.vit_enc_model_size=[32,1,2]", "options.model.vit_dec_model_size=[32,1,2]",
        "options.model.num_latent_tokens=8", "options.model.codebook_size=32", "options.model.pixel_ch=16",
        "options.model.pixel_codebook_size=16", "options.model.pixel_token_size=16",
    ),
    "flextok": (
        "options.model.encoder.dim=32", "options.model.encoder.depth=1", "options.model.encoder.head_dim=16",
        "options.model.decoder.dim=32", "options.model.decoder.depth=1", "options.model.decoder.head_dim=16",
        "options.model.registers=8", "options.model.grid=4", "options.sample_steps=2",
    ),
    "seed": (
        "options.features_size=32", "options.quantize_from=2", "options.revive_every=3", "options.sample_steps=2",
        "options.model.tokenizer.vit.img_size=32", "options.model.tokenizer.vit.embed_dim=32",
        "options.model.tokenizer.vit.depth=1", "options.model.tokenizer.qformer.hidden_size=32",
        "options.model.tokenizer.qformer.intermediate_size=32", "options.model.tokenizer.n_embed=32",
        "options.model.tokenizer.decode_depth=1", "options.model.tokenizer.down_widths=[16,8,4]",
        "options.model.painter.sample_size=8", "options.model.painter.block_out_channels=[16,32]",
    ),
}  # fmt: skip
"""By recipe: what is smaller than in its preset."""

TOKENIZERS = {"vae": "autoencoder-mini", "titok": "titok-mini", "flextok": "flextok-mini", "seed": "seedtok-mini"}
BASELINES = [name for name in TOKENIZERS.values() if name != "autoencoder-mini"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lactok.train.loop.plot", lambda logs, target: None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), count=8)


def settings(recipe: str, data: Path, out: Path, *more: str):
    """Config and class of a tiny run of 6 steps with checkpoints every 2."""
    return compose_config(
        [
            f"recipe={recipe}", f"data.root='{data}'", f"out='{out}'", "device=cpu", "threads=1", "steps=6",
            "batch_size=2", "checkpoint_every=2", "sample_every=6", "log_every=1", "data.validation=2",
            "data.smallest_crop=64", "data.largest_crop=128", "optimizer.warmup_steps=1", *TINY[recipe], *more,
        ]
    )  # fmt: skip


def trained(recipe: str, data: Path, out: Path, *more: str) -> Path:
    """The file that a tiny run leaves."""
    assert train(*settings(recipe, data, out, *more)).finished
    (file,) = out.glob("*.safetensors")
    return file


@pytest.fixture(scope="module")
def files(data: Path, tmp_path_factory) -> dict[str, Path]:
    return {recipe: trained(recipe, data, tmp_path_factory.mktemp(recipe) / "run") for recipe in TINY}


class Died(BaseException):
    pass


@pytest.mark.parametrize("recipe", TINY)
def test_a_run_that_dies_ends_in_the_same_bits(recipe: str, data: Path, files: dict[str, Path], tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        tick = Progress.tick

        def die(self, images):
            tick(self, images)
            if self.step == 5:
                raise Died

        patch.setattr(Progress, "tick", die)
        with pytest.raises(Died):
            trained(recipe, data, tmp_path / "run")
    again = load_file(trained(recipe, data, tmp_path / "run"))
    whole = load_file(files[recipe])
    assert again.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    logs = [CsvLog(folder / "log.csv").rows() for folder in (tmp_path / "run", files[recipe].parent)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


@pytest.mark.parametrize("recipe", TINY)
def test_all_that_is_not_frozen_learns_and_nothing_else(recipe: str, data: Path, tmp_path: Path):
    run = _Run(*settings(recipe, data, tmp_path / "run"), check_held_out=True)

    def hashes() -> dict[str, str]:
        return {n: sha256(t.contiguous().numpy().tobytes()).hexdigest() for n, t in run.recipe.state_dict().items()}

    before = hashes()
    assert run.go().finished
    after = hashes()
    changed = {name for name in before if before[name] != after[name]}
    assert not [name for name in changed if name.startswith("frozen.")]
    still = {name for name, p in run.recipe.named_parameters() if p.requires_grad} - changed
    without_effect = ("embedding", ".attn2.", ".norm2.")  # codes that nobody chose; attention to a prompt that is zero
    assert not [name for name in still if not any(part in name for part in without_effect)]


@pytest.mark.parametrize(
    ("recipe", "below"),
    [
        ("vae", {"pixel": 0.8}),
        ("titok", {"pixel": 0.9}),
        ("flextok", {"flow": 0.9}),
        ("seed", {"semantic": 0.9, "painting": 0.9}),
    ],
)
def test_loss_falls_on_photographs(recipe: str, below: dict[str, float], data: Path, tmp_path: Path):
    more = ["options.quantize_from=100", "optimizer.learning_rate=3e-3", "steps=100"] if recipe == "seed" else []
    long = ["steps=40", "sample_every=200", "batch_size=8", "checkpoint_every=100", *more]
    trained(recipe, data, tmp_path / "run", *long)
    for part, factor in below.items():
        values = [row[part] for row in CsvLog(tmp_path / "run" / "log.csv").rows()]
        assert sum(values[-5:]) < factor * sum(values[:5]), part


@pytest.mark.parametrize("recipe", TINY)
def test_the_tokenizer_takes_the_file(recipe: str, files: dict[str, Path]):
    tokenizer = tokenizer_of(TOKENIZERS[recipe], weights=str(files[recipe]), **SIZES.get(recipe, {}))
    size = tokenizer.info.input_size
    assert size == 32
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    out = tokenizer.decode(tokenizer.encode(images), [1, 2])
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert tokenizer.info.training.steps >= 6
    _, metadata = read_checkpoint(files[recipe])
    assert metadata.recipe.startswith(f"python -m lactok.train recipe={recipe} scale=mini data.root=DIR steps=6 ")


SIZES = {"vae": {"input_size": 32}, "flextok": {"keep_ids": 8}}


def tokenizer_of(name: str, **values):
    cls = load("tokenizers", name)
    return cls(cls.Options(**values), CPU)


@pytest.mark.parametrize("name", BASELINES)
def test_the_shipped_file_is_the_pinned_one(name: str):
    cls = load("tokenizers", name)
    for source in cls.weights(cls.Options()):
        assert len(source.sha256) == 64
    tokenizer = tokenizer_of(name)
    assert tokenizer.scale == "mini"
    assert tokenizer.info.training.steps > 100
    assert "non-commercial research" in tokenizer.info.training.data


@pytest.mark.parametrize("name", BASELINES)
def test_a_file_of_another_kind_is_refused(name: str, files: dict[str, Path]):
    other = files["titok" if name != "titok-mini" else "vae"]
    with pytest.raises(WeightsError, match=other.name):
        tokenizer_of(name, weights=str(other))


@pytest.mark.parametrize("name", BASELINES)
def test_no_picture_depends_on_its_batch(name: str, data: Path):
    tokenizer = tokenizer_of(name)
    size = tokenizer.info.input_size
    images = torch.cat([batch_of(data, size)] * 2)[:8]
    seeds = list(range(8))
    whole = tokenizer.encode(images).ids
    painted = tokenizer.decode(tokenizer.encode(images), seeds)
    for order in ([0], [5, 2, 7], [7, 6, 5, 4, 3, 2, 1, 0]):
        codes = tokenizer.encode(images[order])
        assert torch.equal(codes.ids, whole[order])
        again = tokenizer.decode(codes, [seeds[i] for i in order])
        assert (again - painted[order]).abs().max() < 1e-5


def batch_of(data: Path, size: int) -> torch.Tensor:
    """Eight different photographs."""
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    files = sorted(data.iterdir())
    return torch.stack([to_tensor(Image.open(file).convert("RGB").resize((size, size))) for file in files])


@pytest.mark.parametrize(("name", "cells"), [("titok-mini", 64), ("flextok-mini", 64), ("seedtok-mini", 1)])
def test_ids_say_what_the_picture_looks_like(name: str, cells: int, data: Path):
    """Images painted from their own ids are closer than from another's; SeedTok's by their mean colour, no more."""
    tokenizer = tokenizer_of(name)
    images = batch_of(data, tokenizer.info.input_size)
    painted = tokenizer.decode(tokenizer.encode(images), range(len(images)))
    images, painted = (F.adaptive_avg_pool2d(x, cells) for x in (images, painted))
    own = (painted - images).square().mean()
    another = (painted.roll(1, 0) - images).square().mean()
    assert own < 0.5 * another


def test_more_of_flextoks_ids_are_closer(data: Path):
    errors = []
    for keep in (1, 8, 64):
        tokenizer = tokenizer_of("flextok-mini", keep_ids=keep)
        images = batch_of(data, tokenizer.info.input_size)
        painted = tokenizer.decode(tokenizer.encode(images), range(len(images)))
        errors.append((painted - images).square().mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_what_hangs_on_an_autoencoder_says_so(files: dict[str, Path], data: Path, tmp_path: Path):
    config, recipe = settings("flextok", data, tmp_path / "run", f"options.autoencoder='{files['vae']}'")
    with pytest.raises(TrainConfigError, match="the autoencoder has 4 channels, the model 8"):
        train(config, recipe)
    with pytest.raises(TrainConfigError, match="the decoder gives 64 pixels a side, the encoder reads 32"):
        settings("titok", data, tmp_path / "run", "options.model.pixel_ch_mult=[1,2,4]")
    config, recipe = settings("seed", data, tmp_path / "other", "options.features_cells=[2,1]")
    said = r"image_features_dim=216: cells of the first feature maps, features_cells=\[2, 1\], give 88 means"
    with pytest.raises(TrainConfigError, match=said):
        train(config, recipe)
    with pytest.raises(TrainConfigError, match=r"features_cells=\[0\]: expected 1 to 5 numbers of cells a side"):
        settings("seed", data, tmp_path / "other", "options.features_cells=[0]")


def test_seeds_target_knows_where():
    """Cells tell an image of two halves from its mirror image; means of whole maps hardly do."""
    image = torch.zeros(1, 3, 64, 64)
    image[:, 0, :, :32], image[:, 2, :, 32:] = 0.8, 0.6
    features = load("features", "effnet-lite2")()
    apart = {}
    for side in (1, 3):
        options = SeedTrainingOptions(features_size=96, features_cells=[side])
        one, mirrored = (_means(features, each, options) for each in (image, image.flip(3)))
        assert one.shape == (1, 16 * side**2)
        apart[side] = ((one - mirrored).norm() / one.norm()).item()
    assert apart[3] > 2 * apart[1]


def test_a_decoder_trained_alone_keeps_the_latents(files: dict[str, Path], data: Path, tmp_path: Path):
    """So what was trained on them takes the new file, and no other; its own successor goes by the same latents."""
    shipped = locate(autoencoder.MINI.source())
    small = "options.image_size=32", "options.perceptual=0", "options.decoder_only=true"
    keys = ["recipe=vae", f"data.root='{data}'", "device=cpu", "threads=1", "steps=3", "batch_size=2", *small]
    keys += ["data.smallest_crop=64", "data.largest_crop=128", "data.validation=2"]
    with pytest.raises(TrainConfigError, match=r"options\.decoder_only=true: expected init=FILE, the checkpoint whose"):
        compose_config([*keys, f"out='{tmp_path / 'none'}'"])
    config, recipe = compose_config(
        [*keys, f"out='{tmp_path / 'none'}'", f"init='{locate(autoencoder.MINI.source())}'"]
    )
    with pytest.raises(TrainConfigError, match=r"expected init=FILE"):  # settings made without a command line
        train(dataclasses.replace(config, init=None), recipe)
    assert not (tmp_path / "none" / "config.json").exists(), "the folder is bound to settings that can't run"
    start, latents = shipped, latents_sha256(shipped)
    widths = f"options.model.block_out_channels={read_checkpoint(shipped)[1].config['block_out_channels']}"
    other = [*keys, widths, "options.model.norm_num_groups=4", f"init='{shipped}'", f"out='{tmp_path / 'other'}'"]
    with pytest.raises(
        WeightsError, match=r"keeps the encoder of .*, which has norm_num_groups 8, options\.model has 4"
    ):
        train(*compose_config(other))  # no shape differs, and the latents would
    for name in ("one", "two"):
        assert train(*compose_config([*keys, widths, f"out='{tmp_path / name}'", f"init='{start}'"])).finished
        start = tmp_path / name / "vae-mini.safetensors"
        before, after = load_file(shipped), load_file(start)
        moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert moved == {"decoder", "post_quant_conv"}
        made = read_checkpoint(start)[1]
        assert made.config == read_checkpoint(shipped)[1].config, "the same scaling factor"
        assert made.made_with == {"latents": latents}
    for recipe in ("flextok", "seed"):
        tokenizer_of(TOKENIZERS[recipe], weights=str(files[recipe]), autoencoder=str(start), **SIZES.get(recipe, {}))
    assert tokenizer_of("lactok-h-mini", autoencoder=str(start)).info.output_size == 128


def test_an_autoencoder_learns_from_images_of_several_sizes(data: Path, tmp_path: Path):
    """One is drawn for each step, alike in every run of a seed; what is measured has image_size."""
    keys = ["recipe=vae", f"data.root='{data}'", f"out='{tmp_path / 'run'}'", "device=cpu", "threads=1", "steps=6"]
    keys += ["batch_size=2", "options.image_size=32", "options.perceptual=0", "options.train_sizes=[16,32]"]
    keys += ["data.smallest_crop=64", "data.largest_crop=128", "data.validation=2"]
    config, recipe = compose_config(keys)
    one, other = (recipe(config.options, 6, seed) for seed in (0, 1))
    drawn = [one.image_size_at(step) for step in range(200)]
    assert Counter(drawn).keys() == {16, 32}
    assert 60 < drawn.count(16) < 140
    assert drawn == [recipe(config.options, 6, 0).image_size_at(step) for step in range(200)]
    assert drawn != [other.image_size_at(step) for step in range(200)]
    assert one.image_size == 32
    seen = []
    forward = recipe.forward

    def noted(self, batch):
        seen.append(batch.images.shape[-1])
        return forward(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "forward", noted)
        assert train(config, recipe).finished
    assert seen == drawn[:6]
    for wrong in (33, 0, -4):
        with pytest.raises(TrainConfigError, match=rf"train_sizes={wrong}: expected a positive multiple of 4"):
            compose_config([*keys, f"options.train_sizes=[32,{wrong}]"])


@pytest.fixture(scope="module")
def other_autoencoder(tmp_path_factory) -> Path:
    """One of the same sizes as the miniature that ships, with other weights."""
    state, metadata = read_checkpoint(locate(autoencoder.MINI.source()))
    path = tmp_path_factory.mktemp("vae") / "other.safetensors"
    save_checkpoint(
        path, {name: 1.01 * tensor for name, tensor in state.items()}, dataclasses.replace(metadata, made_with={})
    )
    return path


@pytest.mark.parametrize("recipe", ["flextok", "seed"])
def test_a_run_and_its_file_belong_to_one_autoencoder(
    recipe: str, files: dict[str, Path], other_autoencoder: Path, data: Path, tmp_path: Path
):
    shipped = locate(autoencoder.MINI.source())
    assert read_checkpoint(files[recipe])[1].made_with == {"autoencoder": latents_sha256(shipped)}
    mine = tmp_path / "mine.safetensors"
    shutil.copy(shipped, mine)
    other = f"options.autoencoder='{mine}'"
    assert train(*settings(recipe, data, files[recipe].parent, other)).finished, "the same weights elsewhere"
    shutil.copy(other_autoencoder, mine)
    with pytest.raises(RunFolderError, match=rf"inputs \(sha256 .*\['{tensors_sha256(shipped)}'\] in the folder, "):
        train(*settings(recipe, data, files[recipe].parent, other))
    with pytest.raises(
        WeightsError, match=r"was trained with another autoencoder: .*name the file that it was trained"
    ):
        tokenizer_of(TOKENIZERS[recipe], weights=str(files[recipe]), autoencoder=str(other_autoencoder))


@pytest.mark.parametrize(("recipe", "cls"), [("titok", TiTokRecipe), ("seed", SeedRecipe), ("flextok", FlexTokRecipe)])
def test_losses_of_parts_are_those_of_the_whole(recipe: str, cls: type, data: Path, tmp_path: Path):
    """A sample's noise follows from its seed alone, so micro-batches give the gradient of the whole."""
    config, found = settings(recipe, data, tmp_path / "run")
    assert found is cls
    torch.manual_seed(0)
    made = cls(config.options, 100, 0)
    made.eval()  # no counting of codes, no statistics
    images = batch_of(data, made.image_size)

    def gradient(parts: list[slice]) -> torch.Tensor:
        made.zero_grad()
        for part in parts:
            batch = Batch(images[part], tuple(range(8))[part], 50)
            (made(batch).total / len(parts)).backward()
        return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])

    whole, halves = gradient([slice(0, 8)]), gradient([slice(0, 4), slice(4, 8)])
    assert whole.abs().max() > 1e-4
    assert (whole - halves).abs().max() < 1e-5 * whole.abs().max()


def test_mimetic_attention_starts_at_ones_own_place():
    weights = [torch.empty(32, 32) for _ in range(4)]
    torch.manual_seed(0)
    mimetic_(*weights)
    query, key, value, projection = weights
    places = grid_places(32, 4)
    scores = (places @ query.T) @ (places @ key.T).T
    assert torch.equal(scores.argmax(1), torch.arange(16))
    assert torch.allclose(projection @ value, torch.eye(32), atol=1e-5)


def test_every_prefix_of_spread_cells_covers_the_grid():
    cells = spread_cells(8, 64)
    assert sorted(cells.tolist()) == list(range(64))
    for count, farthest in ((1, 5.7), (5, 4.3), (16, 2.3), (32, 1.5)):
        chosen = torch.stack([cells[:count] // 8, cells[:count] % 8], 1).float()
        everywhere = torch.stack([torch.arange(64) // 8, torch.arange(64) % 8], 1).float()
        assert torch.cdist(everywhere, chosen).min(1).values.max() <= farthest
    assert spread_cells(2, 6).tolist()[:4] == spread_cells(2, 6).tolist()[:4]
    assert sorted(spread_cells(2, 6).tolist()[:4]) == [0, 1, 2, 3]
