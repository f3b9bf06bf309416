"""TiTok: golden cases, the official names, and TiTok-S-128 behind the interface."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from skimage import data
from torch import Tensor

from baselines.tokenizers.titok.adapter import TiTokOptions, TiTokS128
from baselines.tokenizers.titok.conformance import case_config, run
from baselines.tokenizers.titok.model import TiTok, TiTokConfig
from baselines.tokenizers.titok.state_dict import TiTokStateDict
from baselines.tokenizers.titok.vit import ViTSize
from lactok.conformance import CaseError, CaseFolder, CheckLine
from lactok.interface import Latents, Tokens
from lactok.seeded import manifest_of, seeded_state_dict
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch, MissingWeights, WeightsError

GOLDEN = Path(__file__).parent / "golden" / "titok"
ADAPTER = TiTokStateDict()
CPU = torch.device("cpu")
SMALL = TiTokConfig(
    image_size=32,
    codebook_size=64,
    token_size=6,
    vit_enc_model_size=ViTSize(32, 2, 4),
    vit_dec_model_size=ViTSize(48, 1, 2),
    vit_enc_patch_size=4,
    vit_dec_patch_size=8,
    num_latent_tokens=16,
    pixel_codebook_size=32,
    pixel_token_size=16,
    pixel_ch=8,
    pixel_ch_mult=(1, 1, 2, 2),
    pixel_num_res_blocks=1,
    pixel_norm_num_groups=4,
)
SCALES = {"attn.in_proj_weight": 2.0, "decoder.ffn.2.weight": 8.0, "pixel_quantize.embedding.weight": 16.0}


class SmallTiTok(TiTokS128):
    """The published class at a size that a test can afford."""

    CONFIG = SMALL


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """Weights of the small model under the official names, scaled so that images depend on their ids."""
    names = {ADAPTER.published_name(name): spec for name, spec in manifest_of(meta_skeleton(TiTok, SMALL)).items()}
    state = seeded_state_dict(names)
    for name in state:
        state[name] *= next((factor for ending, factor in SCALES.items() if name.endswith(ending)), 1.0)
    return state


@pytest.fixture(scope="module")
def small(official: dict[str, Tensor]) -> TiTok:
    return ADAPTER.load(meta_skeleton(TiTok, SMALL), official).eval()


@pytest.fixture(scope="module")
def tokenizer(official: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> TiTokS128:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(official, path)
    return SmallTiTok(TiTokOptions(weights=str(path)), CPU)


def photographs(count: int) -> Tensor:
    """Cuts of real photographs, float32 (count, 3, 32, 32) in [0, 1]."""
    sources = (data.astronaut(), data.coffee(), data.chelsea())
    cuts = [sources[i % 3][8 * i : 8 * i + 256 : 8, 40 : 40 + 256 : 8] for i in range(count)]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float().contiguous() / 255


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_golden_case(name: str):
    case = CaseFolder(GOLDEN / name)
    lines = {line.tensor: line for line in run(case)}
    assert set(lines) == set(case.names) - {"image", "image_uint8"}
    assert all(line.passed for line in lines.values()), [x for x in lines.values() if not x.passed]
    assert lines["token_ids"].ids_equal
    assert all(line.max_rel < 5e-5 for line in lines.values() if line.max_rel is not None)


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_names_and_shapes_are_those_of_the_official_checkpoint(name: str):
    case = CaseFolder(GOLDEN / name)
    ours = manifest_of(meta_skeleton(TiTok, case_config(case)))
    renamed = {ADAPTER.published_name(key): spec for key, spec in ours.items()}
    assert len(renamed) == len(ours)  # no two names fall together
    assert renamed == case.manifest()


def test_the_full_manifest_loads_strictly_without_memory():
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    state = {name: torch.empty(entry["shape"], device="meta") for name, entry in manifest.items()}
    model = ADAPTER.load(meta_skeleton(TiTok, TiTokConfig()), state)
    assert len(state) == 308
    assert sum(p.numel() for p in model.parameters()) == 83_674_639


def test_there_and_back(small: TiTok, official: dict[str, Tensor]):
    assert ADAPTER.to_published(small.state_dict()).keys() == official.keys()
    back = ADAPTER.from_published(ADAPTER.to_published(small.state_dict()), meta_skeleton(TiTok, SMALL))
    assert list(back) == list(small.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())


def test_what_does_not_fit_is_named_by_kind(official: dict[str, Tensor]):
    state = dict(official)
    state["encoder.transformer.0.attn.in_proj"] = state.pop("encoder.transformer.0.attn.in_proj_weight")
    state["encoder.conv_out.weight"] = torch.empty(6, 32, 3, 3)
    with pytest.raises(CheckpointMismatch) as caught:
        ADAPTER.load(meta_skeleton(TiTok, SMALL), state)
    message = str(caught.value)
    assert "not a checkpoint of the configured TiTok" in message
    assert "1 missing: encoder.transformer.0.attn.in_proj_weight" in message
    assert "1 unexpected: encoder.transformer.0.attn.in_proj;" in message
    assert "1 of another shape: encoder.conv_out.weight is (6, 32, 3, 3), expected (6, 32, 1, 1)" in message


def test_a_model_of_another_size_is_refused(official: dict[str, Tensor]):
    with pytest.raises(CheckpointMismatch, match=r"of another shape: .*, \.\.\."):
        ADAPTER.load(meta_skeleton(TiTok, replace(SMALL, vit_enc_model_size=ViTSize(64, 2, 4))), official)


def test_both_published_files_load(tokenizer: TiTokS128, official: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "tokenizer_titok_s128.bin"
    torch.save(official, path)
    pickled = SmallTiTok(TiTokOptions(weights=str(path)), CPU).model.state_dict()
    flat = tokenizer.model.state_dict()
    assert pickled.keys() == flat.keys()
    assert all(torch.equal(pickled[name], flat[name]) for name in flat)


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path):
    path = tmp_path / "other.bin"
    for content, reason in (
        ({"model": {"w": torch.zeros(1)}}, "at the top level: 'model' is not a tensor"),
        ({"weight": torch.zeros(2)}, "308 missing: .*1 unexpected: weight$"),
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=rf"other\.bin: .*{reason}"):
            TiTokS128(TiTokOptions(weights=str(path)), CPU)


def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (source,) = TiTokS128.weights(TiTokOptions())
    assert str(source) == "yucornetto/tokenizer_titok_s128_imagenet/model.safetensors@aa8740991cc9"
    with pytest.raises(MissingWeights) as caught:
        TiTokS128(TiTokOptions(), CPU)
    assert "hf download yucornetto/tokenizer_titok_s128_imagenet model.safetensors" in str(caught.value)
    assert str(tmp_path / "hub") in str(caught.value)
    with pytest.raises(MissingWeights, match=r"no file at .*nowhere"):
        TiTokS128(TiTokOptions(weights=str(tmp_path / "nowhere")), CPU)


def test_facts_of_the_published_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TiTokS128, "_load", lambda self: (meta_skeleton(TiTok, self.CONFIG), self.TRAINING))
    info = TiTokS128(TiTokOptions(), torch.device("meta")).info
    assert (info.input_size, info.output_size) == (256, 256)
    assert (info.tokens_per_image, info.codebook_size, info.bits_per_image) == (128, 4096, 128 * 12)
    assert info.deterministic
    assert info.family == "TiTok"


def test_pictures_to_ids_and_back(tokenizer: TiTokS128, small: TiTok):
    images = photographs(3)
    codes = tokenizer.encode(images)
    assert codes.ids.shape == (3, 16)
    with torch.no_grad():
        encoded = small.encode(images)  # [0, 1] as it is
        assert torch.equal(codes.ids, encoded.ids.squeeze(1))
        expected = small.decode(encoded.quantized)
    decoded = tokenizer.decode(codes, seeds=[0, 1, 2])
    assert decoded.shape == (3, 3, 32, 32)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-4)
    assert torch.equal(tokenizer.decode(codes, seeds=[5, 6, 7]), decoded)


def test_batch_and_order_do_not_matter(tokenizer: TiTokS128):
    images = photographs(8)
    ids = tokenizer.encode(images).ids
    pictures = tokenizer.decode(Tokens(ids), range(8))
    assert len(ids.unique()) > 20  # else the rest would say little
    assert len({tuple(row) for row in ids.tolist()}) == 8
    assert (pictures - pictures.roll(1, 0)).abs().mean() > 0.1
    for batch in (1, 3, 8):
        for order in (torch.arange(8), torch.randperm(8, generator=torch.Generator().manual_seed(batch))):
            for rows in order.split(batch):
                codes = tokenizer.encode(images[rows])
                assert torch.equal(codes.ids, ids[rows])
                decoded = tokenizer.decode(codes, rows.tolist())
                torch.testing.assert_close(decoded, pictures[rows], rtol=0, atol=1e-5)


def test_what_it_can_not_take_is_named(tokenizer: TiTokS128, small: TiTok):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 64, 32\), expected \(B, 3, 32, 32\)"):
        tokenizer.encode(torch.zeros(1, 3, 64, 32))
    with pytest.raises(ValueError, match="image of 32x64 pixels, expected 32x32"):
        small.encode(torch.zeros(1, 3, 64, 32))
    with pytest.raises(ValueError, match=r"ids from 0 to 64, expected 0 to 63"):
        tokenizer.decode(Tokens(torch.tensor([[64] + [0] * 15])), [0])
    with pytest.raises(ValueError, match=r"ids of shape \(1, 4\), expected \(B, 16\)"):
        tokenizer.decode(Tokens(torch.zeros(1, 4, dtype=torch.int64)), [0])
    with pytest.raises(ValueError, match="Latents, expected Tokens"):
        tokenizer.decode(Latents(torch.zeros(1, 4)), [0])


def test_sizes_are_named_or_given():
    assert TiTokConfig(vit_enc_model_size="base").vit_enc_model_size == (768, 12, 12)
    assert TiTokConfig(**json.loads(json.dumps(asdict(SMALL)))) == SMALL  # as a checkpoint's header holds it
    with pytest.raises(ValueError, match="size 'huge': expected one of small, base, large, or"):
        TiTokConfig(vit_dec_model_size="huge")
    with pytest.raises(ValueError, match="image_size 100: expected a multiple of vit_enc_patch_size 16"):
        TiTokConfig(image_size=100)


def test_gradients_reach_everything_but_unused_codes():
    torch.manual_seed(0)
    model = TiTok(SMALL)
    encoded = model.encode(photographs(2))
    loss = model.decode(encoded.quantized).square().mean() + model.quantizer_losses(encoded.pre_quant).total
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.latent_tokens.grad.abs().max() > 0
    used = model.quantize.embedding.weight.grad.abs().sum(1).nonzero().flatten()
    assert torch.equal(used, encoded.ids.unique())


@pytest.fixture
def case(small: TiTok, official: dict[str, Tensor], tmp_path: Path) -> Path:
    """A case of the small model, made by the port itself: what it checks is the runner."""
    folder = tmp_path / "titok" / "small"
    folder.mkdir(parents=True)
    images = photographs(2)
    with torch.no_grad():
        encoded = small.encode(images)
        tensors = {
            "image": images,
            "latent_z": encoded.pre_quant,
            "token_ids": encoded.ids,
            "quantized": encoded.quantized,
            "reconstruction_strided": small.decode(encoded.quantized)[:, :, ::4, ::4],
            "reconstruction_from_ids": small.decode_ids(encoded.ids),
        }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "case.safetensors")
    vq_model = asdict(SMALL) | {"finetune_decoder": True}
    config = {"seed": 0, "scale_after_seeding": SCALES, "model": {"vq_model": vq_model}}
    config["dataset"] = {"preprocessing": {"crop_size": vq_model.pop("image_size")}}
    (folder / "config.json").write_text(json.dumps(config))
    manifest = {name: {"shape": list(tensor.shape), "dtype": "float32"} for name, tensor in official.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "case.safetensors")
    change(tensors)
    save_file(tensors, folder / "case.safetensors")


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def failed(folder: Path) -> dict[str, CheckLine]:
    return {line.tensor: line for line in run(CaseFolder(folder)) if not line.passed}


def test_runner_passes_its_own_case_and_sees_each_part_alone(case: Path):
    assert not failed(case)
    edit(case, lambda tensors: tensors.update(image=tensors["image"].flip(3).contiguous()))
    assert failed(case).keys() == {"latent_z", "quantized", "token_ids"}


def test_runner_sees_a_changed_id_in_its_picture_alone(case: Path):
    edit(case, lambda tensors: tensors["token_ids"][0, 0, 3:4].add_(1).remainder_(64))
    lines = failed(case)
    assert lines.keys() == {"token_ids", "reconstruction_from_ids"}
    assert "1 of 32 differ" in lines["token_ids"].note


def test_runner_reads_seed_and_scale_from_the_case(case: Path):
    edit_config(case, lambda config: config.update(scale_after_seeding=SCALES | {"decoder.ffn.2.weight": 4.0}))
    assert failed(case).keys() == {"reconstruction_from_ids", "reconstruction_strided"}
    edit_config(case, lambda config: config.update(seed=1))
    assert len(failed(case)) == 5


def test_runner_fails_what_it_does_not_know(case: Path):
    edit(case, lambda tensors: tensors.update(secret=torch.zeros(1), latent_z_strided=torch.zeros(1)))
    lines = failed(case)
    assert "no check of this port knows what it is" in lines["secret"].note
    assert "does not know how latent_z was cut down" in lines["latent_z_strided"].note


@pytest.mark.parametrize(("key", "value"), [("quantize_mode", "vae"), ("secret", 1)])
def test_runner_refuses_a_model_that_the_port_is_not(case: Path, key: str, value: object):
    edit_config(case, lambda config: config["model"]["vq_model"].update({key: value}))
    with pytest.raises(CaseError, match=rf"model\.vq_model\.{key} is {value!r}, which this port does not have"):
        failed(case)


def test_runner_names_a_missing_setting(case: Path):
    edit_config(case, lambda config: config["dataset"].clear())
    with pytest.raises(CaseError, match=r"config\.json: the published nesting is missing: KeyError\('preprocessing'\)"):
        failed(case)
