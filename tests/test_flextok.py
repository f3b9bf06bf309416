"""FlexTok: golden cases, checkpoints and their configuration, prefixes, and noise that belongs to an image."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from skimage import data

from baselines.tokenizers.flextok.adapter import FlexTokD12D12, FlexTokD18D18, FlexTokD18D28, FlexTokOptions
from baselines.tokenizers.flextok.checkpoint_config import parse_config
from baselines.tokenizers.flextok.config import FlexTokConfig, TransformerConfig, VAEConfig
from baselines.tokenizers.flextok.conformance import run
from baselines.tokenizers.flextok.model import FlexTok
from baselines.tokenizers.flextok.sampler import (
    Sampling,
    image_noise,
)
from baselines.tokenizers.flextok.state_dict import FlexTokStateDict
from lactok.conformance import CaseFolder
from lactok.interface import Latents, Tokens
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch, MissingWeights, WeightsError
from tests.flextok_support import GOLDEN, SMALL, published_tree, seeded_weights, small_tree, write_checkpoint

CPU = torch.device("cpu")
ADAPTER = FlexTokStateDict()


class SmallFlexTok(FlexTokD18D28):
    """The published class at sizes that a test can afford."""

    EXPECTED = SMALL


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return seeded_weights()


@pytest.fixture(scope="module")
def checkpoint(official: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "model.safetensors", official)


def build(checkpoint: Path, **options: object) -> SmallFlexTok:
    return SmallFlexTok(
        FlexTokOptions(weights=str(checkpoint), **{"steps": 4, "keep_ids": SMALL.registers, **options}), CPU
    )


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> SmallFlexTok:
    return build(checkpoint)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Eight different cuts of SMALL's size, (8, 3, S, S)."""
    size = SMALL.image_size
    sources = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    cuts = [p[y : y + 8 * size : 8, 20 : 20 + 8 * size : 8] for p in sources for y in (0, 100)]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float() / 255


# Golden cases


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """The golden case in a model's folder of its own, to be changed."""
    folder = tmp_path / "flextok" / "changed"
    shutil.copytree(GOLDEN / "tiny", folder)
    return folder


def edit_config(folder: Path, change: Callable[[dict], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_golden_case_and_full_manifests():
    case = CaseFolder(GOLDEN / "tiny")
    lines = {line.tensor: line for line in run(case)}
    assert [line for line in lines.values() if not line.passed] == []
    inputs = {"latents", "noise", "noised_latents", "timesteps", "keep_k"}
    manifests = {"manifest.json", "manifest_d12_d12.json", "manifest_d18_d18.json"}
    assert set(lines) == (set(case.names) - inputs) | manifests
    assert lines["token_ids"].ids_equal
    assert max(line.max_rel for line in lines.values() if line.max_rel is not None) < 1e-5


@pytest.mark.parametrize(
    ("change", "moved", "still"),
    [
        (lambda c: c.update(seed=1), "register_latents", "posembs_encoder"),
        (lambda c: c["sampling"].update(guidance_scale=7.0), "sample_cfg", "sample_no_guidance"),
        (lambda c: c["sampling"].update(apg_momentum=0.0), "sample_apg", "apg_first_call"),
        (lambda c: c["sampling"].update(apg_eta=0.5), "apg_first_call", "sample_cfg"),
        (lambda c: c["sampling"].update(apg_norm_threshold=5.0), "sample_apg", "sample_cfg"),
        (lambda c: c["sampling"].update(steps=5), "sample_no_guidance", "velocity_full"),
        (lambda c: c["scale_after_seeding"].popitem(), "velocity_uncond", "velocity_full"),
    ],
)
def test_a_case_is_computed_from_its_own_settings(case: Path, change, moved: str, still: str):
    edit_config(case, change)
    passed = {line.tensor: line.passed for line in run(CaseFolder(case))}
    assert not passed[moved]
    assert passed[still]


def test_a_manifest_that_differs_fails(case: Path):
    manifest = json.loads(gzip.decompress((GOLDEN / "manifest_d12_d12.json.gz").read_bytes()))
    manifest["decoder.module_dict.dec_patches_posemb_module.posembs"]["shape"] = [2, 1, 768, 16]
    (case.parent / "manifest_d12_d12.json").write_text(json.dumps(manifest))
    line = list(run(CaseFolder(case)))[-1]
    assert not line.passed
    assert "posembs is (2, 1, 768, 16), expected (1, 768, 16, 16)" in line.note


# Configuration


def test_configuration_of_the_golden_case():
    config = parse_config(published_tree())
    assert config == FlexTokConfig(TransformerConfig(128, 2), TransformerConfig(192, 3), None, registers=64, grid=8)
    assert TransformerConfig(1792, 28).hidden == 4778
    assert FlexTokD18D28.EXPECTED.codebook_size == 64000
    assert FlexTokD18D28.EXPECTED.image_size == 256


def test_every_difference_of_a_configuration_is_listed():
    tree = published_tree()
    encoder, decoder = tree["encoder"]["module_dict"], tree["decoder"]["module_dict"]
    decoder["dec_patches_posemb_module"]["posemb_type"] = "learnable_sum"
    decoder["dec_transformer"]["adaLN_expansion"] = 1
    decoder["dec_latent_dropout"]["_target_"] = "flextok.model.preprocessors.nullcond.ZeroNullCond"
    decoder["dec_registers_posemb_module"]["max_sizes"] = [32]
    decoder["dec_extra"] = {"_target_": "flextok.Extra"}
    decoder["dec_repa_unpacker"] = {"_target_": "flextok.model.postprocessors.seq_unpacking.SequenceUnpacker"}
    encoder["enc_transformer"]["qkv_bias"] = True
    del encoder["enc_to_latents"]
    with pytest.raises(CheckpointMismatch) as caught:
        parse_config(tree, VAEConfig())
    message = str(caught.value)
    for difference in (
        "decoder.dec_patches_posemb_module.posemb_type is 'learnable_sum', expected 'sincos'",
        "decoder.dec_transformer.adaLN_expansion is 1, expected 2",
        "decoder.dec_latent_dropout is a ZeroNullCond, expected LearnedNullCond",
        "decoder.dec_registers_posemb_module.max_sizes is (32,), expected (64,)",
        "decoder has the unknown module dec_extra (Extra)",
        "encoder.enc_transformer.qkv_bias is True, expected False",
        "encoder has no module enc_to_latents",
        "vae has no scaling_factor",
    ):
        assert difference in message
    assert message.count(";") == 7  # and nothing else
    assert "repa" not in message


def test_scaling_factor_may_be_given():
    tree = published_tree() | {"vae": {"latent_channels": 16, "hf_hub_path": "EPFL-VILAB/flextok_vae_c16"}}
    with pytest.raises(CheckpointMismatch, match=r"that of EPFL-VILAB/flextok_vae_c16 applies.*vae_scaling_factor"):
        parse_config(tree, VAEConfig())
    assert parse_config(tree, VAEConfig(), vae_scaling_factor=0.5).vae == VAEConfig(scaling_factor=0.5)


def test_scaling_factor_is_read_from_the_repository_that_the_configuration_names(
    official: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    tree = small_tree()
    tree["vae"] = {"latent_channels": None, "scaling_factor": None, "hf_hub_path": "EPFL-VILAB/flextok_vae_c4"}
    tree["vae"]["latent_channels"] = 4
    save_file(official, tmp_path / "model.safetensors", metadata={key: str(value) for key, value in tree.items()})
    with pytest.raises(CheckpointMismatch, match=r"that of EPFL-VILAB/flextok_vae_c4 applies.*vae_scaling_factor"):
        build(tmp_path / "model.safetensors")
    repo = tmp_path / "hub" / "models--EPFL-VILAB--flextok_vae_c4"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    config = repo / "snapshots" / ("0" * 40) / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"scaling_factor": 0.7}')
    assert build(tmp_path / "model.safetensors").model.config == SMALL
    assert build(tmp_path / "model.safetensors", vae_scaling_factor=0.5).model.config.vae.scaling_factor == 0.5
    config.write_text("{}")
    with pytest.raises(WeightsError, match=r"config\.json states no scaling_factor of a VAE"):
        build(tmp_path / "model.safetensors")


def test_nulls_and_left_out_settings_mean_what_the_published_code_takes_them_for():
    tree = published_tree() | {"vae": {"latent_channels": None, "scaling_factor": 0.5}}
    plain = parse_config(tree, VAEConfig())
    encoder, decoder = tree["encoder"]["module_dict"], tree["decoder"]["module_dict"]
    encoder["enc_register_module"]["n_eval"] = None  # n_eval or n_max
    del decoder["dec_seq_packer"]["mask_mode"]  # "full"
    assert parse_config(tree, VAEConfig()) == plain
    del encoder["enc_seq_packer"]["mask_mode"]  # the encoder needs another than the default
    with pytest.raises(CheckpointMismatch, match="enc_seq_packer has no mask_mode"):
        parse_config(tree)


def test_a_vae_with_a_learned_variance_and_wrapped_names_are_taken(
    tokenizer: SmallFlexTok, official: dict[str, torch.Tensor], tmp_path: Path
):
    more = {f"module.{name}": tensor for name, tensor in (official | {"vae.logvar": torch.zeros(1)}).items()}
    other = build(write_checkpoint(tmp_path / "model.safetensors", more).parent)  # a folder will do
    state = tokenizer.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in other.model.state_dict().items())


def test_a_pointer_in_the_place_of_the_checkpoint_is_named(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(WeightsError, match="is a Git LFS pointer"):
        build(path)


def test_max_timestep_defaults_as_published():
    tree = published_tree()
    del tree["decoder"]["module_dict"]["dec_time_embedder"]["max_timestep"]
    assert parse_config(tree).max_timestep == 1000


# Checkpoints


def test_header_and_config_file_give_the_same_model(
    tokenizer: SmallFlexTok, official: dict[str, torch.Tensor], tmp_path: Path
):
    path = tmp_path / "model.safetensors"
    save_file(official, path)
    with pytest.raises(WeightsError, match=r"header holds no configuration .*config\.json"):
        build(path)
    (tmp_path / "config.json").write_text(json.dumps(small_tree()))
    assert [str(source) for source in SmallFlexTok.weights(FlexTokOptions(weights=str(path)))] == [
        str(path),
        str(tmp_path / "config.json"),
    ]
    other = build(path).model
    assert other.config == tokenizer.model.config == SMALL
    state = tokenizer.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in other.state_dict().items())


def test_another_layout_is_listed(checkpoint: Path):
    options = FlexTokOptions(weights=str(checkpoint))
    with pytest.raises(CheckpointMismatch) as caught:
        FlexTokD12D12(options, CPU)
    assert f"{checkpoint}: the configuration is not EPFL-VILAB/flextok_d12_d12_in1k's layout" in str(caught.value)
    assert "encoder.dim is 64, expected 768" in str(caught.value)
    assert "registers is 16, expected 256" in str(caught.value)


def test_there_and_back(tokenizer: SmallFlexTok, official: dict[str, torch.Tensor]):
    ours = tokenizer.model.state_dict()
    assert set(ADAPTER.to_published(ours)) == set(official)
    back = ADAPTER.from_published(ADAPTER.to_published(ours), meta_skeleton(FlexTok, SMALL))
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


def test_tensors_that_do_not_fit_are_named_by_kind(official: dict[str, torch.Tensor]):
    state = {name: tensor.to("meta") for name, tensor in official.items()}
    state["decoder.module_dict.dec_repa_head.proj.weight"] = torch.empty(3, 3, device="meta")  # only training reads it
    ADAPTER.load(meta_skeleton(FlexTok, SMALL), state)
    state["decoder.module_dict.dec_nested_dropout.mask"] = state.pop(
        "decoder.module_dict.dec_nested_dropout.dropout_mask_token"
    )
    state["vae.vae.quant_conv.bias"] = torch.empty(9, device="meta")
    with pytest.raises(CheckpointMismatch) as caught:
        ADAPTER.load(meta_skeleton(FlexTok, SMALL), state)
    message = str(caught.value)
    assert "1 missing: decoder.module_dict.dec_nested_dropout.dropout_mask_token" in message
    assert "1 unexpected: decoder.module_dict.dec_nested_dropout.mask" in message
    assert "1 of another shape: vae.vae.quant_conv.bias is (9,), expected (8,)" in message


@pytest.mark.parametrize(
    ("cls", "repo"),
    [(FlexTokD18D28, "d18_d28"), (FlexTokD12D12, "d12_d12"), (FlexTokD18D18, "d18_d18")],
)
def test_missing_weights_say_how_to_get_them(cls, repo: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingWeights) as caught:
        cls(FlexTokOptions(), CPU)
    assert f"hf download EPFL-VILAB/flextok_{repo}_in1k model.safetensors" in str(caught.value)
    assert str(tmp_path / "hub") in str(caught.value)
    assert [str(s).split(" ")[0] for s in cls.weights(FlexTokOptions())] == [
        f"EPFL-VILAB/flextok_{repo}_in1k/model.safetensors",
        f"EPFL-VILAB/flextok_{repo}_in1k/config.json",
    ]
    assert "non-commercial" in cls.code_licence
    assert "non-commercial" in cls.weights_licence


# The tokenizer


def test_facts(tokenizer: SmallFlexTok, checkpoint: Path):
    info = tokenizer.info
    assert (info.input_size, info.output_size) == (16, 16)
    assert (info.tokens_per_image, info.codebook_size, info.deterministic) == (16, 64000, False)
    assert build(checkpoint, keep_ids=3).info.bits_per_image == pytest.approx(3 * math.log2(64000))
    assert FlexTokOptions() == FlexTokOptions(steps=20, guidance_scale=7.5, keep_ids=256, posterior_seed=None)


def test_pictures_pass_the_model_as_published(tokenizer: SmallFlexTok, photographs: torch.Tensor):
    model, factor = tokenizer.model, SMALL.vae.scaling_factor
    with torch.no_grad():
        latents = model.vae.encode(photographs * 2 - 1).latent_dist.mode() * factor
        want = model.encode_latents(latents).ids
        codes = tokenizer.encode(photographs)
        assert torch.equal(codes.ids, want)
        assert codes.lengths is None
        assert len(want.unique()) > 50  # of 128: the ids say something
        noise = torch.stack([image_noise(seed, (4, 8, 8)) for seed in range(8)])
        latents = model.decode_latents(want, torch.full((8,), 16), noise, Sampling(4))
        expected = (model.vae.decode(latents / factor).sample + 1) / 2
    torch.testing.assert_close(tokenizer.decode(codes, range(8)), expected, rtol=0, atol=1e-5)


def test_neither_batch_nor_order_matters(tokenizer: SmallFlexTok, photographs: torch.Tensor):
    seeds = [2**62 + 5 * i for i in range(8)]
    codes = tokenizer.encode(photographs)
    images = tokenizer.decode(codes, seeds)
    assert images.isfinite().all()
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    for size in (1, 3, 8):
        for start in range(0, 8, size):
            rows = order[start : start + size]
            ids = tokenizer.encode(photographs[rows]).ids
            assert torch.equal(ids, codes.ids[rows])
            again = tokenizer.decode(Tokens(ids), [seeds[i] for i in rows])
            torch.testing.assert_close(again, images[rows], rtol=0, atol=1e-5)


def test_noise_is_the_seed_s_alone(tokenizer: SmallFlexTok, photographs: torch.Tensor):
    same = Tokens(tokenizer.encode(photographs[:1]).ids.expand(3, -1))
    images = tokenizer.decode(same, [7, 7, 8])
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)
    assert (images[0] - images[2]).abs().max() > 1e-2
    expected = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(7))
    assert torch.equal(image_noise(7, (4, 8, 8)), expected)


@pytest.mark.parametrize("keep", [1, 5, 16])
def test_a_prefix_stands_for_the_picture(
    tokenizer: SmallFlexTok, checkpoint: Path, photographs: torch.Tensor, keep: int
):
    full = tokenizer.encode(photographs[:2]).ids
    short = build(checkpoint, keep_ids=keep).encode(photographs[:2])
    assert torch.equal(short.ids, full[:, :keep])
    assert short.lengths is None if keep == 16 else short.lengths.tolist() == [keep, keep]
    images = tokenizer.decode(short, [1, 2])
    other = full.clone()
    other[:, keep:] = 63999  # what does not count
    padded = tokenizer.decode(Tokens(other, lengths=torch.tensor([keep, keep])), [1, 2])
    torch.testing.assert_close(images, padded, rtol=0, atol=1e-5)
    if keep < 16:
        longer = tokenizer.decode(Tokens(full[:, : keep + 1]), [1, 2])
        assert (images - longer).abs().max() > 1e-4


def test_lengths_may_differ_in_a_batch(tokenizer: SmallFlexTok, photographs: torch.Tensor):
    ids, lengths = tokenizer.encode(photographs[:3]).ids, torch.tensor([1, 16, 4])
    together = tokenizer.decode(Tokens(ids, lengths=lengths), [1, 2, 3])
    for i, length in enumerate(lengths.tolist()):
        alone = tokenizer.decode(Tokens(ids[i : i + 1, :length]), [i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_posterior_is_sampled_only_when_asked(tokenizer: SmallFlexTok, checkpoint: Path, photographs: torch.Tensor):
    sampling = build(checkpoint, posterior_seed=0)
    ids = sampling.encode(photographs).ids
    assert not torch.equal(ids, tokenizer.encode(photographs).ids)
    assert torch.equal(sampling.encode(photographs.flip(0)[:3]).ids, ids.flip(0)[:3])
    assert not torch.equal(build(checkpoint, posterior_seed=1).encode(photographs).ids, ids)


def test_what_it_can_not_take_is_named(tokenizer: SmallFlexTok, checkpoint: Path):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 16, 8\), expected \(B, 3, 16, 16\)"):
        tokenizer.encode(torch.zeros(1, 3, 16, 8))
    ids = torch.zeros(1, 17, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"ids of shape \(1, 17\), expected \(B, n\) with n from 1 to 16"):
        tokenizer.decode(Tokens(ids), [0])
    with pytest.raises(ValueError, match=r"ids from 0 to 64000, expected 0 to 63999"):
        tokenizer.decode(Tokens(torch.tensor([[0, 64000]])), [0])
    with pytest.raises(ValueError, match=r"lengths \[3\], expected 1 numbers from 1 to 2"):
        tokenizer.decode(Tokens(ids[:, :2], lengths=torch.tensor([3])), [0])
    with pytest.raises(ValueError, match="2 seeds for 1 images"):
        tokenizer.decode(Tokens(ids[:, :2]), [0, 1])
    with pytest.raises(ValueError, match="Latents, expected Tokens"):
        tokenizer.decode(Latents(torch.zeros(1, 4)), [0])
    for keep in (0, 17):
        with pytest.raises(ValueError, match=f"keep_ids {keep}: expected 1 to 16"):
            build(checkpoint, keep_ids=keep)
    with pytest.raises(ValueError, match="steps 0: expected at least 1"):
        build(checkpoint, steps=0)


def test_smaller_latents_take_the_corner_of_the_positions(tokenizer: SmallFlexTok):
    assert tokenizer.model.encoder(torch.zeros(1, 4, 4, 6)).shape == (1, 16, 6)
    with pytest.raises(ValueError, match=r"latents of 8x10: both sides must be multiples of 2, at most 8"):
        tokenizer.model.encoder(torch.zeros(1, 4, 10, 8))


def test_without_guidance_there_is_one_pass(tokenizer: SmallFlexTok):
    seen = []
    hook = tokenizer.model.decoder.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    ids, noise = torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        for scale in (1.0, 2.0):
            tokenizer.model.decode_latents(ids, torch.tensor([16]), noise, Sampling(1, scale))
    hook.remove()
    assert seen == [1, 2]
