"""LacTok behind the interface: names, weights, noise by image, and what it can not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from skimage import data
from torch import Tensor

from lactok import registry
from lactok.interface import Latents, Tokens
from lactok.models.few_step_lora import tlcm_sources
from lactok.models.lactok import LacTokConfig, build_lactok
from lactok.models.lactok_state_dict import LacTokStateDict
from lactok.models.lora import merge
from lactok.models.samplers import consistency, image_noise
from lactok.state_dict import meta_skeleton
from lactok.tokenizers import published
from lactok.weights import MissingWeights, WeightsError
from tests.ladd_support import LORA, SMALL, weights, write_adapters

CPU = torch.device("cpu")
NAMES = ["lactok-h", "lactok-h-star", "lactok-t", "lactok-t-star", "vq-ladd", "vq-ladd-hypersd", "vq-ladd-tlcm"]
IN, OUT = 16, 32  # pixels of a side: 64 ids, latents of 16x16


def small(cls: type[published.LacTokTokenizer]) -> type[published.LacTokTokenizer]:
    """The published class at a size that a test can afford."""
    return type(f"Small{cls.__name__}", (cls,), {"CONFIG": SMALL, "LORA": LORA})


def make(cls: type[published.LacTokTokenizer], **given: Any) -> published.LacTokTokenizer:
    return small(cls)(cls.Options(**{"input_size": IN, "output_size": OUT} | given), CPU)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "LaCTok-T.pth"
    torch.save({"model": weights(wrapped=True)}, path)
    return str(path)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "stage1.safetensors"
    save_file(weights(wrapped=False), path)
    return str(path)


@pytest.fixture(scope="module")
def t_star(released: str) -> published.LacTokTokenizer:
    return make(published.LacTokTStar, weights=released)


def photographs(count: int) -> Tensor:
    """Cuts of real photographs, float32 (count, 3, IN, IN) in [0, 1]."""
    sources = (data.astronaut(), data.coffee(), data.chelsea())
    cuts = [sources[i % 3][8 * i : 8 * i + 256 : 16, 40 : 40 + 256 : 16] for i in range(count)]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float().contiguous() / 255


def test_all_are_registered():
    for name in NAMES:
        cls = registry.load("tokenizers", name)
        assert issubclass(cls, published.LacTokTokenizer)
        assert cls.scale == "paper"


def test_facts_of_the_published_sizes(monkeypatch: pytest.MonkeyPatch):
    model = meta_skeleton(build_lactok, LacTokConfig())

    def on_meta(self):
        assert LacTokConfig() == self.CONFIG
        return model, self.options.input_size, self.options.output_size, self.TRAINING

    monkeypatch.setattr(published._Published, "_load", on_meta)
    tokenizer = published.LacTokTStar(published.LacTokTStarOptions(), torch.device("meta"))
    info = tokenizer.info
    assert (info.family, info.input_size, info.output_size, info.deterministic) == ("LacTok", 256, 1024, False)
    assert (info.tokens_per_image, info.codebook_size, info.bits_per_image) == (256, 16384, 256 * 14)
    assert tokenizer._latent_shape == (4, 128, 128)
    for size, ids in ((224, 196), (288, 324)):
        options = published.LacTokOptions(input_size=size)
        assert published.LacTokH(options, torch.device("meta")).info.tokens_per_image == ids


@pytest.mark.parametrize(
    ("cls", "evaluated", "draws", "strength"),
    [
        (published.LacTokH, (999,), 1, 1.0),
        (published.LacTokHStar, (999,), 1, 1.0),
        (published.LacTokT, (999, 499), 2, 1.0),
        (published.LacTokTStar, (999, 499, 124), 3, 0.8),
        (published.VQLADD, tuple(range(961, 0, -40)), 1, 1.0),
        (published.VQLADDHyperSD, (999,), 1, 1.0),
        (published.VQLADDTLCM, (999, 499, 124), 3, 1.0),
    ],
)
def test_each_name_has_its_sampler(cls, evaluated: tuple[int, ...], draws: int, strength: float):
    options = cls.Options()
    assert options.conditioning_scale == strength
    tokenizer = object.__new__(cls)
    tokenizer.options = options
    sampler, seen = tokenizer._sampler(), []

    def predict(x: Tensor, t: int) -> Tensor:
        seen.append(t)
        return x

    sampler(predict, torch.ones(1, draws, 1, 2, 2), LacTokConfig().schedule)
    assert tuple(seen) == evaluated
    assert (sampler.draws, sampler.nfe) == (draws, len(evaluated))


def test_pictures_to_ids_and_back(t_star: published.LacTokTokenizer):
    model, images, seeds = t_star.model, photographs(2), [7, 8]
    codes = t_star.encode(images)
    assert codes.ids.shape == (2, 64)
    assert torch.equal(codes.ids, model.vq.encode(images * 2 - 1).ids.flatten(1))
    noises = torch.stack([image_noise(seed, (4, 16, 16), 3) for seed in seeds])
    code_map = model.vq.lookup(codes.ids.view(2, 8, 8))
    with torch.no_grad():
        latents = consistency(
            lambda x, t: model.decoder.predict(x, t, code_map, 0.8), noises, SMALL.schedule, (999, 499, 124)
        )
        expected = (model.vae.decode(latents / 0.13025).sample / 2 + 0.5).clamp(0, 1)
    decoded = t_star.decode(codes, seeds)
    assert decoded.shape == (2, 3, OUT, OUT)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)


def test_batch_and_order_do_not_matter_and_seeds_do(t_star: published.LacTokTokenizer):
    ids = t_star.encode(photographs(4)).ids
    assert len({tuple(row) for row in ids.tolist()}) == 4
    pictures = t_star.decode(Tokens(ids), range(4))
    for order in ([0], [3, 1], [2, 0, 3, 1]):
        again = t_star.decode(Tokens(ids[order]), order)
        torch.testing.assert_close(again, pictures[order], rtol=0, atol=1e-4)
    same_ids = t_star.decode(Tokens(ids[:1]), [9])
    assert (same_ids - pictures[:1]).abs().mean() > 0.01
    same_seed = t_star.decode(Tokens(ids[1:2]), [0])
    assert (same_seed - pictures[:1]).abs().mean() > 0.01
    assert t_star.decode(Tokens(ids[:0]), []).shape == (0, 3, OUT, OUT)


def test_options_reach_the_decoder(released: str, t_star: published.LacTokTokenizer):
    codes = t_star.encode(photographs(1))
    plain = t_star.decode(codes, [0])
    for given in ({"conditioning_scale": 1.0}, {"steps": 2}):
        other = make(published.LacTokTStar, weights=released, **given).decode(codes, [0])
        assert (other - plain).abs().mean() > 1e-3
    larger = make(published.LacTokTStar, weights=released, input_size=24, output_size=40)
    assert larger.info.tokens_per_image == 144
    assert larger.decode(Tokens(torch.zeros(1, 144, dtype=torch.int64)), [0]).shape == (1, 3, 40, 40)


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_every_nesting_of_a_checkpoint_loads(key: str | None, tmp_path: Path, t_star: published.LacTokTokenizer):
    state, path = weights(wrapped=True), tmp_path / "checkpoint.pth"
    torch.save(state if key is None else {key: state, "step": 3}, path)
    got = make(published.LacTokT, weights=str(path)).model.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in t_star.model.state_dict().items())


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path):
    path = tmp_path / "other.pth"
    for content, reason in (
        ({"model": 3}, "under 'model': int, expected a mapping of names to tensors"),
        ({"model": {"weight": torch.zeros(2)}}, "missing: .*1 unexpected: weight$"),
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=rf"other\.pth: .*{reason}"):
            make(published.LacTokTStar, weights=str(path))


def test_weights_of_the_release_are_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (source,) = published.LacTokTStar.weights(published.LacTokTStarOptions())
    assert str(source) == "OPPOer/LaCTok/LaCTok-T.pth (revision not pinned)"
    with pytest.raises(MissingWeights) as caught:
        published.LacTokTStar(published.LacTokTStarOptions(), CPU)
    assert "hf download OPPOer/LaCTok LaCTok-T.pth" in str(caught.value)
    assert str(tmp_path / "hub") in str(caught.value)
    assert "options.lactok-t-star.weights=PATH" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lactok-t-star"])
def test_what_was_never_published_says_how_to_make_it(name: str, tmp_path: Path):
    cls = registry.load("tokenizers", name)
    with pytest.raises(MissingWeights) as caught:
        cls(cls.Options(), CPU)
    message = str(caught.value)
    assert "is published, so there is none to look for" in message
    assert "python -m lactok.train recipe=" in message
    assert f"options.{name}.weights=PATH" in message
    with pytest.raises(MissingWeights, match=r"no file at .*nowhere"):
        cls(cls.Options(weights=str(tmp_path / "nowhere")), CPU)


def test_missing_accelerators_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first_stage: str):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for cls, command in (
        (published.VQLADDHyperSD, "hf download ByteDance/Hyper-SD Hyper-SDXL-1step-lora.safetensors"),
        (published.VQLADDTLCM, "hf download OPPOer/TLCMSDXL adapter_model.safetensors"),
    ):
        with pytest.raises(MissingWeights) as caught:
            make(cls, weights=first_stage)
        assert command in str(caught.value)
        assert "options.NAME.accelerator=PATH" in str(caught.value)
    path = tmp_path / "adapter_model.safetensors"
    path.touch()
    with pytest.raises(
        MissingWeights, match=r"no file at .*lora_model_adapter_config\.json; .* or adapter_config\.json"
    ):
        make(published.VQLADDTLCM, weights=first_stage, accelerator=str(path))
    for name in ("adapter_config.json", "lora_model_adapter_config.json"):  # the second, which is published, wins
        (tmp_path / name).touch()
        assert [Path(str(source)).name for source in tlcm_sources(str(path))] == [path.name, name]


def test_accelerators_are_merged_into_the_first_stage(first_stage: str, tmp_path: Path):
    plain = make(published.VQLADD, weights=first_stage, steps=2)
    codes = plain.encode(photographs(1))
    with torch.device("cpu"):
        adapted = build_lactok(SMALL)
    adapted = LacTokStateDict().load(adapted, weights(wrapped=False))
    files = write_adapters(adapted.decoder.unet, tmp_path)
    merged = dict(adapted.decoder.unet.state_dict())
    merge(merged, LORA)
    tlcm = make(published.VQLADDTLCM, weights=first_stage, accelerator=str(files["tlcm"]))
    hypersd = make(published.VQLADDHyperSD, weights=first_stage, accelerator=str(files["hypersd"]))

    for tokenizer in (tlcm, hypersd):
        for name, tensor in tokenizer.model.decoder.unet.state_dict().items():
            torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-5)
        assert not any(parameter.requires_grad for parameter in tokenizer.model.parameters())
        assert (tokenizer.decode(codes, [0]) - plain.decode(codes, [0])).abs().mean() > 0.01
    with pytest.raises(WeightsError, match=r"stage1\.safetensors is no LoRA"):
        make(published.VQLADDHyperSD, weights=first_stage, accelerator=first_stage)


def test_a_network_of_ours_is_kept_under_the_published_names(t_star: published.LacTokTokenizer, tmp_path: Path):
    path = tmp_path / "mine.safetensors"
    save_file(
        {name: t.contiguous() for name, t in LacTokStateDict().to_published(t_star.model.state_dict()).items()}, path
    )
    again = make(published.LacTokH, weights=str(path)).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in t_star.model.state_dict().items())


def test_what_it_can_not_take_is_named(t_star: published.LacTokTokenizer, released: str):
    ids = torch.zeros(1, 64, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 16\), expected \(B, 3, 16, 16\)"):
        t_star.encode(torch.zeros(1, 3, 32, 16))
    with pytest.raises(ValueError, match="ids from 64 to 64, expected 0 to 63"):
        t_star.decode(Tokens(ids + 64), [0])
    with pytest.raises(ValueError, match=r"ids of shape \(1, 4\), expected \(B, 64\)"):
        t_star.decode(Tokens(ids[:, :4]), [0])
    with pytest.raises(ValueError, match="Latents, expected Tokens"):
        t_star.decode(Latents(torch.zeros(1, 4)), [0])
    with pytest.raises(ValueError, match="2 seeds for 1 images"):
        t_star.decode(Tokens(ids), [0, 1])
    for given, reason in (
        ({"input_size": 15}, "input_size 15: expected a positive multiple of 2"),
        ({"input_size": 0}, "input_size 0: expected a positive multiple of 2"),
        ({"output_size": 36}, "image of 36 pixels a side: expected a positive multiple of 8"),
        ({"steps": 8}, "8 steps: TLCM's published grids have 1 to 7"),
    ):
        with pytest.raises(ValueError, match=reason):
            make(published.LacTokTStar, weights=released, **given)
    with pytest.raises(ValueError, match="0 steps: expected 1 to 999"):
        make(published.VQLADD, weights=released, steps=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_cuda_gives_the_same_ids_and_pictures(t_star: published.LacTokTokenizer, released: str):
    images = photographs(2)
    options = published.LacTokTStarOptions(weights=released, input_size=IN, output_size=OUT)
    there = small(published.LacTokTStar)(options, torch.device("cuda"))
    codes = t_star.encode(images)
    assert torch.equal(there.encode(images.cuda()).ids.cpu(), codes.ids)
    decoded = there.decode(codes.to("cuda"), [1, 2])
    assert decoded.device.type == "cuda"
    # TF32 convolutions may be on, and three evaluations with 1 / alpha of 15 enlarge what they round
    torch.testing.assert_close(decoded.cpu(), t_star.decode(codes, [1, 2]), rtol=0, atol=0.05)
