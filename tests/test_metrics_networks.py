"""LPIPS is the package's, Inception features are torch-fidelity's, and the EfficientNet figures mean what they say."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from skimage import data
from torch import Tensor

from evals.metrics.image.dists import DistsMetric
from evals.metrics.image.effnet import EffnetMetric
from evals.metrics.image.inception import Inception
from evals.metrics.image.lpips import Lpips, LpipsAlex, LpipsVgg
from lactok.feature_extractors import dists, effnet, imagenet, inception, lpips
from lactok.seeded import manifest_of, seeded_state_dict
from lactok.weights import load_tensors
from tests.metrics_support import embed, items, scores


@cache
def seeded_backbone(net: str) -> dict[str, Tensor]:
    return seeded_state_dict({f"net.{k}": v for k, v in manifest_of(lpips._empty(net).net).items()})


def seeded_lpips(net: str):
    return lpips.build(net, seeded_backbone(net))


@pytest.fixture(scope="module")
def alex() -> LpipsAlex:
    return LpipsAlex(seeded_lpips("alex"))


@pytest.fixture(scope="module")
def lite0() -> effnet.Effnet:
    return effnet.load_lite0()


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    """Cuts of photographs with copies: identical, inverted, constant, noisy, unrelated."""
    cuts = [data.coffee()[y : y + 96, x : x + 80] for y, x in ((30, 60), (90, 200), (180, 120), (200, 300))]
    a = torch.stack([torch.from_numpy(c.copy()).permute(2, 0, 1) for c in [*cuts, data.chelsea()[60:156, 100:180]]])
    b = a.clone()
    b[1] = 255 - a[1]
    b[2] = 77
    noise = torch.from_numpy(np.random.RandomState(0).randint(-30, 31, a[3].shape))
    b[3] = (a[3] + noise).clamp(0, 255).to(torch.uint8)
    b[4] = a[0]
    return a, b


@pytest.mark.parametrize(("net", "cls"), [("alex", LpipsAlex), ("vgg", LpipsVgg)])
def test_lpips_is_the_package(net, cls, pairs):
    a, b = pairs
    got = scores(cls(seeded_lpips(net)), a, b)[f"LPIPS-{net}"]
    package = seeded_lpips(net)
    with torch.no_grad():  # as its users do: one pair at a time
        want = torch.stack([package(x[None] / 127.5 - 1, y[None] / 127.5 - 1).squeeze() for x, y in zip(a, b)])
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want.double(), rtol=1e-4, atol=1e-7)
    assert got[0] == 0
    assert (got[1:] > 1e-4).all()


@cache
def example(name: str) -> Tensor:
    """An example image of the LPIPS authors' repository: uint8 (1, 3, 64, 64)."""
    path = Path(__file__).parent / "golden" / "lpips" / "real" / f"ex_{name}.png"
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]


@cache
def published(net: str) -> Tensor:
    """LPIPS of the examples' pairs ref-p0 and ref-p1."""
    cls = {"alex": LpipsAlex, "vgg": LpipsVgg}[net]
    metric = cls.build(torch.device("cpu"), {})
    return scores(metric, example("ref").repeat(2, 1, 1, 1), torch.cat([example("p0"), example("p1")]))[f"LPIPS-{net}"]


def test_lpips_has_the_authors_published_figures():
    """In the authors' repository (`test_network.py`): Distances: (0.722, 0.138)."""
    assert [f"{value:.3f}" for value in published("alex").tolist()] == ["0.722", "0.138"]


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_with_the_published_weights_is_the_package(net):
    package = lpips.load(net)
    with torch.no_grad():
        want = [package(example("ref") / 127.5 - 1, example(p) / 127.5 - 1).item() for p in ("p0", "p1")]
    assert published(net).tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("net", "smallest"), lpips.SMALLEST.items())
def test_lpips_of_images_that_are_too_small(net, smallest):
    metric = Lpips(seeded_lpips(net))
    image = torch.zeros(1, 3, smallest, smallest + 40, dtype=torch.uint8)
    assert all(stage.numel() for stage in embed(metric, image))
    for small in (image[:, :, 1:], image[:, :, 1:].mT):
        with pytest.raises(ValueError, match=rf"LPIPS-{net} needs {smallest}x{smallest} or more"):
            embed(metric, small)
    with pytest.raises(RuntimeError):  # and it is the network's own limit
        metric.module.net(image[:, :, 1:].float())


@pytest.fixture(scope="module")
def the_dists() -> DistsMetric:
    return DistsMetric.build(torch.device("cpu"), {})


def test_dists_is_the_package(the_dists, pairs, monkeypatch):
    """The authors' class, with the same VGG-16 where it would download one."""
    from DISTS_pytorch import DISTS

    build = torchvision.models.vgg16

    def vgg16(pretrained: bool) -> torch.nn.Module:
        with torch.device("meta"):
            network = build(weights=None)
        network.features.load_state_dict(
            {n.removeprefix("features."): t for n, t in load_tensors(imagenet.BACKBONES["vgg"]).items()}, assign=True
        )
        return network

    monkeypatch.setattr("DISTS_pytorch.DISTS_pt.models.vgg16", vgg16)
    package = DISTS(load_weights=False)
    learned = load_tensors(dists.ALPHA_BETA)
    package.alpha.data, package.beta.data = learned["alpha"], learned["beta"]
    a, b = pairs
    got = scores(the_dists, a, b)["DISTS"]
    with torch.no_grad():
        want = torch.stack([package(x[None] / 255, y[None] / 255) for x, y in zip(a, b)])
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want.double(), rtol=0, atol=2e-6)
    assert got[0].item() == pytest.approx(0, abs=1e-12)
    assert (got[1:] > 0.05).all()


def test_dists_batches_and_sizes(the_dists, pairs):
    a, b = pairs
    batched = scores(the_dists, a, b)["DISTS"]
    single = torch.cat([scores(the_dists, a[i, None], b[i, None])["DISTS"] for i in range(5)])
    torch.testing.assert_close(single, batched, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(scores(the_dists, b, a)["DISTS"], batched, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="images of shapes"):
        the_dists.score(embed(the_dists, a[:2]), embed(the_dists, b[:1]), items(2))
    with pytest.raises(ValueError, match="images of 15x80 pixels; DISTS needs 16x16 or more"):
        embed(the_dists, a[:1, :, :15])


def test_lpips_embeddings(alex, pairs):
    """Batches and order change rounding only; a reference's embedding serves many images."""
    a, b = pairs
    reference = embed(alex, a)
    batched = alex.score(reference, embed(alex, b), items(5))["LPIPS-alex"]
    alex.score(reference, embed(alex, a), items(5))
    assert torch.equal(alex.score(reference, embed(alex, b), items(5))["LPIPS-alex"], batched)
    single = torch.cat([scores(alex, a[i, None], b[i, None])["LPIPS-alex"] for i in range(5)])
    torch.testing.assert_close(single, batched, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(alex.stages(reference, embed(alex, b)).sum(1), batched, rtol=0, atol=0)


def test_lpips_shapes_differ(alex, pairs):
    a, b = pairs
    with pytest.raises(ValueError, match="differ in number or size"):
        alex.score(embed(alex, a[:2]), embed(alex, b[:1]), items(2))


def test_inception_features(pairs):
    weights = seeded_state_dict(inception_manifest())
    metric = Inception(inception.build(weights))
    embedding = embed(metric, pairs[0][:2])
    features = metric.features(embedding)
    assert (features.dtype, features.shape) == (torch.float32, (2, 2048))
    assert metric.score(embedding, embedding, items(2)) == {}
    assert not torch.equal(features[0], features[1])


def inception_manifest():
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: None)
        return manifest_of(Empty("empty", ["2048"], verbose=False))


def test_effnet_figures(lite0, pairs):
    a, b = pairs
    metric = EffnetMetric(lite0, size=128)
    found = scores(metric, a, b)
    assert list(found) == [c.name for c in metric.columns]
    assert all(v.dtype == torch.float64 and v.shape == (5,) for v in found.values())
    assert found["perc-effnet"][0] == 0
    assert found["top1-effnet"][0] == 1
    assert set(found["top1-effnet"].tolist()) <= {0.0, 1.0}
    noisy, unrelated = found["perc-effnet"][[3, 4]]
    assert 0 < noisy < unrelated
    features = metric.features(embed(metric, a))
    assert (features.dtype, features.shape) == (torch.float32, (5, 1280))
    assert torch.equal(scores(metric, a, b)["perc-effnet"], found["perc-effnet"])


def test_effnet_definition(lite0, pairs):
    """The distance and the class, computed the long way for one pair at the network's own size."""
    a, b = (F.interpolate(p[4:].float(), (64, 64)).round().to(torch.uint8) for p in pairs)
    with torch.no_grad():
        x, y = lite0(a / 255), lite0(b / 255)
    stages = [
        (F.normalize(s, dim=1, eps=1e-10) - F.normalize(t, dim=1, eps=1e-10)).square().sum(1).mean()
        for s, t in zip(x.stages, y.stages, strict=True)
    ]
    found = scores(EffnetMetric(lite0, size=64), a, b)
    assert found["perc-effnet"].item() == pytest.approx(torch.stack(stages).mean().item(), rel=1e-5)
    assert found["top1-effnet"].item() == float(x.logits.argmax() == y.logits.argmax())


def test_effnet_batches(lite0, pairs):
    a, b = pairs
    metric = EffnetMetric(lite0, size=96)
    batched = scores(metric, a, b)
    for i in range(5):
        alone = scores(metric, a[i, None], b[i, None])
        for name, value in alone.items():
            torch.testing.assert_close(value, batched[name][i, None], rtol=1e-5, atol=1e-8)


def test_effnet_numbers_differ(lite0, pairs):
    metric = EffnetMetric(lite0, size=64)
    with pytest.raises(ValueError, match="2 references, 1 images"):
        metric.score(embed(metric, pairs[0][:2]), embed(metric, pairs[1][:1]), items(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(pairs, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    a, b = pairs
    for make in (lambda d: LpipsAlex(seeded_lpips("alex").to(d)), lambda d: EffnetMetric(effnet.load_lite0(d), 96)):
        want, got = scores(make("cpu"), a, b), scores(make("cuda"), a.cuda(), b.cuda())
        for name, value in want.items():
            torch.testing.assert_close(got[name].cpu(), value, rtol=1e-4, atol=1e-6)
