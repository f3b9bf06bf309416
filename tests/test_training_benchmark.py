"""The timed optimizer step of LacTok's training runs in miniature and really trains."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import training_steps as benchmark
from benchmarks.device_weights import draw_weights
from benchmarks.measuring import Settings
from lactok.feature_extractors import lpips

CPU = torch.device("cpu")


def test_figures_of_a_step_are_positive_and_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(CPU, "fp32", compile=False, quick=True, seconds=0.0)
    row = benchmark.measure_step("tlcm", 64, settings, rate=1e9)
    assert (row.stage, row.side, row.batch, row.steps) == ("tlcm", 64, 1, 1)
    assert row.images_per_second == pytest.approx(1 / row.seconds_per_step)
    assert row.share == pytest.approx(row.flops_per_step / row.seconds_per_step / 1e9)
    assert row.flops_per_step > 1e8
    assert row.peak_bytes is None
    assert 0 < row.loss < 100
    assert list(tmp_path.iterdir()) == []  # no run folder


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
        draw_weights(network, CPU, seed)
        distances.append(network.eval()(pictures[:1], pictures[1:]).item())
    assert distances[0] == distances[1] != distances[2]
    assert torch.isfinite(torch.tensor(distances)).all()


def test_a_step_starts_as_many_kernels_as_documented():
    step = benchmark.launches("diffusion", 512)
    page = (Path(__file__).parent.parent / "docs" / "speed.md").read_text()
    for figure in (step.forward, step.backward, step.casts):
        assert f"{figure:,}" in page
