"""Muon: it steps the matrices as torch's does, leaves the rest to AdamW, and a run with it resumes to the same bits."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from baselines.tokenizers.llamagen.objective import VQRecipe
from lactok.checkpoint_file import read_checkpoint
from lactok.train.__main__ import main
from lactok.train.config import OptimizerConfig, TrainConfigError, compose_config
from lactok.train.dry_run import plan
from lactok.train.loop import _Run, train
from lactok.train.optimizer import Float32Products, build_optimizers, muon_matrices
from lactok.train.recipe import Batch
from lactok.train.run_folder import RunFolderError
from tests.support import pictures
from tests.test_train import settings
from tests.tiny_lactok import quick_training

MUON = OptimizerConfig(name="muon", learning_rate=1e-2, weight_decay=0.1)
CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.narrow = nn.Conv2d(32, 8, 3)
        self.pointwise = nn.Conv2d(8, 16, 1)  # of too few columns
        self.words = nn.Embedding(40, 24)
        self.tied = nn.Linear(24, 40, bias=False)
        self.again = self.tied
        self.shared = nn.Linear(24, 40, bias=False)
        self.shared.weight = self.words.weight
        self.frozen = nn.Linear(24, 24).requires_grad_(False)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(autouse=True, scope="module")
def _quick():
    with quick_training():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), count=10)


def run(data: Path, out: Path, optimizer: OptimizerConfig = MUON, **changed) -> dict[str, torch.Tensor]:
    """A tiny run, or its next part; what it exports."""
    train(replace(settings(data, out), optimizer=optimizer, **changed), VQRecipe)
    return load_file(out / "vq-mini.safetensors")


def give_gradients(net: nn.Module, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = gradient.contiguous(memory_format=layout) if p.ndim == 4 else gradient


def test_muon_takes_trained_matrices_once(net: Net):
    assert muon_matrices(net) == [net.first.weight, net.tied.weight]
    _, adam = build_optimizers(net, MUON, CPU)
    in_adam = {id(p) for group in adam.param_groups for p in group["params"]}
    trained = [p for p in net.parameters() if p.requires_grad]
    assert in_adam == {id(p) for p in trained} - {id(net.first.weight), id(net.tied.weight)}
    assert len(build_optimizers(net, replace(MUON, name="adamw"), CPU)) == 1


@pytest.mark.parametrize("gradients", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_stepped_as_torchs_muon_steps_the_matrix(net: Net, monkeypatch, weights, gradients):
    """Whatever the order of weights and gradients in memory; three steps, so that the momentum has a part in them."""
    monkeypatch.setattr("lactok.train.optimizer.multiplies_bfloat16", lambda: True)
    net.to(memory_format=weights)
    kernel = net.first.weight.detach().flatten(1).clone(memory_format=torch.contiguous_format).requires_grad_()
    table = net.tied.weight.detach().clone().requires_grad_()
    torchs = torch.optim.Muon([kernel, table], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ours = build_optimizers(net, MUON, CPU)
    before = net.first.weight.detach().clone()
    for _ in range(3):
        give_gradients(net, gradients)
        kernel.grad = net.first.weight.grad.flatten(1).clone()
        table.grad = net.tied.weight.grad.clone()
        torchs.step()
        for optimizer in ours:
            optimizer.step()
            optimizer.zero_grad()
        assert all(p.grad is None for p in net.parameters() if p.requires_grad)
    assert (net.first.weight - before).abs().max() > 5e-3
    assert torch.allclose(net.first.weight.flatten(1), kernel, atol=2e-3)  # it multiplies in bfloat16
    assert torch.equal(net.tied.weight, table)


def test_a_cpu_without_bfloat16_multiplies_in_float32(net: Net, monkeypatch):
    """The step is torch's but for rounding, and the result is nearer to orthogonal rows."""
    steps = {}
    before = net.tied.weight.detach().clone()
    for fast in (True, False):
        monkeypatch.setattr("lactok.train.optimizer.multiplies_bfloat16", lambda fast=fast: fast)
        net.tied.weight.data.copy_(before)
        muon, _ = build_optimizers(net, replace(MUON, weight_decay=0.0), CPU)
        give_gradients(net, torch.contiguous_format)
        muon.step()
        steps[fast] = net.tied.weight.detach() - before
    assert 0 < (steps[True] - steps[False]).abs().max() < 0.02 * steps[True].abs().max()
    exact = _orthogonalised(net.tied.weight.grad * (1 + 0.95) * 0.05)
    for fast, least, most in ((False, 0, 1e-5), (True, 1e-4, 2e-2)):
        direction = -steps[fast] / steps[fast].norm() * exact.norm()
        assert least < (direction - exact).abs().max() <= most


@torch.no_grad()
def test_both_ways_to_cast_to_bfloat16_stay_float32():
    x = torch.randn(4, 4)
    with Float32Products():
        for cast in (x.bfloat16(), x.to(dtype=torch.bfloat16), x.to(torch.bfloat16)):
            assert cast.dtype == torch.float32
            assert torch.equal(cast, x)
        x.bfloat16().zero_()
        assert x.any(), "a cast gives another tensor"


def _orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """By the quintic of Muon's author, five times, in float64."""
    x = matrix.double().T  # fewer rows than columns
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T.float()


SHORT = {"steps": 6, "checkpoint_every": 2, "sample_every": 100, "accumulation": 2}


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory) -> dict[str, torch.Tensor]:
    """What a run exports that nothing interrupted."""
    return run(data, tmp_path_factory.mktemp("whole") / "run", **SHORT)


def test_a_stopped_run_goes_on_with_its_momentum(data: Path, whole: dict[str, torch.Tensor], tmp_path: Path):
    run(data, tmp_path / "parts", stop_after_minutes=1e-6, **SHORT)
    parts = run(data, tmp_path / "parts", **SHORT)
    by_adam = run(data, tmp_path / "adam", replace(MUON, name="adamw"), **SHORT)
    assert whole.keys() == parts.keys() == by_adam.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], by_adam[name]) for name in whole)


class Killed(BaseException):
    pass


def test_a_run_killed_in_the_middle_of_a_save_goes_on_from_the_one_before(
    data: Path, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Between the files of its two optimizers; what is left is as a killed process leaves it."""

    def save(value: object, file: object, **more: object) -> None:
        name = Path(str(file)).name
        written.append(name)
        if name == "optimizer_1.bin" and written.count(name) == 2:
            shutil.copytree(out, tmp_path / "killed")
            raise Killed
        torchs(value, file, **more)

    written: list[str] = []
    out, torchs = tmp_path / "run", torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(Killed):
            run(data, out, **SHORT)
    left = {p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert left == {"step-00000002", ".partial-00000004"}
    (tmp_path / "killed" / "lock").unlink()
    parts = run(data, tmp_path / "killed", **SHORT)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("step", [0, 9])
def test_several_processes_step_as_one_does(step: int):
    """Gradients from DDP's buckets; from step 5 on a part of the recipe has none."""
    small = ["options.model.vit_enc_model_size=[32,1,2]", "options.model.vit_dec_model_size=[32,1,2]"]
    config, recipe_class = compose_config(["recipe=titok", "dry_run=true", "options.perceptual=0", "steps=10", *small])
    batch = Batch(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), (1, 2), step)
    store = torch.distributed.HashStore()
    trained = []
    for alone in (True, False):
        torch.manual_seed(0)
        recipe = recipe_class(config.options, 10, 0).to(memory_format=torch.channels_last)
        before = recipe.pixel_encoder[0].weight.detach().clone()
        optimizers = build_optimizers(recipe, MUON, CPU)
        if not alone:
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            model = recipe if alone else DistributedDataParallel(recipe, find_unused_parameters=recipe_class.rests)
            for _ in range(3):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                model(batch).total.backward()
                for optimizer in optimizers:
                    optimizer.step()
        finally:
            if not alone:
                torch.distributed.destroy_process_group()
        trained.append(recipe.state_dict())
        assert torch.equal(before, recipe.pixel_encoder[0].weight) == (step == 9)
    one, other = trained
    assert [name for name in one if not torch.allclose(one[name].float(), other[name].float(), atol=1e-4)] == []


@pytest.mark.parametrize("rests", [False, True])
def test_processes_are_told_of_parameters_that_rest(data: Path, tmp_path: Path, rests: bool):
    class Resting(VQRecipe):
        pass

    Resting.rests = rests
    handler = _Run(settings(data, tmp_path / "run"), Resting, check_held_out=True).accelerator.ddp_handler
    assert handler is not None
    assert handler.find_unused_parameters == rests


def test_another_optimizer_is_refused_on_resume(data: Path, tmp_path: Path):
    run(data, tmp_path / "run", steps=1)
    with pytest.raises(RunFolderError, match=r"optimizer\.name: muon in the folder, adamw now\nGive them as they were"):
        run(data, tmp_path / "run", replace(MUON, name="adamw"), steps=1)


def test_the_run_says_what_muon_steps(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run(data, tmp_path / "run", steps=1)
    assert "M of them by Muon, 10 images" in capfd.readouterr().err

    class Narrow(VQRecipe):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self.requires_grad_(False)
            self.model.quant_conv.bias.requires_grad_(True)

    train(replace(settings(data, tmp_path / "narrow", steps=1), optimizer=MUON), Narrow)
    said = capfd.readouterr().err
    assert "0.00 M of them by Muon (no matrix of 16 rows and columns or more: AdamW steps all)" in said


def test_the_exported_command_names_what_differs_from_the_preset(data: Path, tmp_path: Path):
    run(data, tmp_path / "run", steps=1)
    command = read_checkpoint(tmp_path / "run" / "vq-mini.safetensors")[1].recipe
    assert "data.root=DIR" in command
    assert str(tmp_path) not in command
    assert "seed=" not in command
    again = compose_config([*shlex.split(command)[3:], "dry_run=true"])[0]
    assert again.optimizer == MUON
    assert again.options.model == settings(data, tmp_path).options.model
    assert (again.batch_size, again.data.validation) == (4, 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["optimizer.name=lion"], "optimizer.name=lion: expected adamw or muon"),
        (["optimizer.name=muon", "sharding=full"], "Muon needs each matrix whole"),
    ],
)
def test_what_it_cannot_do_is_refused(more: list[str], message: str):
    with pytest.raises(TrainConfigError, match=message):
        compose_config(["recipe=generator", "dry_run=true", *more])


def test_a_torch_without_muon_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.delattr(torch.optim, "Muon")
    arguments = ["recipe=vq", f"data.root='{data}'", f"out='{tmp_path / 'run'}'", "device=cpu", "data.validation=2"]
    assert main([*arguments, "options.perceptual=0", "optimizer.name=muon"]) == 2
    assert "expected torch 2.9 or later, or optimizer.name=adamw" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "the folder is free for a run by AdamW"


def test_a_dry_run_counts_one_moment_of_a_matrix():
    config, recipe = compose_config(["recipe=vq", "dry_run=true", "optimizer.name=muon", "options.perceptual=0"])
    found = plan(config, recipe)
    assert 0 < found.matrices < found.trained
    assert found.memory["Muon and AdamW"] == 2 * found.memory["gradients"] - 4 * found.matrices
