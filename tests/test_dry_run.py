"""dry_run=true: real-size networks on the meta device, what a step costs, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from lactok.registry import entries
from lactok.train.__main__ import main
from lactok.train.config import compose_config
from lactok.train.dry_run import GIB, describe, plan
from lactok.train.recipe import Batch, Losses, Recipe
from lactok.train.simulate import StepCost, recomputed_as_on_cuda, step_cost
from lactok.weights import LocalWeights, MissingWeights, UnpublishedWeights, UrlWeights, locate_all
from tests.support import pictures

ACCELERATED = ("accelerator", "pixel")


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No weights in caches, no network, and a folder to run in that has to stay empty; no precision set before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Linear(Recipe):
    """Eight to eight numbers, without anything else."""

    def __init__(self, keep: bool = True) -> None:
        super().__init__(None, 10, 0)
        self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)])
        self.layers[0].requires_grad_(keep)

    image_size = 8

    def forward(self, batch: Batch) -> Losses:
        x = batch.images  # (B, 3, 8, 8): 24 B rows of 8
        for layer in self.layers:
            x = layer(x)
        return Losses(x.sum())

    def reconstruct(self, images: Tensor, seeds) -> Tensor:
        return images

    def export(self, path, provenance) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(("batch", "micro"), [(2, 1), (5, 3)])
def test_flops_of_a_step_are_those_of_its_products(batch: int, micro: int):
    rows = 24 * batch
    product = 2 * rows * 8 * 8
    cost = step_cost(Linear().to("meta"), (batch, 8), 0, micro, autocast=False)
    assert cost.flops == micro * product * (2 + 1 + 2)  # forward; weight of the first; both of the second
    cost = step_cost(Linear(keep=False).to("meta"), (batch, 8), 0, micro, autocast=False)
    assert cost.flops == micro * product * (2 + 1)


def test_memory_counts_what_is_alive_at_once():
    rows, four = 24 * 100, 4
    cost = step_cost(Linear().to("meta"), (100, 8), 0, 1, autocast=False)
    one, gradients = rows * 8 * four, 2 * 8 * 8 * four  # of a layer's output; of both layers
    assert 2 * one <= cost.activation_bytes + gradients <= 4 * one
    several = step_cost(Linear().to("meta"), (100, 8), 0, 2, autocast=False)
    assert several.activation_bytes == cost.activation_bytes + gradients, "those of the micro-batch before are there"
    half = step_cost(Linear().to("meta"), (100, 8), 0, 1, autocast=True)
    assert half.activation_bytes < cost.activation_bytes


LAYERS, BLOCKS = 6, 12


class Stack(nn.Module):
    """Blocks of layers, each of which can be computed again in the backward pass, as diffusers' networks do it."""

    _supports_gradient_checkpointing = True

    def __init__(self) -> None:
        super().__init__()
        block = [layer for _ in range(LAYERS) for layer in (nn.Linear(8, 8, bias=False), nn.Tanh())]
        self.blocks = nn.ModuleList([nn.Sequential(*(type(m)(8, 8) if isinstance(m, nn.Linear) else m for m in block))
                                     for _ in range(BLOCKS)])  # fmt: skip
        self.again: Any = None

    def enable_gradient_checkpointing(self, function: Any) -> None:
        self.again = function

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.again is None else self.again(block, x)
        return x


class Deep(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Stack()])


def test_gradient_checkpointing_holds_the_inputs_of_blocks_and_the_inside_of_one():
    """The counter of operations must not hold what is computed again."""
    one = 24 * 100 * 8 * 4  # bytes of a layer's output
    plain, again = Deep().to("meta").train(), Deep().to("meta").train()
    again.checkpoint_activations(recomputed_as_on_cuda(autocast=False))
    costs = [step_cost(recipe, (100, 8), 0, 1, autocast=False) for recipe in (plain, again)]
    assert costs[0].activation_bytes >= BLOCKS * LAYERS * one
    inside = 2 * LAYERS * one  # of linear layers and of their tanh
    assert BLOCKS * one <= costs[1].activation_bytes <= BLOCKS * one + inside + 4 * one < costs[0].activation_bytes / 2
    forward = BLOCKS * LAYERS * 2 * 24 * 100 * 8 * 8
    assert costs[1].flops - costs[0].flops == pytest.approx(forward, rel=0.02), "computed once more"


def all_runs() -> list[tuple[str, ...]]:
    runs = []
    for recipe in entries("recipes"):
        if recipe == "tokens":  # which trains nothing
            continue
        runs += [(f"recipe={recipe}", f"accelerator={a}") for a in ("hypersd", "tlcm")] if recipe in ACCELERATED else [
            (f"recipe={recipe}",)
        ]  # fmt: skip
    return runs


@pytest.mark.parametrize("run", all_runs(), ids=" ".join)
def test_every_recipe_can_be_described(run: tuple[str, ...]):
    config, recipe = compose_config([*run, "dry_run=true", "batch_size=2"])
    found = plan(config, recipe)
    assert not found.problem
    assert 0 < found.trained <= found.parameters < 2e7
    assert [phase.steps for phase in found.phases] == [config.steps]
    assert all(phase.cost.flops > 1e8 and phase.cost.activation_bytes > 1e6 for phase in found.phases)
    real = sum(p.numel() for p in _trained_parameters(config, recipe)) if run == ("recipe=vae",) else found.trained
    assert found.trained == real
    assert list(Path().iterdir()) == []


def _trained_parameters(config, recipe) -> list[nn.Parameter]:
    return [p for p in recipe(config.options, config.steps, 0).parameters() if p.requires_grad]


@pytest.mark.slow
def test_stage_one_at_real_size():
    config, recipe = compose_config(["recipe=diffusion", "scale=paper", "dry_run=true"])
    found = plan(config, recipe)
    networks = {n.name: n for n in found.networks}
    assert networks["unet"].parameters == 2_567_463_684  # SDXL-base-1.0's
    assert networks["vae"].parameters == 83_653_863
    assert {n for n, network in networks.items() if network.trained} == {"control"}
    assert networks["control"].trained == networks["control"].parameters == pytest.approx(1.251e9, rel=1e-3)
    assert [(p.size, p.steps) for p in found.phases] == [(512, 40_000), (1024, 40_000)]
    # at 1024 px an image: 6.8 TFLOP of the UNet, 3.0 of the copy, the way back, and what is computed again
    small, large = (phase.cost for phase in found.phases)
    assert 4 * (6.8 + 3 * 3.0) < large.flops / 1e12 < 4 * 3 * (6.8 + 3.0) + 4 * 10
    assert 3.5 < large.flops / small.flops < 4.6  # attention grows faster than the number of pixels
    memory = found.memory
    assert memory["AdamW"] == 2 * memory["gradients"] == 2 * memory["EMA"]
    assert memory["weights"] / GIB == pytest.approx(14.6, abs=0.2)
    assert 1 < memory["activations"] / GIB < 10  # at the encoding of 4 images of 1024 px, before there are gradients
    assert sum(memory.values()) / GIB == pytest.approx(35.7, abs=0.5)


def test_the_report_of_stage_two_lists_what_is_missing_and_does_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr("lactok.train.dry_run.step_cost", lambda *of: StepCost(10**12, 10**9))  # stage one takes one
    data = pictures(tmp_path / "data", count=3)
    arguments = ["recipe=pixel", "scale=paper", "accelerator=tlcm", "dry_run=true", f"data.root='{data}'"]
    assert main([*arguments, "batch_size=1"]) == 0
    out = capsys.readouterr().out
    assert "pixel-tlcm-paper: a dry run; nothing is trained" in out
    assert "of which 1,251.01 M learn" in out
    assert "autocast's bfloat16, gradient checkpointing" in out
    assert "2 of 8 files are here" in out  # LPIPS' linear layers and backbone, which two packages bring
    for what in ("vq_ds16_c2i.pt", "options.base=PATH", "options.autoencoder=PATH", "recipe=diffusion scale=paper",
                 "OPPOer/TLCMSDXL"):  # fmt: skip
        assert what in out
    assert "3 images below" in out
    assert "3 of them smaller than data.smallest_crop=1024" in out
    assert list(Path().iterdir()) == []


def test_without_weights_one_message_lists_all_that_is_missing(tmp_path: Path, capsys):
    data = pictures(tmp_path / "data", count=3)
    assert main(["recipe=pixel", "scale=paper", "accelerator=hypersd", f"data.root='{data}'"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 5 of 7 files are missing:\n  1. vq_ds16_c2i.pt of hub repository")
    assert [line.split(".")[0].strip() for line in error.splitlines()[1:]] == list("12345")
    assert error.count("hf download") == 4
    assert "`python -m lactok.train recipe=diffusion scale=paper data.root=DIR`" in error
    assert list(Path().iterdir()) == []


def test_a_miniatures_missing_part_says_what_makes_it(tmp_path: Path):
    config, recipe = compose_config(
        ["recipe=diffusion", "dry_run=true", f"options.base='{tmp_path}/a'", f"options.vq='{tmp_path}/b'",
         f"options.autoencoder='{tmp_path}/c'"]
    )  # fmt: skip
    report = "\n".join(describe(config, recipe))
    assert "0 of 3 files are here" in report
    for name in ("vq", "ldm", "vae"):
        assert f"`python -m lactok.train recipe={name} scale=mini data.root=DIR` makes one" in report


def test_what_no_network_can_bring_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, *more, **options: asked.append(url))
    sources = UrlWeights("https://example.org/net.pth"), LocalWeights("none"), UnpublishedWeights("x", "make it by y")
    with pytest.raises(
        MissingWeights, match=r"^3 of 3 files are missing:\n  1\. net\.pth.*\n  2\. .*\n  3\. .*make it by y"
    ):
        locate_all(sources)
    assert asked == []


def test_data_that_cannot_be_used_ends_a_dry_run_with_its_reason(tmp_path: Path, capsys):
    assert main(["recipe=vae", "dry_run=true", f"data.root='{tmp_path}/nowhere'"]) == 2
    assert "no such folder" in capsys.readouterr().err
    data = pictures(tmp_path / "data", count=2)
    (data / "broken.png").write_bytes(b"no")
    assert main(["recipe=vae", "dry_run=true", f"data.root='{data}'"]) == 2
    assert "broken.png" in capsys.readouterr().err


def test_the_chain_describes_its_parts(capsys):
    assert main(["recipe=mini-all", "parts=[ldm,pixel-tlcm]", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert "ldm-mini: a dry run" in out
    assert "pixel-tlcm-mini: a dry run" in out
    assert out.count("not looked at: name data.root=DIR") == 1
