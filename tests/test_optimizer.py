"""Muon: it steps the matrices as torch's does, leaves the rest to AdamW, and a run with it resumes to the same bits."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from baselines.tokenizers.llamagen.objective import VQRecipe
from lactok.checkpoint_file import read_checkpoint
from lactok.train.__main__ import main
from lactok.train.config import OptimizerConfig, TrainConfigError, compose_config
from lactok.train.dry_run import plan
from lactok.train.loop import train
from lactok.train.optimizer import build_optimizers, muon_matrices
from tests.support import pictures
from tests.test_train import settings

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
        self.frozen = nn.Linear(24, 24).requires_grad_(False)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


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
def test_a_kernel_is_stepped_as_torchs_muon_steps_the_matrix(net: Net, weights, gradients):
    """Whatever the order of weights and gradients in memory; three steps, so that the momentum has a part in them."""
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


def test_a_stopped_run_goes_on_with_its_momentum(data: Path, tmp_path: Path):
    whole = run(data, tmp_path / "whole")
    run(data, tmp_path / "parts", stop_after_minutes=1e-6)
    parts = run(data, tmp_path / "parts")
    by_adam = run(data, tmp_path / "adam", replace(MUON, name="adamw"))
    assert whole.keys() == parts.keys() == by_adam.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], by_adam[name]) for name in whole)


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


def test_a_dry_run_counts_one_moment_of_a_matrix():
    config, recipe = compose_config(["recipe=vq", "dry_run=true", "optimizer.name=muon", "options.perceptual=0"])
    found = plan(config, recipe)
    assert 0 < found.matrices < found.trained
    assert found.memory["Muon and AdamW"] == 2 * found.memory["gradients"] - 4 * found.matrices
