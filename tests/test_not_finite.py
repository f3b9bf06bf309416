"""Weights and vectors that are not finite are named; the argmin of NaN is a valid id and must not pass for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from baselines.tokenizers.flextok.adapter import FlexTokMini
from baselines.tokenizers.llamagen.adapter import LlamaGenMini
from baselines.tokenizers.seedtok.adapter import SeedTokMini
from baselines.tokenizers.titok.adapter import TiTokMini
from lactok.checkpoint_file import read_checkpoint
from lactok.interface import Tokenizer
from lactok.weights import WeightsError, load_state_dict, locate

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


def saved(folder: Path, state: dict[str, Any], kind: str) -> Path:
    path = folder / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_weight_that_is_nan_is_refused_by_name(tmp_path: Path, kind: str, dtype: torch.dtype):
    state = {"encoder.weight": torch.ones(3, 4), "decoder.bias": torch.zeros(5)}
    assert load_state_dict(saved(tmp_path, {n: t.to(dtype) for n, t in state.items()}, kind))
    state["encoder.weight"][1, 2] = NAN
    path = saved(tmp_path, {n: t.to(dtype) for n, t in state.items()}, kind)
    with pytest.raises(WeightsError, match=r"encoder\.weight: 1 of 12 values are not finite") as error:
        load_state_dict(path)
    assert str(path) in str(error.value)
    assert "decoder.bias" not in str(error.value)


def test_infinite_weights_are_refused_and_infinite_masks_are_not(tmp_path: Path):
    mask = torch.full((4, 4), -INF).triu(1)
    assert torch.equal(
        load_state_dict(saved(tmp_path, {"text.attn_mask": mask}, "safetensors"))["text.attn_mask"], mask
    )
    with pytest.raises(WeightsError, match=r"norm\.weight"):
        load_state_dict(saved(tmp_path, {"norm.weight": torch.tensor([1.0, INF])}, "safetensors"))
    mask[0, 0] = NAN
    with pytest.raises(WeightsError, match="attn_mask"):
        load_state_dict(saved(tmp_path, {"text.attn_mask": mask}, "safetensors"))


def test_what_no_network_takes_may_be_anything(tmp_path: Path):
    """An optimizer's state is never used; whole numbers and empty tensors have nothing to be wrong."""
    state = {"model": {"w": torch.ones(2), "n": torch.tensor(7), "none": torch.zeros(0)}}
    torch.save(state | {"optimizer": {"state": {0: {"exp_avg": torch.tensor([NAN])}}}}, tmp_path / "a.pt")
    assert load_state_dict(tmp_path / "a.pt")["model"]["n"] == 7


def broken_mini(cls: type[Tokenizer], folder: Path) -> Path:
    """The shipped file with one NaN in the first matrix of its network."""
    path = locate(cls.weights(cls.Options())[0])
    state = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    name = next(n for n in sorted(state) if state[n].ndim > 1)
    state[name].view(-1)[0] = NAN
    save_file(state, folder / "broken.safetensors", metadata)
    return folder / "broken.safetensors"


def test_a_broken_checkpoint_of_ours_is_refused_with_the_tensor(tmp_path: Path):
    with pytest.raises(WeightsError, match="not finite"):
        read_checkpoint(broken_mini(LlamaGenMini, tmp_path))


@pytest.mark.parametrize("cls", [LlamaGenMini, TiTokMini, FlexTokMini, SeedTokMini])
def test_a_nan_inside_an_encoder_is_no_id(cls: type[Tokenizer]):
    """The images that are concerned are told; the others can be encoded."""
    tokenizer = cls(cls.Options(), CPU)
    size = tokenizer.info.input_size
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    images[2, 1, 4, 4] = NAN
    with torch.inference_mode():
        with pytest.raises(FloatingPointError, match=r"not finite.*image\(s\) 2 of a batch of 3"):
            tokenizer.encode(images)
        assert tokenizer.encode(images[:2]).ids.shape[0] == 2
