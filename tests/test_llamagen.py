"""LlamaGen's checkpoint names, and its tokenizers behind the interface."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from skimage import data

from baselines.tokenizers.llamagen.adapter import (
    MINI as SHIPPED,
)
from baselines.tokenizers.llamagen.adapter import (
    LlamaGen,
    LlamaGenMini,
    LlamaGenMiniOptions,
    LlamaGenOptions,
    LlamaGenT2I,
)
from lactok.checkpoint_file import CheckpointMetadata, save_checkpoint
from lactok.conformance import CaseFolder
from lactok.interface import Latents, Tokens, TrainingCompute
from lactok.models.vq import VQConfig, VQModel
from lactok.models.vq_state_dict import VQStateDict
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch, LocalWeights, MissingWeights, WeightsError, locate, pin_of, sha256_of

GOLDEN = Path(__file__).parent / "golden" / "llamagen_vq"
ADAPTER = VQStateDict()
CPU = torch.device("cpu")
SMALL = VQConfig(ch=32, z_channels=32, codebook_size=64)


class SmallLlamaGen(LlamaGen):
    """The published class at a width that a test can afford; same levels, hence the same names."""

    CONFIG = SMALL


@pytest.fixture(scope="module")
def small() -> VQModel:
    torch.manual_seed(0)
    return VQModel(SMALL).eval()


@pytest.fixture(scope="module")
def official(small: VQModel) -> dict[str, torch.Tensor]:
    return ADAPTER.to_published(small.state_dict())


@pytest.fixture
def meta_official(small: VQModel) -> dict[str, torch.Tensor]:
    return {name: tensor.to("meta") for name, tensor in ADAPTER.to_published(small.state_dict()).items()}


def photographs(size: int) -> torch.Tensor:
    cuts = [picture[:size, 50 : 50 + size] for picture in (data.astronaut(), data.coffee(), data.chelsea())]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("case", ["full", "tiny"])
def test_names_and_shapes_are_those_of_the_official_checkpoint(case: str):
    folder = CaseFolder(GOLDEN / case)
    known = VQConfig.__dataclass_fields__
    model = meta_skeleton(VQModel, VQConfig(**{k: v for k, v in folder.config.items() if k in known}))
    ours = model.state_dict()
    renamed = {
        ADAPTER.published_name(name): ADAPTER.published_shape(name, tuple(tensor.shape))
        for name, tensor in ours.items()
    }
    assert len(renamed) == len(ours)  # no two names fall together
    assert renamed == {name: spec.shape for name, spec in folder.manifest().items()}


def test_the_full_manifest_loads_strictly_without_memory():
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    state = {name: torch.empty(entry["shape"], device="meta") for name, entry in manifest.items()}
    ADAPTER.load(meta_skeleton(VQModel, VQConfig()), state)


def test_there_and_back(small: VQModel, official: dict[str, torch.Tensor]):
    back = ADAPTER.from_published(official, meta_skeleton(VQModel, SMALL))
    assert list(back) == list(small.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())


def test_what_does_not_fit_is_named_by_kind(meta_official: dict[str, torch.Tensor]):
    state = meta_official
    state["encoder.conv_blocks.0.res.0.conv9.weight"] = state.pop("encoder.conv_blocks.0.res.0.conv1.weight")
    state["quant_conv.weight"] = torch.empty(8, 32, 3, 3, device="meta")
    with pytest.raises(CheckpointMismatch) as caught:
        ADAPTER.load(meta_skeleton(VQModel, SMALL), state)
    message = str(caught.value)
    assert "1 missing: encoder.conv_blocks.0.res.0.conv1.weight" in message
    assert "1 unexpected: encoder.conv_blocks.0.res.0.conv9.weight" in message
    assert "1 of another shape: quant_conv.weight is (8, 32, 3, 3), expected (8, 32, 1, 1)" in message


def test_a_model_of_another_size_is_refused(meta_official: dict[str, torch.Tensor]):
    with pytest.raises(CheckpointMismatch, match=r"of another shape: .*, \.\.\."):
        ADAPTER.load(meta_skeleton(VQModel, VQConfig()), meta_official)


@pytest.mark.parametrize("key", ["ema", "model", "state_dict", None])
def test_every_nesting_of_a_checkpoint_loads(small: VQModel, official: dict, tmp_path: Path, key: str | None):
    other = {"w": torch.zeros(1)}
    nested = {
        "ema": {"ema": official, "model": other, "args": argparse.Namespace(lr=1e-4)},
        "model": {"model": official, "optimizer": {"state": {}}, "steps": 3},
        "state_dict": {"state_dict": official},
        None: official,
    }[key]
    path = tmp_path / "vq.pt"
    torch.save(nested, path)
    tokenizer = SmallLlamaGen(LlamaGenOptions(weights=str(path), input_size=64), CPU)
    state = tokenizer.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in small.state_dict().items())


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path):
    path = tmp_path / "other.pt"
    for content, reason in (
        ({"model": 3}, "under 'model': int, expected a mapping"),
        ({"epoch": 3}, "at the top level: 'epoch' is not a tensor"),
        ({"weight": torch.zeros(2)}, "not a checkpoint of the configured LlamaGen VQ model"),
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=rf"other\.pt: .*{reason}"):
            LlamaGen(LlamaGenOptions(weights=str(path)), CPU)


@pytest.fixture(scope="module")
def tokenizer(official: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> LlamaGen:
    path = tmp_path_factory.mktemp("weights") / "vq.pt"
    torch.save(official, path)
    return SmallLlamaGen(LlamaGenOptions(weights=str(path), input_size=64), CPU)


def test_pictures_to_ids_and_back(tokenizer: LlamaGen, small: VQModel):
    images = photographs(64)
    codes = tokenizer.encode(images)
    assert codes.ids.shape == (3, 16)
    with torch.no_grad():
        want = small.encode(images * 2 - 1).ids
        assert torch.equal(codes.ids, want.flatten(1))  # [0, 1] became [-1, 1]; ids row by row
        expected = (small.decode_ids(want) + 1) / 2
    torch.testing.assert_close(tokenizer.decode(codes, seeds=[0, 1, 2]), expected, rtol=0, atol=1e-5)
    for i in range(3):
        assert torch.equal(tokenizer.encode(images[i : i + 1]).ids, codes.ids[i : i + 1])


def test_what_it_can_not_take_is_named(tokenizer: LlamaGen):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 64, 32\), expected \(B, 3, 64, 64\)"):
        tokenizer.encode(torch.zeros(1, 3, 64, 32))
    with pytest.raises(ValueError, match=r"ids from 0 to 64, expected 0 to 63"):
        tokenizer.decode(Tokens(torch.tensor([[64] + [0] * 15])), [0])
    with pytest.raises(ValueError, match=r"ids of shape \(1, 4\), expected \(B, 16\)"):
        tokenizer.decode(Tokens(torch.zeros(1, 4, dtype=torch.int64)), [0])
    with pytest.raises(ValueError, match="Latents, expected Tokens"):
        tokenizer.decode(Latents(torch.zeros(1, 4)), [0])


@pytest.mark.parametrize("size", [0, -16, 100])
def test_sizes_that_do_not_divide_are_refused(tokenizer: LlamaGen, size: int):
    options = LlamaGenOptions(weights=tokenizer.options.weights, input_size=size)
    with pytest.raises(ValueError, match=rf"input_size {size}: expected a positive multiple of 16"):
        SmallLlamaGen(options, CPU)


@pytest.mark.parametrize(("size", "ids"), [(224, 196), (256, 256), (288, 324)])
def test_facts_at_the_paper_sizes(tokenizer: LlamaGen, size: int, ids: int):
    options = LlamaGenOptions(weights=tokenizer.options.weights, input_size=size)
    info = SmallLlamaGen(options, CPU).info
    assert (info.tokens_per_image, info.input_size, info.output_size) == (ids, size, size)
    assert info.bits_per_image == ids * 6  # log2 of the small codebook
    assert VQConfig().codebook_size == 2**14


@pytest.mark.parametrize(
    ("cls", "repo", "filename"),
    [
        (LlamaGen, "FoundationVision/LlamaGen", "vq_ds16_c2i.pt"),
        (LlamaGenT2I, "peizesun/llamagen_t2i", "vq_ds16_t2i.pt"),
    ],
)
def test_missing_weights_say_how_to_get_them(cls, repo: str, filename: str, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (source,) = cls.weights(LlamaGenOptions())
    assert str(source) == f"{repo}/{filename}@{source.revision[:12]}"
    assert pin_of(source) == "sha256"
    with pytest.raises(MissingWeights) as caught:
        cls(LlamaGenOptions(), CPU)
    assert f"hf download {repo} {filename}" in str(caught.value)
    assert str(tmp_path / "hub") in str(caught.value)


MINI = VQConfig(
    ch=32,
    encoder_ch_mult=(1, 2),
    decoder_ch_mult=(1, 2),
    z_channels=16,
    codebook_size=32,
    norm_num_groups=8,
    patch_size=4,
)


def mini_file(path: Path, config: VQConfig = MINI) -> Path:
    training = TrainingCompute(steps=7, core_hours=0.25, losses=("lpips-vgg",))
    metadata = CheckpointMetadata(asdict(config), 64, training, SHIPPED.command, "0123abc", "images")
    torch.manual_seed(0)
    save_checkpoint(path, VQModel(MINI).state_dict(), metadata)
    return path


def test_miniature_is_built_from_its_file_alone(tmp_path: Path):
    path = mini_file(tmp_path / "mini.safetensors")
    tokenizer = LlamaGenMini(LlamaGenMiniOptions(weights=str(path)), CPU)
    info = tokenizer.info
    assert (info.input_size, info.tokens_per_image, info.codebook_size) == (64, 64, 32)
    assert str(info.training) == "7 steps, 0.25 core-h"
    assert info.training.losses == ("lpips-vgg",)
    assert tokenizer.model.config == MINI
    assert tokenizer.model.encoder.conv_in.weight.dtype == torch.float32
    codes = tokenizer.encode(photographs(64))
    assert tokenizer.decode(codes, [0, 0, 0]).shape == (3, 3, 64, 64)


def test_miniature_whose_weights_and_config_differ_is_named(tmp_path: Path):
    path = mini_file(tmp_path / "mini.safetensors", VQConfig(**{**asdict(MINI), "codebook_size": 64}))
    with pytest.raises(WeightsError, match=r"mini\.safetensors: .*size mismatch for quantizer\.embedding\.weight"):
        LlamaGenMini(LlamaGenMiniOptions(weights=str(path)), CPU)


def test_missing_miniature_names_the_command_that_makes_it(tmp_path: Path):
    with pytest.raises(MissingWeights, match=r"no file at .*nowhere.*recipe=vq scale=mini"):
        LlamaGenMini(LlamaGenMiniOptions(weights=str(tmp_path / "nowhere")), CPU)


def test_shipped_miniature_is_the_pinned_one():
    (source,) = LlamaGenMini.weights(LlamaGenMiniOptions())
    assert isinstance(source, LocalWeights)
    try:
        path = locate(source)
    except MissingWeights:
        assert SHIPPED.sha256 is None, "a checkpoint is pinned that does not ship"
        pytest.skip("the miniature's checkpoint is not here")
    assert sha256_of(path) == SHIPPED.sha256
