"""The golden cases of lpips, fid and ssim_psnr pass, and a changed figure fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evals.metrics.conformance import run_fid, run_lpips, run_ssim_psnr
from lactok.conformance import CaseError, CaseFolder

GOLDEN = Path(__file__).parent / "golden"
RUNNERS = {"lpips": (run_lpips, 15), "fid": (run_fid, 43), "ssim_psnr": (run_ssim_psnr, 97)}


@pytest.mark.parametrize("model", RUNNERS)
def test_all_pass(model):
    run, count = RUNNERS[model]
    lines = list(run(CaseFolder(GOLDEN / model / "tiny")))
    assert [line for line in lines if not line.passed] == []
    assert len(lines) >= count
    assert len({line.tensor for line in lines}) == len(lines)


def test_lpips_with_the_published_weights():
    lines = list(run_lpips(CaseFolder(GOLDEN / "lpips" / "real")))
    assert [line for line in lines if not line.passed] == []
    assert {line.tensor for line in lines} == {"out.alex_0", "out.vgg_0"}


@pytest.mark.parametrize("copied", ["lpips"], indirect=True)
def test_weights_of_another_kind_are_refused(copied):
    with pytest.raises(CaseError, match='"weights" is \'imagined\', expected "real" or "seeded"'):
        list(run_lpips(change(copied, lambda config: config.update(weights="imagined"))))


@pytest.fixture
def copied(tmp_path, request):
    """A case in a folder of its own, to be changed."""
    shutil.copytree(GOLDEN / request.param, tmp_path / request.param)
    return tmp_path / request.param / "tiny"


def change(folder: Path, function) -> CaseFolder:
    config = json.loads((folder / "config.json").read_text())
    function(config)
    (folder / "config.json").write_text(json.dumps(config))
    return CaseFolder(folder)


def failed(lines) -> set[str]:
    return {line.tensor for line in lines if not line.passed}


@pytest.mark.parametrize("copied", ["ssim_psnr"], indirect=True)
def test_changed_figures_fail(copied):
    def damage(config):
        config["cases"] = config["cases"][4:8]
        config["cases"][0]["results"]["ssim_skimage_uint8_win7_range255"] += 2e-6
        config["cases"][1]["results"]["psnr_skimage_uint8_255"] *= 1 + 3e-6
        config["cases"][2]["a_sum"] += 1
        config["cases"][3]["results"]["psnr_skimage_uint8_255"] = 99.0
        config["aggregation"]["results"]["psnr_mean_of_images"] += 1e-3

    case = change(copied, damage)
    assert failed(run_ssim_psnr(case)) == {
        "bias10_128x192_seed5.ssim_skimage_uint8_win7_range255",
        "quantise16_128x192_seed6.psnr_skimage_uint8_255",
        "noise25_97x131_seed7.a_sum",
        "same0_64x64_seed8.psnr_skimage_uint8_255",
        "aggregation.psnr_mean_of_images",
    }


@pytest.mark.parametrize("copied", ["ssim_psnr"], indirect=True)
def test_unknown_kind(copied):
    def rotate(config):
        config["cases"][0]["kind"] = "rotate"

    with pytest.raises(CaseError, match="'rotate'"):
        list(run_ssim_psnr(change(copied, rotate)))


@pytest.mark.parametrize("copied", ["fid"], indirect=True)
def test_changed_sets_fail(copied):
    def damage(config):
        config["sets"] = config["sets"][:2]
        config["features"] = ["64"]
        config["sets"][0]["fid"] *= 1 + 1e-5
        config["sets"][0]["isc_of_set1_as_logits_splits10"]["inception_score_mean"] *= 1.001
        config["sets"][1]["kid_subset20x50"]["kernel_inception_distance_mean"] *= 1.001

    bad = failed(run_fid(change(copied, damage)))
    assert {name for name in bad if not name.startswith("out.")} == {
        "regular_d64.fid",
        "regular_d64.isc_of_set1_as_logits_splits10_mean",
        "few_samples_d64.kid_subset20x50_mean",
    }
    assert {name for name in bad if name.startswith("out.")} == {  # stored, but no longer asked for: not passed over
        f"out.features_{name}_{group}" for name in ("192", "768", "2048", "logits", "logits_unbiased") for group in "01"
    }


@pytest.mark.parametrize("copied", ["lpips"], indirect=True)
def test_changed_tensors_fail(copied):
    tensors = load_file(copied / "case.safetensors")
    tensors["out.alex_0"][tensors["out.alex_0"].argmax()] *= 1.001
    tensors["in.b_1"][1] = tensors["in.a_1"][1]
    tensors["out.alex_9"] = torch.zeros(1)
    save_file(tensors, copied / "case.safetensors")
    case = change(copied, lambda config: config.update(nets=["alex"]))
    bad = failed(run_lpips(case))
    assert {name for name in bad if "alex" in name} == {
        "out.alex_0",
        "out.alex_1",
        "out.alex_1_per_layer",
        "out.alex_9",
    }
    assert "out.vgg_0" in bad  # its network was not named


@pytest.mark.parametrize("copied", ["lpips"], indirect=True)
def test_other_versions_are_refused(copied):
    with pytest.raises(CaseError, match=r"'0\.0'"):
        list(run_lpips(change(copied, lambda config: config.update(version="0.0"))))
