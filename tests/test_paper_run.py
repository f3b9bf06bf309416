"""Table 1 end to end: the paper's command on a twin of ImageNet, seeded checkpoints in their published forms in place.

Only sizes differ from the real thing: the networks' widths (the classes' CONFIG), and how many pictures there are.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baselines.flextok.adapter import FlexTokD18D28
from baselines.llamagen.adapter import LlamaGen
from baselines.llamagen.keymap import to_official
from baselines.seedtok.adapter import SeedTok
from baselines.seedtok.conformance import case_config, case_weights
from baselines.titok.adapter import TiTokS128
from baselines.titok.keymap import meta_model as meta_titok
from baselines.titok.keymap import official_name
from evals.cli.report import main as report
from evals.record import read
from evals.run import main as evals
from lactok.conformance import CaseFolder
from lactok.features import inception, lpips
from lactok.models.autoencoder import AutoencoderConfig
from lactok.models.lactok import meta_model as meta_lactok
from lactok.models.ladd import LatentDecoderConfig
from lactok.models.ladd_keymap import plain_shapes, published_shapes
from lactok.models.vq import VQConfig, VQModel
from lactok.seeded import TensorSpec, manifest_of, seeded_state_dict
from lactok.systems import tokenizer as systems
from lactok.weights import LocalWeights
from tests import flextok_support, ladd_support, twins
from tests.seed_support import write_checkpoints, write_painter
from tests.support import the_run
from tests.test_metrics_networks import inception_manifest, seeded_backbone
from tests.test_titok import SMALL as SMALL_TITOK

PICTURES = 2
SEED_CASE = CaseFolder(Path(__file__).parent / "golden" / "seed" / "tiny")
FLEXTOK = dataclasses.replace(flextok_support.SMALL, registers=256)  # as many ids as published
LACTOK = dataclasses.replace(  # the published factors of 16 and 8 between pictures, ids and latents
    ladd_support.SMALL,
    vq=VQConfig(64, 4, z_channels=8, ch=8, norm_num_groups=4),
    decoder=LatentDecoderConfig(ladd_support.UNET, 4, (4, 8), text_positions=5, pixels_per_latent=8),
    autoencoder=AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
)


def seeded_lactok(path: Path, wrapped: bool) -> Path:
    """A checkpoint under the published names, the UNet wrapped by peft (as released) or plain (as trained here)."""
    model = meta_lactok(LACTOK)
    shapes = published_shapes(model, ladd_support.LORA) if wrapped else plain_shapes(model)
    state = seeded_state_dict({name: TensorSpec(shape) for name, shape in shapes.items()})
    if wrapped:
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    return path


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings that name them; the tokenizers' and Inception's classes expect what is in them."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(TiTokS128, "CONFIG", SMALL_TITOK)
    names = {official_name(name): spec for name, spec in manifest_of(meta_titok(SMALL_TITOK)).items()}
    state = seeded_state_dict(names)
    state["pixel_decoder.conv_out.weight"] *= 0.1  # else no picture: its values are far from [0, 1]
    save_file(state, folder / "titok.safetensors")

    vq = VQConfig(ch=32, z_channels=32, codebook_size=64)
    monkeypatch.setattr(LlamaGen, "CONFIG", vq)
    state = seeded_state_dict(manifest_of(VQModel(vq)))
    torch.save({"model": to_official(state)}, folder / "vq_ds16_c2i.pt")

    monkeypatch.setattr(FlexTokD18D28, "EXPECTED", FLEXTOK)
    flextok_support.write_checkpoint(folder / "flextok.safetensors", flextok_support.seeded_weights(FLEXTOK), FLEXTOK)

    seed = case_config(SEED_CASE)
    monkeypatch.setattr(SeedTok, "CONFIG", seed)
    of_seed = write_checkpoints(case_weights(SEED_CASE), folder)
    of_seed["unclip"] = str(write_painter(folder / "unclip", seed.image_features_dim))

    return [
        f"options.titok.weights='{folder}/titok.safetensors'",
        f"options.llamagen.weights='{folder}/vq_ds16_c2i.pt'",
        f"options.flextok.weights='{folder}/flextok.safetensors'",
        *(f"options.seedtok.{key}='{path}'" for key, path in of_seed.items()),
    ]


@pytest.fixture
def lactoks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The same for LacTok's three."""
    monkeypatch.setattr(systems._Published, "CONFIG", LACTOK)
    monkeypatch.setattr(systems._Published, "LORA", ladd_support.LORA)
    released, trained = (
        seeded_lactok(tmp_path / name, wrapped)
        for name, wrapped in (("LaCTok-T.pth", True), ("lactok.safetensors", False))
    )
    files = {"lactok-h": trained, "lactok-h-star": trained, "lactok-t-star": released}
    return [f"options.{name}.weights='{path}'" for name, path in files.items()]


@pytest.fixture
def metric_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inception-v3 and AlexNet, in the files that they are published as."""
    state = seeded_state_dict(inception_manifest())  # with a gain, or deep features hardly depend on the picture
    torch.save({k: w * 1.5 if k.endswith(".conv.weight") else w for k, w in state.items()}, tmp_path / "inception.pth")
    monkeypatch.setattr(inception, "WEIGHTS", LocalWeights(str(tmp_path / "inception.pth")))
    backbone = {name.removeprefix("net."): tensor for name, tensor in seeded_backbone("alex").items()}
    torch.save({lpips.torchvision_name(name): w for name, w in backbone.items()}, tmp_path / "alexnet.pth")
    monkeypatch.setitem(lpips.BACKBONES, "alex", LocalWeights(str(tmp_path / "alexnet.pth")))


@pytest.mark.usefixtures("metric_networks")
def test_table_one_from_twin_and_seeded_checkpoints(
    tmp_path: Path, checkpoints: list[str], lactoks: list[str], capsys: pytest.CaptureFixture[str]
):
    data = twins.imagenet(tmp_path / "imagenet", "tar")
    out = tmp_path / "out"
    command = [
        "suite=table1", "scale=paper", "dataset=imagenet-val", f"dataset.root='{data}'",
        f"dataset.expect={twins.COUNT}", f"limit={PICTURES}", "calibration=false", "workers=1", f"out='{out}'",
        *checkpoints, *lactoks,
    ]  # fmt: skip
    status = evals(command)
    told, errors = capsys.readouterr()
    assert status == 0, told + errors
    record = read(the_run(out) / "run.json")
    assert {row.name: (row.status, row.error) for row in record.rows} == {
        name: ("ok", "")
        for name in (
            "seedtok", "titok", "llamagen", "flextok", "lactok-h", "lactok-h-star", "lactok-t-star",
        )
    }  # fmt: skip
    assert (record.dataset, record.items, record.protocol["eval_size"]) == ("imagenet-val", PICTURES, 1024)
    assert "the paper has 50,000" in told + (the_run(out) / "report.md").read_text()

    assert report(["table1", "--out", str(out)]) == 0, "every figure of the table is there"
    table = capsys.readouterr().out
    assert f"{PICTURES} images of imagenet-val; the paper has 50,000" in table
    assert table.count("so they may not be the published ones") == len(record.rows)
