"""From `metrics=[...]` to what a run computes: order, features that are pulled in, metrics that can't be used here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evals.cli.list import main as list_main
from evals.config import ConfigError
from evals.metrics import plan as planning
from evals.metrics.base import ImageMetric, SetMetric
from evals.metrics.plan import DEFAULTS, identity, metric_class, metric_names, plan
from evals.tasks.protocol import GenerationProtocol
from lactok import registry
from lactok.registry import source_hash
from lactok.weights import LocalWeights, is_pinned, pin_of
from tests.support import install_plugin


@dataclass(frozen=True)
class Conventions:
    """As much of a protocol as metrics read."""

    ssim_window: str = "uniform7"
    effnet_size: int = 128

    def subset(self, *fields: str) -> dict[str, object]:
        return {name: getattr(self, name) for name in fields}


PROTOCOL = Conventions()
TASK = SimpleNamespace(protocol=PROTOCOL, has_references=True)
CPU = torch.device("cpu")
PLUGIN = """
import torch
from evals.metrics.base import Column, ImageMetric, SetMetric

class Fine(ImageMetric):
    name = "fine"
    columns = (Column("fine", "lower"),)
    def embed(self, images, items):
        return images

class OtherName(Fine):
    name = "other"

class Copy(Fine):
    name = "copy"
    columns = (Column("PSNR", "higher"),)

class NoEmbed(ImageMetric):
    name = "no-embed"

class Unreadable(Fine):
    name = "unreadable"
    columns = ()
    @classmethod
    def weights(cls):
        raise ZeroDivisionError("no weights today")

class FarSet(SetMetric):
    name = "far-set"
    features_of = "nowhere"
    def compute(self, features, reference_features):
        return {}

class DrySet(FarSet):
    name = "dry-set"
    features_of = "fine"

function = len
"""
NAMES = {
    "fine": "Fine",
    "misnamed": "OtherName",
    "copy": "Copy",
    "no-embed": "NoEmbed",
    "unreadable": "Unreadable",
    "far-set": "FarSet",
    "dry-set": "DrySet",
    "no-class": "function",
    "lacks": "NotThere",
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A third-party package with metrics, most of them unusable."""
    monkeypatch.syspath_prepend(str(install_plugin(tmp_path, "odd_metrics", PLUGIN, NAMES, group="metrics")))
    monkeypatch.delitem(sys.modules, "odd_metrics", raising=False)
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()


def columns(found: planning.Plan) -> list[str]:
    return [planned.column.name for planned in found.columns]


def test_the_default_table():
    found = plan("default", "effnet", TASK)
    assert found.missing == []
    assert [p.name for p in found.image] == ["psnr", "ssim", "lpips-alex", "effnet", "colour"]
    assert [p.name for p in found.image if not p.columns_wanted] == ["effnet"]
    assert [p.name for p in found.sets] == ["fd-effnet"]
    assert [p.name for p in found.tokens] == ["codes"]
    assert columns(found) == [
        *("PSNR", "PSNR-pooled", "SSIM", "LPIPS-alex", "FD-effnet", "colour-de00", "brightness-dl"),
        *("codebook use", "perplexity", "entropy"),
    ]
    kinds = {planned.column.name: planned.kind for planned in found.columns}
    assert (kinds["PSNR-pooled"], kinds["FD-effnet"], kinds["entropy"]) == ("image", "set", "token")
    hidden = [planned.column.name for planned in found.columns if not planned.column.shown]
    assert hidden == ["brightness-dl", "codebook use", "perplexity", "entropy"]


def test_columns_come_in_the_order_of_the_names():
    assert columns(plan("codes,fd-effnet,psnr,codes", "effnet", TASK)) == [
        *("codebook use", "perplexity", "entropy", "FD-effnet", "PSNR", "PSNR-pooled")
    ]


@pytest.mark.parametrize(
    ("wanted", "shown"), [("fd-effnet", False), ("fd-effnet,effnet", True), ("effnet,fd-effnet", True)]
)
def test_a_set_metric_pulls_its_features_in(wanted: str, shown: bool):
    """Its image metric is computed once, and its columns are in the table only if it was named itself."""
    found = plan(wanted, "effnet", TASK)
    (source,) = found.image
    assert (source.name, source.columns_wanted) == ("effnet", shown)
    assert ("perc-effnet" in columns(found)) == shown
    assert found.sets[0].identity["weights"] == source.identity["weights"]


def test_identity_holds_what_determines_the_values(monkeypatch: pytest.MonkeyPatch):
    effnet = metric_class("effnet")
    found = identity(effnet, PROTOCOL)
    digest = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert found == {
        "name": "effnet", "version": 1, "protocol": {"effnet_size": 128}, "weights": [digest],
        "source": source_hash(effnet),
    }  # fmt: skip
    assert source_hash(effnet) != source_hash(metric_class("ssim")), "an edit of its code is another metric"
    monkeypatch.setattr(effnet, "version", 2)
    assert identity(effnet, PROTOCOL)["version"] == 2
    assert identity(metric_class("ssim"), PROTOCOL)["protocol"] == {"ssim_window": "uniform7"}
    assert identity(metric_class("ssim-gauss11"), PROTOCOL)["protocol"] == {}


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown metric 'pnsr': did you mean 'psnr'.*known: .*default"):
        metric_names("ssim,pnsr", "effnet")


def test_missing_weights_are_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    gone = LocalWeights(str(tmp_path / "gone.pth"), otherwise="get it from a friend")
    monkeypatch.setattr("evals.metrics.image.effnet.LITE0", gone)
    found = plan("default", "effnet", TASK)
    assert [line.split(":")[0] for line in found.missing] == ["fd-effnet"]
    assert all("get it from a friend" in line for line in found.missing)
    assert [p.name for p in found.image] == ["psnr", "ssim", "lpips-alex", "colour"]
    assert found.sets == []
    assert "FD-effnet" not in columns(found)


@pytest.mark.usefixtures("plugin")
def test_third_party_metrics_that_can_not_be_used_are_named():
    found = plan(["psnr", *NAMES, "ssim"], "effnet", TASK)
    assert [p.name for p in found.image] == ["psnr", "fine", "ssim"]
    assert (found.sets, found.tokens) == ([], [])
    reasons = {line.split(": ")[0]: line for line in found.missing}
    for name, reason in {
        "misnamed": "OtherName.name is 'other': expected 'misnamed'",
        "copy": "its column 'PSNR' is filled by 'psnr'",
        "no-embed": "NoEmbed does not define embed",
        "unreadable": "ZeroDivisionError: no weights today",
        "far-set": "unknown metric 'nowhere'",
        "dry-set": "it reads features of 'fine', which gives none",
        "no-class": "expected a subclass of ImageMetric, SetMetric or TokenMetric",
        "lacks": "has no attribute 'NotThere'",
    }.items():
        assert reason in reasons.pop(name)
    assert reasons == {}
    assert columns(found) == ["PSNR", "PSNR-pooled", "fine", "SSIM"]


@pytest.mark.usefixtures("plugin")
def test_the_list_names_what_is_broken(capsys: pytest.CaptureFixture):
    assert list_main(["metrics"]) == 1
    shown = capsys.readouterr().out
    for name in ("psnr", "fine", *NAMES):
        assert name in shown
    assert "metric unreadable: ZeroDivisionError: no weights today" in shown
    assert "metric no-embed: NoEmbed does not define embed" in shown


# Files of judges of which no sha256 is known: a revision ties them, or they are the user's own (MPS).
NO_SHA256 = {"ImageReward.pt", "MPS_overall_checkpoint.safetensors", "HPS_v2_compressed.pt"}


def test_every_metric_is_what_it_says():
    names = [c.name for name in registry.entries("metrics") for c in metric_class(name).columns]
    assert len(set(names)) == len(names)
    for name in registry.entries("metrics"):
        cls = metric_class(name)
        assert cls.version >= 1
        assert cls.summary
        assert all(
            is_pinned(source) or Path(str(source).partition("@")[0]).name in NO_SHA256 for source in cls.weights()
        )
        assert all(pin_of(source) != "nothing" for source in cls.weights())
        assert any(set(cls.protocol_fields) <= set(vars(protocol)) for protocol in (PROTOCOL, GenerationProtocol("x")))
        if issubclass(cls, ImageMetric) and not cls.weights():
            assert isinstance(cls.build(CPU, PROTOCOL.subset(*cls.protocol_fields)), cls)
        if issubclass(cls, SetMetric):
            assert metric_class(cls.features_of).feature_dim > 0
    for defaults in DEFAULTS.values():
        assert metric_names(list(defaults), "effnet") == list(defaults)


def test_settings_of_the_protocol_reach_the_metric():
    assert metric_class("ssim").build(CPU, {"ssim_window": "gauss11"}).window.size == 11
    assert metric_class("ssim-gauss11").build(CPU, {}).window.size == 11
    assert metric_class("effnet").build(CPU, {"effnet_size": 96}).size == 96


def test_naming_metrics_imports_neither_networks_nor_other_metrics():
    code = (
        "import sys; from evals.metrics.plan import metric_class, metric_names; metric_names('default', 'inception'); "
        "assert 'torch' not in sys.modules; "
        "[metric_class(n) for n in ('lpips-alex', 'dists', 'ms-ssim', 'rfid', 'kid', 'codes')]; "
        "print([m for m in ('lpips', 'timm', 'torchvision', 'torch_fidelity') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_metrics_that_compare_need_references():
    alone = SimpleNamespace(protocol=PROTOCOL, has_references=False)
    found = plan("psnr,fd-effnet,codes", "effnet", alone)
    assert [line.split(":")[0] for line in found.missing] == ["psnr", "fd-effnet"]
    assert all("reference images" in line for line in found.missing)
    assert {planned.metric for planned in found.columns} == {"codes"}
