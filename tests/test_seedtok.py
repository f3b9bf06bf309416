"""SEED-2: golden cases, the official names of its checkpoints, and SeedTok behind the interface."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from skimage import data
from torch import Tensor

from baselines.tokenizers.seedtok import unclip
from baselines.tokenizers.seedtok.adapter import SeedTok, SeedTokOptions, common_folder
from baselines.tokenizers.seedtok.conformance import case_config, case_weights, run
from baselines.tokenizers.seedtok.model import QFormerConfig, SeedConfig, SeedModel
from baselines.tokenizers.seedtok.state_dict import SeedStateDict
from lactok.conformance import CaseError, CaseFolder, CheckLine, read_manifest
from lactok.interface import Latents, Tokens
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch, HubWeights, MissingWeights, WeightsError
from tests.seed_support import write_checkpoints, write_painter

GOLDEN = Path(__file__).parent / "golden" / "seed"
ADAPTER = SeedStateDict()
CPU = torch.device("cpu")
TINY = CaseFolder(GOLDEN / "tiny")
SMALL = case_config(TINY)
UNUSED = ("pos_embed", "Qformer.bert.embeddings.position_ids")
"""Of the manifest, beside `blocks.*`: without effect on images."""


class SmallSeedTok(SeedTok):
    """The published class at the golden case's size."""

    CONFIG = SMALL


@pytest.fixture(scope="module")
def lines() -> dict[str, CheckLine]:
    return {line.tensor: line for line in run(TINY)}


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """Seeded weights of the small model under the official names."""
    return case_weights(TINY)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tiny case in a model's folder of its own, to be changed."""
    folder = tmp_path / "seed" / "changed"
    shutil.copytree(GOLDEN / "tiny", folder)
    return folder


def edit_config(folder: Path, change: Callable[[dict], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def photographs(size: int, count: int = 8) -> Tensor:
    sources = (data.astronaut(), data.coffee(), data.chelsea())
    cuts = [sources[i % 3][20 * i : 20 * i + size, 30 * i : 30 * i + size] for i in range(count)]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float() / 255


# Golden cases


def test_every_stored_output_is_checked_and_passes(lines: dict[str, CheckLine]):
    assert all(line.passed for line in lines.values()), [x for x in lines.values() if not x.passed]
    stored = set(TINY.names) - {"image_unit_range", "rolled_token_ids"}
    assert set(lines) == stored | {"class_labels_noise_level_0", "class_labels_noise_level_300"}
    assert lines["token_ids"].ids_equal
    assert all(line.max_rel < 2e-5 for line in lines.values() if line.max_rel is not None)


def test_without_the_causal_mask_the_case_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "baselines.tokenizers.seedtok.conformance.QFormerConfig", partial(QFormerConfig, causal_queries=31)
    )
    failed = {line.tensor for line in run(TINY) if not line.passed}
    assert failed == {"query_output", "quantizer_input", "token_ids"}


def test_the_longest_ending_decides_the_factor(official: dict[str, Tensor]):
    plain = case_weights_without_factors()
    for name, factor in (
        ("Qformer.bert.encoder.layer.0.crossattention.self.query.weight", 2.0),
        ("quantize.embedding.weight", 12.0),
        ("query_tokens", 1.0),
        ("Qformer.bert.encoder.layer.0.crossattention.self.key.weight", 1.0),
    ):
        assert torch.equal(official[name], plain[name] * factor), name


def case_weights_without_factors() -> dict[str, Tensor]:
    case = CaseFolder(TINY.path)
    case.config = {**TINY.config, "scale_after_seeding": {}}
    return case_weights(case)


def test_a_stored_tensor_that_nothing_checks_fails(copy: Path):
    tensors = load_file(copy / "case.safetensors")
    save_file(tensors | {"surprise": torch.zeros(1)}, copy / "case.safetensors")
    (failed,) = [line for line in run(CaseFolder(copy)) if not line.passed]
    assert failed.tensor == "surprise"


def test_a_case_of_the_conditioning_alone(copy: Path):
    tensors = load_file(GOLDEN / "unclip_conditioning.safetensors")
    save_file(tensors, copy / "case.safetensors")
    assert [line.passed for line in run(CaseFolder(copy))] == [True, True]
    tensors["class_labels_noise_level_300"] += 0.01
    save_file(tensors, copy / "case.safetensors")
    assert [line.passed for line in run(CaseFolder(copy))] == [True, False]
    save_file({k: v for k, v in tensors.items() if k != "noise"}, copy / "case.safetensors")
    with pytest.raises(CaseError, match="the conditioning is missing noise"):
        list(run(CaseFolder(copy)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(use_qformer_image=True), "use_qformer_image is True, which this port does not have"),
        (lambda c: c["vit"].update(rope=True), "vit: .*unexpected keyword argument 'rope'"),
        (lambda c: c.pop("n_embed"), "has no 'n_embed'"),
    ],
)
def test_settings_that_this_port_lacks_are_named(copy: Path, change: Callable[[dict], None], message: str):
    edit_config(copy, change)
    with pytest.raises(CaseError, match=message):
        list(run(CaseFolder(copy)))


# Names of the checkpoints


def meta_state(*manifests: str) -> dict[str, Tensor]:
    """The tensors that manifests of golden/seed list; those of the published files are compressed."""
    specs = {name: spec for m in manifests for name, spec in read_manifest(GOLDEN / m).items()}
    return {name: torch.empty(spec.shape, device="meta") for name, spec in specs.items()}


def test_the_full_manifests_load_strictly_without_memory():
    state = meta_state("manifest.json.gz", "manifest_visual_encoder.json.gz")
    model = ADAPTER.load(meta_skeleton(SeedModel, SeedConfig()), state)
    unused = sum(state[n].numel() for n in state if n.startswith("blocks.") or n in UNUSED)
    zero_biases = 39 * 1408  # of the keys, which are not published
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in state.values()) - unused + zero_biases


def test_each_entry_is_needed_unless_it_is_known_to_be_without_effect(tiny_meta: SeedModel):
    state = meta_state("tiny/manifest.json")
    for name in state:
        rest = {k: v for k, v in state.items() if k != name}
        if name.startswith("blocks.") or name in UNUSED:
            ADAPTER.from_published(rest, tiny_meta)
        else:
            with pytest.raises(CheckpointMismatch, match=f"1 missing: {name}"):
                ADAPTER.from_published(rest, tiny_meta)


@pytest.fixture(scope="module")
def tiny_meta() -> SeedModel:
    return meta_skeleton(SeedModel, SMALL)


def test_there_and_back(official: dict[str, Tensor], tiny_meta: SeedModel):
    back = ADAPTER.to_published(ADAPTER.from_published(official, tiny_meta))
    left_out = {name for name in official if name.startswith("blocks.") or name in UNUSED}
    assert set(back) == set(official) - left_out
    assert all(torch.equal(tensor, official[name]) for name, tensor in back.items())


def test_what_does_not_fit_is_named_by_kind(tiny_meta: SeedModel):
    state = meta_state("tiny/manifest.json")
    state["encode_task_layer.9.weight"] = state.pop("encode_task_layer.0.weight")
    state["query_tokens"] = torch.empty(1, 16, 96, device="meta")
    with pytest.raises(CheckpointMismatch) as caught:
        ADAPTER.from_published(state, tiny_meta)
    message = str(caught.value)
    assert "1 missing: encode_task_layer.0.weight" in message
    assert "1 unexpected: encode_task_layer.9.weight" in message
    assert "1 of another shape: query_tokens is (1, 16, 96), expected (1, 32, 96)" in message


# Behind the interface


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painter(tmp_path_factory.mktemp("unclip"), SMALL.image_features_dim)


@pytest.fixture(scope="module")
def options(official: dict[str, Tensor], painter: Path, tmp_path_factory: pytest.TempPathFactory) -> SeedTokOptions:
    written = write_checkpoints(official, tmp_path_factory.mktemp("weights"))
    return SeedTokOptions(**written, unclip=str(painter), steps=3)


@pytest.fixture(scope="module")
def tokenizer(options: SeedTokOptions) -> SeedTok:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no unexpected keys
        return SmallSeedTok(options, CPU)


def changed(options: SeedTokOptions, **values: object) -> SeedTokOptions:
    return SeedTokOptions(**{**vars(options), **values})


def test_facts(tokenizer: SeedTok):
    info = tokenizer.info
    assert (info.tokens_per_image, info.codebook_size, info.input_size, info.output_size) == (32, 512, 56, 16)
    assert not info.deterministic
    assert str(info.training) == "not published"
    published = SeedConfig()
    assert (published.qformer.num_query_token, published.n_embed, published.vit.img_size) == (32, 8192, 224)
    assert (SeedTokOptions().steps, SeedTokOptions().guidance_scale, SeedTokOptions().noise_level) == (20, 10.0, 0)


def test_pictures_in_the_unit_range_are_normalised(tokenizer: SeedTok, official: dict[str, Tensor]):
    ids = tokenizer.encode(TINY["image_unit_range"]).ids
    assert (ids == TINY["token_ids"]).float().mean() > 0.9  # the ViT's weights were rounded to half


def test_same_seeds_same_pictures_in_any_batch_and_order(tokenizer: SeedTok):
    images, seeds = photographs(56), list(range(100, 108))
    ids = tokenizer.encode(images).ids
    assert len(ids.unique()) > 20
    whole = tokenizer.decode(Tokens(ids), seeds)
    assert whole.shape == (8, 3, 16, 16)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    for batch in (1, 3, 8):
        for start in range(0, 8, batch):
            rows = order[start : start + batch]
            part = tokenizer.encode(images[rows]).ids
            assert torch.equal(part, ids[rows])
            torch.manual_seed(start)  # the global generator has no part in it
            again = tokenizer.decode(Tokens(part), [seeds[i] for i in rows])
            torch.testing.assert_close(again, whole[rows], rtol=0, atol=1e-5)


def test_pictures_follow_from_ids_and_from_seeds(tokenizer: SeedTok):
    ids = tokenizer.encode(photographs(56, 2)).ids
    first, other_seed, other_ids = tokenizer.decode(Tokens(ids[[0, 0, 1]]), [0, 1, 0])
    assert (first - other_seed).abs().max() > 1e-2
    assert (first - other_ids).abs().max() > 1e-3
    assert tokenizer.decode(Tokens(ids[:0]), []).shape == (0, 3, 16, 16)


def test_painting_by_hand_gives_the_same(options: SeedTokOptions):
    """Which noise is drawn first, the zeros of the unconditional half, guidance, and the noise level."""
    tokenizer = SmallSeedTok(changed(options, noise_level=300, guidance_scale=4.0), CPU)
    ids = tokenizer.encode(photographs(56, 1)).ids
    pipe = tokenizer.unclip.pipeline
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        embeds = tokenizer.model.image_embeds(tokenizer.model.lift(ids))
        noise = torch.randn(embeds.shape, generator=generator)
        latents = torch.randn(1, 4, 8, 8, generator=generator)
        mean, std = pipe.image_normalizer.mean, pipe.image_normalizer.std
        labels = unclip.class_labels(mean, std, embeds, noise, 300)
        prompt = pipe.text_encoder(torch.tensor([[4, 5, 0, 0, 0, 0, 0, 0]]))[0]  # empty; "!" pads, as published
        pipe.scheduler.set_timesteps(3)
        for t in pipe.scheduler.timesteps:
            cond, uncond = (
                pipe.unet(latents, t, prompt, class_labels=label).sample for label in (labels, torch.zeros_like(labels))
            )
            latents = pipe.scheduler.step(uncond + 4.0 * (cond - uncond), t, latents).prev_sample
        want = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(tokenizer.decode(Tokens(ids), [7]), want.clamp(0, 1), rtol=0, atol=1e-5)


def test_what_it_can_not_take_is_named(tokenizer: SeedTok, options: SeedTokOptions):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 56, 32\), expected \(B, 3, 56, 56\)"):
        tokenizer.encode(torch.zeros(1, 3, 56, 32))
    ids = torch.zeros(1, 32, dtype=torch.int64)
    for codes, seeds, message in (
        (Tokens(ids + 512), [0], "ids from 512 to 512, expected 0 to 511"),
        (Tokens(ids[:, :4]), [0], r"ids of shape \(1, 4\), expected \(B, 32\)"),
        (Latents(torch.zeros(1, 4)), [0], "Latents, expected Tokens"),
        (Tokens(ids), [0, 1], "2 seeds for 1 images"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(codes, seeds)
    with pytest.raises(ValueError, match="steps 0: expected at least 1"):
        SmallSeedTok(changed(options, steps=0), CPU)
    with pytest.raises(ValueError, match="noise_level 1000: expected 0 to 999"):
        SmallSeedTok(changed(options, noise_level=1000), CPU)


def test_unknown_entries_are_named_and_missing_ones_refused(options: SeedTokOptions, tmp_path: Path):
    state = torch.load(options.weights, weights_only=True)
    path = tmp_path / "seed_quantizer.pt"
    torch.save(state | {"temp": torch.ones(1), "itm_head.bias": torch.ones(2)}, path)
    with pytest.warns(UserWarning, match=r"seed_quantizer\.pt: 2 unexpected keys are ignored: temp, itm_head\.bias"):
        SmallSeedTok(changed(options, weights=str(path)), CPU)
    del state["query_tokens"]
    torch.save(state | {"tokens": torch.ones(1)}, path)
    with pytest.raises(CheckpointMismatch, match=r"eva_vit_g\.pth: .*1 missing: query_tokens; 1 unexpected: tokens"):
        SmallSeedTok(changed(options, weights=str(path)), CPU)
    torch.save({"model": state}, path)
    with pytest.raises(WeightsError, match=r"seed_quantizer\.pt: at the top level: 'model' is not a tensor"):
        SmallSeedTok(changed(options, weights=str(path)), CPU)


def test_a_painter_whose_tensors_do_not_fit_is_refused(painter: Path, tmp_path: Path):
    folder = tmp_path / "unclip"
    shutil.copytree(painter, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"] = torch.zeros(9)
    tensors["stranger"] = torch.zeros(1)
    del tensors["conv_out.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointMismatch) as caught:
        unclip.load(folder)
    message = str(caught.value)
    assert f"{folder / 'unet'}: " in message
    assert "1 missing: conv_out.bias; 1 unexpected: stranger; 1 of another shape: conv_in.bias is (9,)" in message


def test_a_painter_of_other_embeddings_is_refused(options: SeedTokOptions, painter: Path, tmp_path: Path):
    folder = tmp_path / "unclip"
    shutil.copytree(painter, folder)
    StableUnCLIPImageNormalizer(48).save_pretrained(folder / "image_normalizer")
    with pytest.raises(WeightsError, match="takes image embeddings of 48 values, expected 64"):
        SmallSeedTok(changed(options, unclip=str(folder)), CPU)


def test_a_scheduler_that_is_none_is_refused(painter: Path, tmp_path: Path):
    folder = tmp_path / "unclip"
    shutil.copytree(painter, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DiffusionPipeline"}')
    with pytest.raises(WeightsError, match="scheduler: _class_name is 'DiffusionPipeline', expected one of"):
        unclip.load(folder)


@pytest.mark.parametrize("how", [{"safe_serialization": False}, {"variant": "fp16"}, {"max_shard_size": "20KB"}])
def test_a_folder_in_each_form_of_save_pretrained(painter: Path, tmp_path: Path, how: dict):
    whole = unclip.load(painter)
    whole.pipeline.save_pretrained(tmp_path / "saved", **how)
    for name in ("feature_extractor", "image_encoder"):
        shutil.rmtree(tmp_path / "saved" / name, ignore_errors=True)
    files = unclip.local_files(tmp_path / "saved")
    assert all(path.is_file() for path in files)
    assert (len(files) > len(unclip.local_files(painter)) + 2) == ("max_shard_size" in how)
    again = unclip.load(tmp_path / "saved")
    for name in ("unet", "vae", "text_encoder"):
        seen, expected = (getattr(u.pipeline, name).state_dict() for u in (again, whole))
        assert all(torch.equal(seen[key], expected[key]) for key in expected)


def test_files_of_two_revisions_are_refused():
    paths = [Path("a/unet/config.json"), Path("a/vae/config.json"), Path("b/scheduler/scheduler_config.json")]
    assert common_folder(paths[:2]) == Path("a")
    with pytest.raises(WeightsError, match=r"b/scheduler/scheduler_config\.json: not in a, hence of another revision"):
        common_folder(paths)


def test_missing_weights_say_how_to_get_them(options: SeedTokOptions, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(SmallSeedTok, "VIT", type(SeedTok.VIT)("https://localhost:9/eva_vit_g.pth"))
    sources = SeedTok.weights(SeedTokOptions())
    assert str(sources[0]) == "AILab-CVC/seed-tokenizer-2/seed_quantizer.pt@c6d957a9b280"
    assert str(sources[1]).endswith("/eva_vit_g.pth")
    assert {s.repo for s in sources[2:] if isinstance(s, HubWeights)} == {"sd2-community/stable-diffusion-2-1-unclip"}
    for values, message in (
        ({"weights": None}, "hf download AILab-CVC/seed-tokenizer-2 seed_quantizer.pt"),
        ({"vit": None}, f"curl -L --create-dirs -o {tmp_path}/checkpoints/eva_vit_g.pth https://localhost:9/"),
        (
            {"unclip": None},
            r"hf download sd2-community/stable-diffusion-2-1-unclip .*unclip=DIR.*stabilityai/.* was removed",
        ),
        ({"unclip": str(tmp_path / "nowhere")}, r"no file at .*nowhere/unet/config\.json"),
    ):
        with pytest.raises(MissingWeights, match=message):
            SmallSeedTok(changed(options, **values), CPU)
