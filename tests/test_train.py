"""The trainer: loss falls, kill and resume give the same bits, gradients add up, only what should learn does."""

import os
import shutil
import signal
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from baselines.tokenizers.llamagen.objective import VQOptions, VQRecipe
from lactok.checkpoint_file import read_checkpoint
from lactok.models.vq import VQConfig, VQModel
from lactok.train.__main__ import main
from lactok.train.codebook import codebook_statistics, collapse_warning
from lactok.train.config import (
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    TrainConfigError,
    compose_config,
    loop_keys,
)
from lactok.train.help import help_text
from lactok.train.log import CsvLog
from lactok.train.loop import TrainingDiverged, _Run, accumulate_gradients, train
from lactok.train.precision import resolve, slow_bfloat16
from lactok.train.recipe import Batch, Losses, checkpoint_names
from lactok.train.run_folder import RunFolderError, open_run
from lactok.train.schedule import learning_rate
from tests.commands import Command
from tests.support import environment, pictures

MODEL = VQConfig(
    codebook_size=32, encoder_ch_mult=(1, 2), decoder_ch_mult=(1, 2), z_channels=16, ch=16, num_res_blocks=1,
    norm_num_groups=4, patch_size=4, codebook_show_usage=False,
)  # fmt: skip


def options(perceptual: float = 0.0) -> VQOptions:
    return VQOptions(model=MODEL, image_size=32, perceptual=perceptual, perceptual_stages=2, revive_every=3)


def settings(root: Path, out: Path, **changed) -> TrainConfig:
    values = {"steps": 12, "batch_size": 4, "checkpoint_every": 5, "sample_every": 6, "log_every": 3} | changed
    return TrainConfig(
        recipe="vq", scale="mini", out=str(out), device="cpu", threads=1, **values, options=options(),
        data=DataConfig(root=str(root), smallest_crop=64, largest_crop=128, validation=2),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=2, ema_decay=0.9),
    )  # fmt: skip


def train_tiny(root: str, out: str, recipe: type = VQRecipe, **changed):
    return train(settings(Path(root), Path(out), **changed), recipe)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Threads as they were; no plots, which take most of a tiny run's time (the module's whole run has one)."""
    monkeypatch.setattr("lactok.train.loop.plot", lambda logs, target: None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), count=10)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train_tiny(data, out).finished
    return out


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    """Everything that the last checkpoint and the export hold, flattened."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    found = load_file(last / "trained.safetensors")
    found |= {f"export {k}": v for k, v in load_file(run / "vq-mini.safetensors").items()}
    optimizer = torch.load(last / "optimizer.bin", weights_only=True)["state"]
    found |= {f"adam {i} {k}": v for i, state in optimizer.items() for k, v in state.items()}
    return found | {f"mean {k}": v for k, v in torch.load(last / "custom_checkpoint_0.pkl", weights_only=True).items()}


def assert_same_run(one: Path, other: Path) -> None:
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    for name in ("log.csv", "validation.csv"):
        rows = [
            [{k: v for k, v in r.items() if k != "images_per_second"} for r in CsvLog(p / name).rows()]
            for p in (one, other)
        ]
        assert rows[0] == rows[1], name


def test_loss_falls_on_photographs(data: Path, tmp_path: Path):
    train_tiny(data, tmp_path / "run", steps=60, log_every=10, sample_every=100)
    log = CsvLog(tmp_path / "run" / "log.csv").rows()
    assert log[-1]["pixel"] < 0.85 * log[0]["pixel"]
    validation = CsvLog(tmp_path / "run" / "validation.csv").rows()
    assert validation[-1]["psnr"] > validation[0]["psnr"] + 2


def test_what_a_run_leaves(whole: Path):
    assert [p.name for p in sorted((whole / "checkpoints").iterdir())] == ["step-00000010", "step-00000012"]
    assert [r["step"] for r in CsvLog(whole / "log.csv").rows()] == [3, 6, 9, 12]
    assert [r["step"] for r in CsvLog(whole / "validation.csv").rows()] == [0, 6, 12]
    assert {p.name for p in (whole / "samples").iterdir()} == {f"step-{s:08}.png" for s in (0, 6, 12)}
    assert Image.open(whole / "log.png").width > 500
    state, metadata = read_checkpoint(whole / "vq-mini.safetensors")
    VQModel(metadata.build_config(VQConfig)).load_state_dict(state)
    assert metadata.image_size == 32
    assert (metadata.training.steps, metadata.training.images) == (12, 48)
    command = "python -m lactok.train recipe=vq scale=mini data.root=DIR steps=12 batch_size=4 "
    assert metadata.recipe.startswith(command)


KILLS = {"step,8": 5, "save,2": 5, "step,2": None}
"""When a run is killed, and the step of the checkpoint that it leaves: after a step, or in the middle of a save."""


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory) -> dict[str, Path]:
    """Folders of the killed runs."""
    folders = {moment: tmp_path_factory.mktemp("killed") / "run" for moment in KILLS}
    kills = (f"{moment},{out}" for moment, out in folders.items())
    done = Command(["-m", "tests.killed_training", str(data), *kills], environment()).end()
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize(("moment", "last"), KILLS.items())
def test_kill_and_the_same_command_give_the_same_bits(data: Path, whole: Path, killed, moment: str, last: int | None):
    out = killed[moment]
    complete = sorted(p.name for p in (out / "checkpoints").glob("step-*"))
    assert complete == ([f"step-{last:08}"] if last else [])
    assert train_tiny(data, out).finished
    assert_same_run(whole, out)


def test_a_signal_saves_and_stops_and_the_same_command_goes_on(data: Path, whole: Path, tmp_path: Path):
    class Interrupted(VQRecipe):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    outcome = train_tiny(data, tmp_path / "run", recipe=Interrupted)
    assert (outcome.finished, outcome.step, outcome.reason) == (False, 7, "SIGTERM")
    assert train_tiny(data, tmp_path / "run").finished
    assert_same_run(whole, tmp_path / "run")


def test_the_budget_of_minutes_stops_and_saves(data: Path, tmp_path: Path):
    outcome = train_tiny(data, tmp_path / "run", stop_after_minutes=0.0)
    assert (outcome.finished, outcome.step) == (False, 1)
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()


def test_another_seed_gives_other_weights(data: Path, whole: Path, tmp_path: Path):
    train_tiny(data, tmp_path / "run", seed=1)
    a, b = load_file(whole / "vq-mini.safetensors"), load_file(tmp_path / "run" / "vq-mini.safetensors")
    assert not torch.equal(a["quant_conv.weight"], b["quant_conv.weight"])


def test_a_folder_with_another_run_is_refused(data: Path, whole: Path):
    with pytest.raises(RunFolderError, match="batch_size: 4 in the folder, 5 now"):
        train_tiny(data, whole, batch_size=5)
    assert train_tiny(data, whole, sample_every=100, checkpoint_every=99).step == 12  # these may change


def test_changed_images_are_refused(data: Path, whole: Path, tmp_path: Path):
    images, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(data, images)
    shutil.copytree(whole, out)
    assert train_tiny(images, out).step == 12  # a copy of the same images, another time of change
    assert [r["step"] for r in CsvLog(out / "validation.csv").rows()] == [0, 6, 12]
    file = images / "picture 03.png"
    pixels = np.asarray(Image.open(file).convert("RGB")).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    with pytest.raises(RunFolderError, match=r"data \(sha256 of the images' names, sizes and pixels\): \w{64} in the"):
        train_tiny(images, out)


def test_another_number_of_processes_is_refused(data: Path, whole: Path):
    with pytest.raises(RunFolderError, match=r"processes \(.*\): 1 in the folder, 2 now\nGive them as they were"):
        open_run(settings(data, whole), VQRecipe, processes=2)


@pytest.mark.parametrize("cut", [True, False])
def test_settings_that_cannot_be_read_do_not_pass_for_those_of_the_checkpoints(
    data: Path, whole: Path, tmp_path: Path, cut: bool
):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    config = out / "config.json"
    if cut:
        os.truncate(config, 40)
    else:
        config.unlink()
    said = "can't be read" if cut else "is missing"
    with pytest.raises(RunFolderError, match=rf"config\.json {said}.*: expected the settings of the run.*Put a copy"):
        train_tiny(data, out)
    shutil.rmtree(out / "checkpoints")  # one of the ways out that it names
    assert train_tiny(data, out).finished
    assert_same_run(whole, out)


def test_half_a_line_of_a_log_is_no_row(tmp_path: Path):
    log = CsvLog(tmp_path / "log.csv")
    log.append(1, {"loss": 0.5, "rate": 2.0})
    log.append(2, {"loss": 0.25, "rate": 2.0})
    whole = log.path.read_bytes()
    for kept in range(len(whole) - len(b"2,0.25,2\r\n"), len(whole)):
        log.path.write_bytes(whole[:kept])
        assert [row["step"] for row in log.rows()] == [1.0], whole[:kept]
    log.rewind(1)
    log.append(2, {"loss": 0.25, "rate": 2.0})
    assert log.path.read_bytes() == whole


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.bin", "custom_checkpoint_1.pkl", "files.json"])
def test_a_truncated_last_checkpoint_falls_back_to_the_one_before(
    data: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    last = out / "checkpoints" / "step-00000012"
    os.truncate(last / name, (last / name).stat().st_size // 2)
    assert train_tiny(data, out).finished
    said = capfd.readouterr().err
    assert f"warning: checkpoint step-00000012 is damaged: {name}" in said
    assert "going on from step 10" in said
    assert_same_run(whole, out)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [
        "damaged-step-00000012", "step-00000010", "step-00000012",
    ]  # fmt: skip


def test_nothing_is_trained_anew_unasked_when_no_checkpoint_is_intact(data: Path, whole: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in (out / "checkpoints").iterdir():
        (path / "optimizer.bin").unlink()
    with pytest.raises(
        RunFolderError, match=r"no checkpoint.*intact:\n.*12: optimizer\.bin is missing\n.*10: (.|\n)*delete"
    ):
        train_tiny(data, out)
    assert len(list((out / "checkpoints").glob("step-*"))) == 2


def test_a_folder_in_which_a_training_goes_on_is_refused(data: Path, tmp_path: Path):
    class Twice(VQRecipe):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            with pytest.raises(RunFolderError, match=f"trained in by process {os.getpid()} on "):
                train_tiny(data, tmp_path / "run")

    assert train_tiny(data, tmp_path / "run", recipe=Twice, steps=2).finished
    assert not (tmp_path / "run" / "lock").exists()


def test_a_collapse_to_one_code_is_warned_about(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    class Collapsed(VQRecipe):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self.model.quant_conv.weight.data.zero_()

        def after_step(self, step: int) -> None:
            self.model.quant_conv.weight.zero_()

    train_tiny(data, tmp_path / "run", recipe=Collapsed, steps=3, sample_every=2)
    said = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert [line.split(":")[1] for line in said] == [f" the codebook has collapsed at step {step}" for step in (2, 3)]
    assert "perplexity of 1 (3.12% of the codes are used)" in said[0]
    assert "a lower optimizer.learning_rate" in said[0]
    train_tiny(data, tmp_path / "healthy", steps=3, sample_every=2)
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ids", "warned"), [([5], True), ([5, 6], True), ([0, 1, 2], True), (range(8), False), ([5, *range(60)], False)]
)
def test_one_code_or_a_few_are_a_collapse(ids: list[int], warned: bool):
    values = codebook_statistics(torch.tensor(ids), 64)
    assert bool(collapse_warning(10, values)) == warned
    assert not collapse_warning(0, values)
    assert not collapse_warning(10, codebook_statistics(torch.tensor([0, 1]), 2)), "all codes of two are used"
    assert not collapse_warning(10, {"psnr": 20.0})


@pytest.mark.parametrize(
    ("flags", "device", "cuda", "chosen"),
    [
        ("avx512f amx_tile amx_bf16 amx_int8", "auto", False, "bf16"),
        ("avx512f amx_tile amx_bf16 amx_int8", "cpu", True, "bf16"),
        ("avx512f avx512_bf16", "auto", False, "bf16"),
        ("avx512f avx512_bf16x amx_bf16x", "auto", False, "fp32"),
        ("avx2", "cpu", True, "fp32"),
        ("avx2", "auto", True, "bf16"),
        (None, "auto", False, "fp32"),
    ],
)
def test_precision_auto_follows_the_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, device: str, cuda: bool, chosen: str
):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\nmodel name\t: amx_bf16\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr("lactok.train.precision.CPUINFO", file)
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert resolve("auto", device) == chosen
    assert (resolve("fp32", device), resolve("bf16", device)) == ("fp32", "bf16")
    slow = slow_bfloat16("bf16", torch.device("cpu"))
    fast = bool({"amx_bf16", "avx512_bf16"} & set((flags or "").split()))
    assert (slow is None) == fast
    assert slow is None or "precision=fp32, or auto, is the faster one" in slow
    assert slow_bfloat16("fp32", torch.device("cpu")) is slow_bfloat16("bf16", torch.device("cuda")) is None


def test_a_run_is_bound_to_the_precision_that_auto_chose(data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lactok.train.run_folder.resolve", lambda precision, device: "bf16")
    with pytest.raises(RunFolderError, match="precision: fp32 in the folder, bf16 now"):
        open_run(settings(data, whole, precision="auto"), VQRecipe)
    monkeypatch.setattr("lactok.train.run_folder.resolve", lambda precision, device: "fp32")
    assert open_run(settings(data, whole, precision="auto"), VQRecipe)


def test_nan_stops_and_names_the_last_good_checkpoint(data: Path, tmp_path: Path):
    class Diverging(VQRecipe):
        def forward(self, batch: Batch) -> Losses:
            losses = super().forward(batch)
            return Losses(losses.total * float("nan")) if batch.step == 7 else losses

    with pytest.raises(TrainingDiverged, match=r"step 7 is nan.*step-00000005"):
        train_tiny(data, tmp_path / "run", recipe=Diverging)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]
    good = load_file(tmp_path / "run" / "checkpoints" / "step-00000005" / "trained.safetensors")
    assert all(t.isfinite().all() for t in good.values())


def test_nan_before_the_first_checkpoint_says_so(data: Path, tmp_path: Path):
    class Diverging(VQRecipe):
        def forward(self, batch: Batch) -> Losses:
            return Losses(super().forward(batch).total * float("inf"))

    with pytest.raises(TrainingDiverged, match="there is no checkpoint yet"):
        train_tiny(data, tmp_path / "run", recipe=Diverging)


def test_micro_batches_add_up_to_one_large_batch(data: Path, tmp_path: Path):
    config = settings(data, tmp_path / "run", batch_size=2, accumulation=4)
    run = _Run(config, VQRecipe, check_held_out=True)
    micro = run.data.at(3)
    large = _Run(settings(data, tmp_path / "large", batch_size=8), VQRecipe, check_held_out=True).data.at(3)
    assert torch.equal(torch.cat([b.images for b in micro]), large[0].images)
    assert sum((b.seeds for b in micro), ()) == large[0].seeds

    torch.manual_seed(0)
    recipe = VQRecipe(options(perceptual=1.0), total_steps=10, seed=0)

    def gradients(batches: list[Batch]) -> torch.Tensor:
        recipe.zero_grad()
        accumulate_gradients(Accelerator(cpu=True), recipe, batches)
        return torch.cat([p.grad.flatten() for p in recipe.parameters() if p.requires_grad])

    one, several = gradients(large), gradients(micro)
    assert one.abs().max() > 0.01
    assert (one - several).abs().max() < 1e-5 * one.abs().max()


def test_only_what_should_learn_changes(data: Path, tmp_path: Path):
    class DecoderOnly(VQRecipe):
        def __init__(self, *arguments) -> None:
            options = VQOptions(model=MODEL, image_size=32, perceptual_stages=2, revive_until=0.0)
            super().__init__(options, *arguments[1:])
            for part in (self.model.encoder, self.model.quant_conv, self.model.quantizer):
                part.requires_grad_(False)

    def hashes(recipe: VQRecipe) -> dict[str, str]:
        return {n: sha256(t.contiguous().numpy().tobytes()).hexdigest() for n, t in recipe.state_dict().items()}

    run = _Run(settings(data, tmp_path / "run"), DecoderOnly, check_held_out=True)
    before = hashes(run.recipe)
    assert run.go().finished
    changed = {n for n, h in hashes(run.recipe).items() if h != before[n]}
    trained = {n for n, p in run.recipe.named_parameters() if p.requires_grad}
    assert changed == trained | {"dead_codes.used"}
    assert trained == {n for n in before if n.startswith(("model.decoder.", "model.post_quant_conv."))}
    assert any(n.startswith("frozen.perceptual.") for n in before)
    assert set(checkpoint_names(run.recipe)) == trained | {"dead_codes.used"}
    assert set(load_file(tmp_path / "run" / "checkpoints" / "step-00000012" / "trained.safetensors")) == trained | {
        "dead_codes.used"
    }


def test_dead_codes_move_onto_the_encoders_vectors():
    def revived(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        recipe = VQRecipe(options(), total_steps=10, seed=seed)
        recipe(Batch(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), (0, 1, 2, 3), 2))
        dead = recipe.dead_codes.used < 0.03 * recipe.dead_codes.used.float().mean()
        assert 0 < dead.sum() < 32
        before = recipe.model.quantizer.embedding.weight.detach().clone()
        recipe.after_step(1)  # 2 steps done: not yet time to look
        assert torch.equal(recipe.model.quantizer.embedding.weight, before)
        vectors = torch.nn.functional.normalize(recipe.dead_codes._vectors, dim=1)
        recipe.after_step(2)
        after = recipe.model.quantizer.embedding.weight.detach()
        assert torch.equal(after[~dead], before[~dead])
        assert all((vectors == code).all(1).any() for code in after[dead])
        assert recipe.dead_codes.used.sum() == 0
        return after

    assert torch.equal(revived(0), revived(0))
    assert not torch.equal(revived(0), revived(1))


def test_learning_rate_rises_then_falls_to_its_floor():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[100] == pytest.approx(0.2)


def test_bf16_and_trackers(data: Path, tmp_path: Path, capsys):
    pytest.importorskip("tensorboard")
    AcceleratorState._reset_state(reset_partial_state=True)  # one process has one precision
    try:
        train_tiny(data, tmp_path / "run", precision="bf16", trackers=["tensorboard"], steps=3)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert "step 3/3" in capsys.readouterr().err
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run" / "vq-mini.safetensors").values())


def test_the_command_composes_the_documented_preset(data: Path):
    config, recipe = compose_config(
        ["recipe=vq", f"data.root='{data}'", "optimizer.learning_rate=3e-4", "options.model.ch=32", "trackers=[wandb]"]
    )
    assert recipe is VQRecipe
    assert (config.scale, config.data.root, config.optimizer.learning_rate) == ("mini", str(data), 3e-4)
    assert config.options.model.ch == 32
    assert config.options.model.downsample_factor == 8
    assert config.options.image_size == 64
    assert config.trackers == ["wandb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe=vq", "data.root=x", "optimizer.learning_rat=1"], "did you mean optimizer.learning_rate"),
        (["recipe=vq", "data.root=x", "options.perceptul=1"], "did you mean options.perceptual"),
        (["recipe=vq", "data.root=x", "steps=many"], "steps=many"),
        (["recipe=vq", "data.root=x", "steps=0"], "steps=0: expected a whole number"),
        (["recipe=vq", "data.root=x", "precision=fp8"], "precision=fp8: expected fp32, bf16 or auto"),
        (["recipe=vq", "data.root=x", "options.image_size=65"], "image_size=65 is no multiple of 8"),
        (["recipe=vq", "data.root=x", "scale=huge"], "scale=huge: expected mini or paper"),
        (["recipe=vq", "data.root=a=b"], "quoted twice"),
        (["recipe=vq"], "data.root is missing"),
        (["recipe=vg", "data.root=x"], "did you mean 'vq'"),
        (["data.root=x"], r"recipes: .*vq"),
        (["vq"], "not of the form key=value"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str], message: str):
    with pytest.raises(Exception, match=message) as caught:
        compose_config(arguments)
    assert caught.type.__name__ in (TrainConfigError.__name__, "UnknownName")


def test_bad_data_ends_the_command_with_its_reason(tmp_path: Path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    assert main(["recipe=vq", f"data.root='{images}'", f"out='{tmp_path / 'run'}'"]) == 2
    assert "no image among" in capsys.readouterr().err
    (images / "broken.png").write_bytes(b"no")
    assert main(["recipe=vq", f"data.root='{images}'", f"out='{tmp_path / 'run'}'"]) == 2
    assert "broken.png" in capsys.readouterr().err


def test_help_teaches_every_key():
    text = help_text()
    for name, key in loop_keys().items():
        assert f"    {name} " in text
        assert key.metadata["help"] in text
    assert "recipe=vq" in text
    assert "patch_size" in text
