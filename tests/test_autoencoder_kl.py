"""Continuous autoencoders as rows: what diffusers computes, from a folder or the hub, and every wrong input named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from skimage import data

from baselines.tokenizers.autoencoder_kl.adapter import (
    SDXLVAE,
    AutoencoderKLOptions,
    AutoencoderKLTokenizer,
    SDXLVAEOptions,
)
from lactok.interface import Latents, Tokens
from lactok.weights import CheckpointMismatch, HubWeights, MissingWeights, WeightsError

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def stock() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        norm_num_groups=8,
        latent_channels=5,
        scaling_factor=0.3,
    ).eval()


@pytest.fixture
def folder(stock: AutoencoderKL, tmp_path: Path) -> Path:
    stock.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def build(folder: Path, **options: object) -> AutoencoderKLTokenizer:
    return AutoencoderKLTokenizer(AutoencoderKLOptions(repo=str(folder), **options), CPU)


def photographs(size: int) -> torch.Tensor:
    cuts = [torch.from_numpy(p[:size, 50 : 50 + size].copy()) for p in (data.astronaut(), data.coffee())]
    return torch.stack(cuts).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("size", [32, 48])
def test_latents_are_the_mean_and_pictures_those_of_diffusers(stock: AutoencoderKL, folder: Path, size: int):
    tokenizer, images = build(folder), photographs(size)
    latents = tokenizer.encode(images)
    with torch.no_grad():
        mean = stock.encode(images * 2 - 1).latent_dist.mean
        picture = (stock.decode(mean).sample + 1) / 2
    assert latents.values.shape == (2, 5, size // 4, size // 4)
    torch.testing.assert_close(latents.values, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(tokenizer.decode(latents, [0, 1]), picture, rtol=0, atol=1e-6)


def test_facts(folder: Path):
    info = build(folder).info
    assert (info.tokens_per_image, info.codebook_size, info.bits_per_image) == (None, None, None)
    assert (info.input_size, info.output_size, info.deterministic) == (None, None, True)


def test_what_it_can_not_take_is_named(folder: Path):
    tokenizer = build(folder)
    with pytest.raises(ValueError, match=r"images of 30x32 pixels, expected sides that 4 divides.*protocol"):
        tokenizer.encode(torch.zeros(1, 3, 32, 30))
    with pytest.raises(ValueError, match=r"latents of shape \(1, 4, 8, 8\), expected \(B, 5, h, w\)"):
        tokenizer.decode(Latents(torch.zeros(1, 4, 8, 8)), [0])
    with pytest.raises(ValueError, match="Tokens, expected Latents"):
        tokenizer.decode(Tokens(torch.zeros(1, 4, dtype=torch.int64)), [0])


def test_names_of_older_files_load(stock: AutoencoderKL, folder: Path):
    old = (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn."))
    state = {}
    for name, tensor in load_file(folder / FILE).items():
        for now, then in old:
            name = name.replace(now, then)
        state[name] = tensor
    assert "encoder.mid_block.attentions.0.query.weight" in state
    save_file(state, folder / FILE)
    ours = build(folder).model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in stock.state_dict().items())


def test_other_weights_for_the_same_network(stock: AutoencoderKL, folder: Path, tmp_path: Path):
    state = {name: tensor + 1 for name, tensor in stock.state_dict().items()}
    torch.save(state, tmp_path / "tuned.pt")
    ours = build(folder, weights=str(tmp_path / "tuned.pt")).model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def test_a_file_that_does_not_fit_is_named(folder: Path):
    state = load_file(folder / FILE)
    state["quant_conv.scale"] = state.pop("quant_conv.bias")
    save_file(state, folder / FILE)
    with pytest.raises(CheckpointMismatch, match=rf"{FILE}: .*1 missing: quant_conv\.bias; 1 unexpected"):
        build(folder)


def test_another_class_and_a_broken_config_are_named(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with pytest.raises(WeightsError, match=r"config\.json: _class_name is 'VQModel', expected 'AutoencoderKL'"):
        build(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: "):
        build(folder)


def test_where_a_repo_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingWeights, match=f"hf download stabilityai/sdxl-vae {FILE}"):
        SDXLVAE(SDXLVAEOptions(), CPU)
    with pytest.raises(MissingWeights, match="hf download stabilityai/sd-vae-ft-mse"):
        AutoencoderKLTokenizer(AutoencoderKLOptions(), CPU)
    nested = AutoencoderKLTokenizer.weights(AutoencoderKLOptions(repo="owner/name/vae"))
    assert nested == (HubWeights("owner/name", f"vae/{FILE}"), HubWeights("owner/name", "vae/config.json"))
    with pytest.raises(WeightsError, match=r"repo 'no-such-folder' is neither a folder here .* nor a hub id"):
        AutoencoderKLTokenizer.weights(AutoencoderKLOptions(repo="no-such-folder"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingWeights, match=rf"no file at .*{FILE}"):
        build(tmp_path / "empty")
