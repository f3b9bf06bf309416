"""Tables 1, 2, 4 and 5 end to end: a command each, on twins of the datasets, with seeded checkpoints in their published
forms in place, to a report of the paper's rows and columns.

Only sizes differ from the real thing: the networks' widths (the classes' CONFIG), and how many images there are.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baselines.tokenizers.flextok.adapter import FlexTokD18D28
from baselines.tokenizers.llamagen.adapter import LlamaGen
from baselines.tokenizers.seedtok.adapter import SeedTok
from baselines.tokenizers.seedtok.conformance import case_config, case_weights
from baselines.tokenizers.titok.adapter import TiTokS128
from baselines.tokenizers.titok.model import TiTok
from baselines.tokenizers.titok.state_dict import TiTokStateDict
from evals.cli.report import main as report
from evals.record import read
from evals.report.paper import NOT_MEASURED
from evals.run import main as evals
from evals.suites.catalog import suites
from lactok.conformance import CaseFolder
from lactok.feature_extractors import inception, lpips
from lactok.models.autoencoder import AutoencoderConfig
from lactok.models.lactok import build_lactok
from lactok.models.lactok_state_dict import LacTokStateDict
from lactok.models.ladd import LatentDecoderConfig
from lactok.models.vq import VQConfig, VQModel
from lactok.models.vq_state_dict import VQStateDict
from lactok.seeded import TensorSpec, manifest_of, seeded_state_dict
from lactok.state_dict import meta_skeleton
from lactok.tokenizers import published
from lactok.weights import LocalWeights
from tests import flextok_support, ladd_support, twins
from tests.seed_support import write_checkpoints, write_painter
from tests.test_metrics_networks import inception_manifest, seeded_backbone
from tests.test_titok import SMALL as SMALL_TITOK

IMAGES, TWIN = 2, 10
"""Of a run, and of a dataset's twin."""
SIDES = {"table1": 256, "table2": 160, "table4": 160, "table5": 160}
"""Pixels at which images are scored, below 1024 for time's sake; one row of Table 1 is scored as the paper does."""
SEED_CASE = CaseFolder(Path(__file__).parent / "golden" / "seed" / "tiny")
FLEXTOK = dataclasses.replace(flextok_support.SMALL, registers=256)  # as many ids as published
LACTOK = dataclasses.replace(  # the published factor of 16 between images and tokens; latents of 64 x 64, not 128 x 128
    ladd_support.SMALL,
    vq=VQConfig(64, 4, z_channels=8, ch=8, norm_num_groups=4),
    decoder=LatentDecoderConfig(ladd_support.UNET, 4, (4, 8), text_positions=5, pixels_per_latent=16),
    autoencoder=AutoencoderConfig(block_out_channels=(4, 4, 4, 8, 8), layers_per_block=1, norm_num_groups=4),
)


def seeded_lactok(path: Path, wrapped: bool) -> Path:
    """A checkpoint under the published names, the UNet wrapped by peft (as released) or plain (as trained here)."""
    model, adapter = meta_skeleton(build_lactok, LACTOK), LacTokStateDict(ladd_support.LORA)
    shapes = adapter.wrapped_shapes(model) if wrapped else adapter.published_shapes(model)
    state = seeded_state_dict({name: TensorSpec(shape) for name, shape in shapes.items()})
    if wrapped:
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    return path


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings that name them; the tokenizers' and Inception's classes expect what is in them."""
    folder, monkeypatch = tmp_path_factory.mktemp("weights"), monkeypatch_module
    monkeypatch.setattr(TiTokS128, "CONFIG", SMALL_TITOK)
    specs = manifest_of(meta_skeleton(TiTok, SMALL_TITOK))
    names = {TiTokStateDict().published_name(name): spec for name, spec in specs.items()}
    state = seeded_state_dict(names)
    state["pixel_decoder.conv_out.weight"] *= 0.1  # else no image: its values are far from [0, 1]
    save_file(state, folder / "titok.safetensors")

    vq = VQConfig(ch=32, z_channels=32, codebook_size=64)
    monkeypatch.setattr(LlamaGen, "CONFIG", vq)
    state = seeded_state_dict(manifest_of(VQModel(vq)))
    torch.save({"model": VQStateDict().to_published(state)}, folder / "vq_ds16_c2i.pt")

    monkeypatch.setattr(FlexTokD18D28, "EXPECTED", FLEXTOK)
    flextok_support.write_checkpoint(folder / "flextok.safetensors", flextok_support.seeded_weights(FLEXTOK), FLEXTOK)

    seed = case_config(SEED_CASE)
    monkeypatch.setattr(SeedTok, "CONFIG", seed)
    of_seed = write_checkpoints(case_weights(SEED_CASE), folder)
    of_seed["unclip"] = str(write_painter(folder / "unclip", seed.image_features_dim))

    settings = {
        "titok.weights": folder / "titok.safetensors",
        "llamagen.weights": folder / "vq_ds16_c2i.pt",
        "flextok.weights": folder / "flextok.safetensors",
        **{f"seedtok.{key}": path for key, path in of_seed.items()},
        **lactoks(folder, monkeypatch),
    }
    metric_networks(folder, monkeypatch)
    return {key: f"options.{key}='{path}'" for key, path in settings.items()}


def lactoks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The same for LacTok's, and for its first stage with either accelerator."""
    monkeypatch.setattr(published._Published, "CONFIG", LACTOK)
    monkeypatch.setattr(published._Published, "LORA", ladd_support.LORA)
    released, trained = (
        seeded_lactok(folder / name, wrapped)
        for name, wrapped in (("LaCTok-T.pth", True), ("lactok.safetensors", False))
    )
    adapters = ladd_support.write_adapters(build_lactok(LACTOK).decoder.unet, folder)
    names = ("lactok-h", "lactok-h-star", "vq-ladd", "vq-ladd-hypersd", "vq-ladd-tlcm")
    return {f"{name}.weights": trained for name in names} | {
        "lactok-t-star.weights": released,
        "vq-ladd-hypersd.accelerator": adapters["hypersd"],
        "vq-ladd-tlcm.accelerator": adapters["tlcm"],
    }


def metric_networks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inception-v3 and AlexNet, in the files that they are published as."""
    state = seeded_state_dict(inception_manifest())  # with a gain, or deep features hardly depend on the picture
    torch.save({k: w * 1.5 if k.endswith(".conv.weight") else w for k, w in state.items()}, folder / "inception.pth")
    monkeypatch.setattr(inception, "WEIGHTS", LocalWeights(str(folder / "inception.pth")))
    backbone = {name.removeprefix("net."): tensor for name, tensor in seeded_backbone("alex").items()}
    torch.save({lpips.torchvision_name(name): w for name, w in backbone.items()}, folder / "alexnet.pth")
    monkeypatch.setitem(lpips.BACKBONES, "alex", LocalWeights(str(folder / "alexnet.pth")))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each of the paper's datasets, in a published form."""
    root = tmp_path_factory.mktemp("twins")
    return {
        "imagenet-val": twins.imagenet(root / "imagenet", "tar"),
        "coco-val2017": twins.coco(root / "coco", "zip"),
        "mjhq-5k": twins.mjhq(root / "mjhq", "zip"),
        "flux-5k": twins.flux(root / "flux", TWIN),
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tables, as a user has it: rows that two tables share are measured once."""
    return tmp_path_factory.mktemp("out")


def command(name: str, twin: dict[str, Path], checkpoints: dict[str, str], out: Path) -> list[str]:
    """The one command of a table; what is not the user's is that the datasets are small."""
    suite = suites()[name]
    expected = twins.COUNT if name == "table1" else TWIN
    of_rows = [setting for key, setting in checkpoints.items() if key.split(".")[0] in suite.tokenizers]
    return [
        f"suite={name}", "device=cpu", f"protocol.eval_size={SIDES[name]}",
        *(f"roots.{dataset}='{twin[dataset]}'" for dataset in suite.datasets),
        f"dataset.expect={expected}", f"limit={IMAGES}", "calibration=false", f"out='{out}'", *of_rows,
    ]  # fmt: skip


def layout(table: int) -> tuple[list[str], list[str]]:
    """The paper's rows from top to bottom and its columns from left to right."""
    with (Path(__file__).parent / "paper_tables.csv").open(newline="") as file:
        cells = [cell for cell in csv.DictReader(file) if cell["table"] == str(table)]
    columns = [f"{cell['dataset']} {cell['metric']}" for cell in cells]
    return list(dict.fromkeys(cell["row"] for cell in cells)), list(dict.fromkeys(columns))


def reported(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Rows, columns and cells of a report in markdown."""
    header, _, *lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [line[0].replace("\\*", "*") for line in split]
    return rows, [c.strip() for c in header.strip("|").split("|")][2:], [c for line in split for c in line[2:]]


@pytest.mark.parametrize("name", SIDES)
def test_one_command_makes_the_papers_table(
    name: str, out: Path, twin: dict[str, Path], checkpoints: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    suite = suites()[name]
    status = evals(command(name, twin, checkpoints, out))
    told = capsys.readouterr().out
    assert status == 0, told
    runs = [read(path) for path in out.glob(f"runs/{name}-*/run.json")]
    assert {run.dataset for run in runs} == set(suite.datasets)
    for run in runs:
        assert {row.name: (row.status, row.error) for row in run.rows} == dict.fromkeys(suite.tokenizers, ("ok", ""))
        assert (run.items, run.protocol["eval_size"]) == (IMAGES, SIDES[name])
    rows, columns, cells = reported(out / "tables" / f"{name}.md")
    assert (rows, columns) == layout(suite.table)
    assert not [cell for cell in cells if NOT_MEASURED in cell or not cell[0].isdigit()]
    assert "not paper-1024" in told
    for form in ("tex", "html"):
        text = (out / "tables" / f"{name}.{form}").read_text()
        assert all(printed in text for printed in suite.datasets.values())
    if name == "table5":
        assert [row.tokens_per_image for row in runs[0].rows] == [196, 256, 324]


def test_a_table_fills_up_over_runs_of_its_parts(
    tmp_path: Path, twin: dict[str, Path], checkpoints: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    for dataset in ("coco-val2017", "imagenet-val"):
        part = [
            "suite=table1", "device=cpu", "tokenizers=[titok]", f"dataset={dataset}",
            f"dataset.root='{twin[dataset]}'", f"dataset.expect={twins.COUNT}", f"limit={IMAGES}",
            "calibration=false", f"out='{out}'", checkpoints["titok.weights"],
        ]  # fmt: skip
        assert evals(part) == 0, "all that was asked for is measured"
    told = capsys.readouterr()
    assert "48 of 56 figures are not measured" in told.err
    assert f"{IMAGES} images of imagenet-val; the paper has" in told.out
    rows, columns, cells = reported(out / "tables" / "table1.md")
    assert (rows, columns) == layout(1)
    here = cells[len(columns) * rows.index("TiTok-S-128") :][: len(columns)]
    assert not [cell for cell in here if NOT_MEASURED in cell]
    assert report(["table1", "--out", str(out)]) == 1
