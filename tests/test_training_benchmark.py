"""The benchmark of LacTok's training runs in miniature, really trains, and says so where it can't run at full size."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import lactok_training as benchmark
from lactok.feature_extractors import lpips

CPU = torch.device("cpu")


def test_quick_figures_are_positive_and_fit_together(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "steps.json"
    assert benchmark.main(["--quick", "--stages", "tlcm", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    for word in ("tlcm", "s/step", "matrix rate", "the figures mean nothing"):
        assert word in out
    record = json.loads(path.read_text())
    rate = record["machine"]["matrix_flops_per_second"]
    (row,) = record["rows"]
    assert (row["stage"], row["side"], row["batch"]) == ("tlcm", 64, 1)
    assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_step"])
    assert row["share"] == pytest.approx(row["flops_per_step"] / row["seconds_per_step"] / rate)
    assert row["flops_per_step"] > 1e8
    assert row["peak_bytes"] is None
    assert 0 < row["loss"] < 100
    assert record["not_measured"] == {}
    assert list(tmp_path.iterdir()) == [path]  # no run folder


@pytest.mark.parametrize(("stage", "precision"), [("diffusion", "fp32"), ("hypersd", "bf16")])
def test_a_step_moves_the_copy_alone(stage: str, precision: str):
    config, recipe_class = benchmark.stage_config(stage, 64, quick=True)
    config = dataclasses.replace(config, precision=precision, gradient_checkpointing=precision == "bf16")
    recipe = benchmark.build(config, recipe_class, CPU)
    assert not any(t.is_meta for t in [*recipe.parameters(), *recipe.buffers()])
    before = copy.deepcopy(recipe.state_dict())
    step = benchmark.Step(config, recipe, 64, CPU)
    step()
    step()
    moved = {name.split(".")[0] for name, value in recipe.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"control"}


def test_the_full_size_is_the_papers():
    config, _ = benchmark.stage_config("tlcm", 1024, quick=False)
    assert (config.precision, config.gradient_checkpointing, config.batch_size) == ("bf16", True, 1)
    options = config.options
    assert (options.networks, options.perceptual_network, options.evaluations) == ("sdxl", "lpips-vgg", 2)
    assert (options.picture_sizes, options.encoder_sizes) == ([1024], [256])


def test_drawn_weights_follow_from_the_seed_and_give_finite_features():
    """LPIPS, which only the full size has: no part of it is left without values."""
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    distances = []
    for seed in (0, 0, 1):
        network = lpips.skeleton("alex")
        benchmark.draw_weights(network, CPU, seed)
        distances.append(network.eval()(pictures[:1], pictures[1:]).item())
    assert distances[0] == distances[1] != distances[2]
    assert torch.isfinite(torch.tensor(distances)).all()


def test_without_a_gpu_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--stages", "diffusion"]) == 2
    error = capsys.readouterr().err
    assert "a CUDA device is missing" in error
    assert "--quick" in error


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch, capsys):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory is left\nmore of it")

    monkeypatch.setattr(benchmark, "measure", full)
    assert benchmark.main(["--quick", "--stages", "tlcm"]) == 1
    assert "tlcm 64: NOT MEASURED: no memory is left" in capsys.readouterr().out
