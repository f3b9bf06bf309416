"""PSNR and SSIM are scikit-image's on any pair of uint8 images; no metric of pixels depends on its batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from evals.metrics.base import ImageMetric
from evals.metrics.image import tiles
from evals.metrics.image.colour import Colour
from evals.metrics.image.ms_ssim import MsSsim
from evals.metrics.image.psnr import Psnr, pooled_psnr
from evals.metrics.image.ssim import C1, Ssim, SsimGauss11
from tests.metrics_support import embed, items, scores

GAUSS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
DAMAGES = {
    "identical": lambda a, r: a.copy(),
    "inverted": lambda a, r: 255 - a,
    "constant": lambda a, r: np.full_like(a, r.randint(256)),
    "noise": lambda a, r: np.clip(a + r.randint(-9, 10, a.shape), 0, 255).astype(np.uint8),
    "unrelated": lambda a, r: r.randint(0, 256, a.shape, dtype=np.uint8),
    "one pixel": lambda a, r: np.where(np.arange(a.size).reshape(a.shape) == r.randint(a.size), 255 - a, a),
}


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].contiguous()


def score(metric: ImageMetric, a: Tensor, b: Tensor, key: str | None = None) -> Tensor:
    return scores(metric, a, b)[key or metric.columns[0].name]


def image_of(seed: int, height: int, width: int, flat: bool) -> np.ndarray:
    r = np.random.RandomState(seed)
    if flat:
        return np.full((height, width, 3), r.randint(256), dtype=np.uint8)
    smooth = r.randint(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(smooth + r.randint(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def assert_same(ours: float, theirs: float) -> None:
    """The project's bar: 1e-6 relative or 1e-8 absolute."""
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(7, 70),
    width=st.integers(7, 70),
    damage=st.sampled_from(sorted(DAMAGES)),
    flat=st.booleans(),
)
@example(seed=1, height=7, width=7, damage="unrelated", flat=False)
@example(seed=2, height=7, width=300, damage="inverted", flat=False)
@example(seed=3, height=11, width=11, damage="inverted", flat=False)
@example(seed=4, height=40, width=40, damage="constant", flat=True)
@example(seed=5, height=500, width=450, damage="noise", flat=False)  # several tiles
def test_equal_to_scikit_image(seed, height, width, damage, flat):
    a = image_of(seed, height, width, flat)
    b = DAMAGES[damage](a, np.random.RandomState(seed + 1))
    x, y = tensor(a), tensor(b)
    uniform = score(Ssim("uniform7"), x, y).item()
    assert_same(uniform, structural_similarity(a, b, channel_axis=-1, data_range=255))
    if min(height, width) >= 11:
        gauss = structural_similarity(a, b, channel_axis=-1, data_range=255, **GAUSS)
        assert_same(score(SsimGauss11(), x, y).item(), gauss)
        assert score(Ssim("gauss11"), x, y).item() == score(SsimGauss11(), x, y).item()
    mse = np.square(a.astype(np.int64) - b).sum() / a.size
    assert score(Psnr(), x, y, "MSE").item() == mse
    if mse == 0:
        assert score(Psnr(), x, y).item() == math.inf
        assert uniform == 1.0
    else:
        assert_same(score(Psnr(), x, y).item(), peak_signal_noise_ratio(a, b, data_range=255))


def test_extremes():
    """White against black: the sums are at their largest, and every part of the formula is known."""
    black, white = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    assert score(Psnr(), black, white).item() == 0.0
    assert score(Ssim(), black, white).item() == pytest.approx(C1 / (255**2 + C1), rel=1e-12)
    checker = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    checker = checker.to(torch.uint8).expand(1, 3, 64, 64)
    a = checker[0].permute(1, 2, 0).numpy()
    expected = structural_similarity(a, 255 - a, channel_axis=-1, data_range=255)
    assert expected < -0.9
    assert score(Ssim(), checker, 255 - checker).item() == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def photographs() -> tuple[Tensor, Tensor]:
    """Five cuts of photographs and a damaged copy of each, one of them undamaged."""
    crops = [p[y : y + 150, x : x + 90] for p in (data.coffee(), data.chelsea()) for y, x in ((20, 30), (100, 200))]
    a = torch.cat([tensor(c) for c in [*crops, data.astronaut()[200:350, 200:290]]])
    noise = torch.from_numpy(np.random.RandomState(0).randint(-12, 13, a.shape))
    b = (a + noise).clamp(0, 255).to(torch.uint8)
    b[1] = a[1]
    return a, b


@pytest.mark.parametrize("metric", [Psnr(), Ssim("uniform7"), SsimGauss11(), Colour()], ids=lambda m: m.name)
def test_batches_and_embeddings(metric, photographs, monkeypatch):
    """One by one, in another order, an embedding used twice: the same to the last digit. Other tiles: but for sums."""
    a, b = photographs
    name, reference = metric.columns[0].name, embed(metric, a)
    batched = metric.score(reference, embed(metric, b), items(5))[name]
    assert batched.dtype == torch.float64
    assert batched.shape == (5,)
    metric.score(reference, embed(metric, 255 - b), items(5))
    assert torch.equal(metric.score(reference, embed(metric, b), items(5))[name], batched)
    assert torch.equal(torch.cat([score(metric, a[i : i + 1], b[i : i + 1]) for i in range(5)]), batched)
    assert torch.equal(score(metric, a.flip(0), b.flip(0)).flip(0), batched)
    assert torch.equal(score(metric, a.contiguous(memory_format=torch.channels_last), b), batched)
    monkeypatch.setattr(tiles, "ELEMENTS", 2000)
    monkeypatch.setattr(tiles, "WIDTH", 60)
    torch.testing.assert_close(score(metric, a, b), batched, rtol=1e-12, atol=0)


def test_inputs_are_left_alone(photographs):
    a, b = photographs[0].clone(), photographs[1].clone()
    for metric in (Psnr(), Ssim("uniform7"), SsimGauss11(), Colour()):
        score(metric, a, b)
    assert torch.equal(a, photographs[0])
    assert torch.equal(b, photographs[1])


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 150, 90), (3, 700, 400), (3, 3, 200_000), (3, 1200, 1500)])
@pytest.mark.parametrize("border", [0, 6, 10])
def test_tiles_cover_once(shape, border):
    seen = torch.zeros(shape, dtype=torch.int64)
    for part in tiles.tiles(shape, border, torch.device("cpu")):
        seen[part.index] += 1
        channels, rows, columns = (s.stop - s.start for s in part.grown(border))
        assert channels * rows * columns <= tiles.ELEMENTS
    assert (seen == 1).all()


def test_threads_are_as_before(photographs):
    """The number of threads is the caller's again, after an error too, and does not change a value."""
    before, values = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            values.append(score(Ssim(), *photographs))
            with pytest.raises(ZeroDivisionError):
                tiles.for_each(lambda image, part: 1 // 0, 1, 1)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*values)


def test_pooled_psnr(photographs):
    a, b = photographs
    mse = score(Psnr(), a, b, "MSE")
    stacked = [p.permute(0, 2, 3, 1).numpy() for p in (a, b)]
    assert_same(pooled_psnr(mse), peak_signal_noise_ratio(*stacked, data_range=255))
    assert pooled_psnr(torch.zeros(3)) == math.inf


def test_pooled_psnr_over_seed_indices(photographs):
    """The column is of all seed indices' errors together, and no mean of per-image values."""
    a, b = photographs
    mse = np.stack([score(Psnr(), a, x, "MSE").numpy() for x in (b, 255 - b)])
    (name,) = [column.name for column in Psnr.columns if not column.mean]
    assert Psnr.summarise({"MSE": mse}, items(5)) == {
        name: pytest.approx(10 * math.log10(255**2 / mse.mean()), rel=1e-12)
    }
    assert Psnr.summarise({"MSE": mse[:1] * 0}, items(5)) == {name: math.inf}


@pytest.mark.parametrize(("metric", "size"), [(Ssim(), 7), (SsimGauss11(), 11)], ids=["uniform7", "gauss11"])
def test_smaller_than_the_window(metric, size):
    for shape in ((1, 3, size - 1, 40), (1, 3, 40, size - 1)):
        with pytest.raises(ValueError, match=rf"images of {shape[2]}x{shape[3]} pixels.* needs {size}x{size}"):
            embed(metric, torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("metric", [Psnr(), Ssim(), SsimGauss11(), Colour()], ids=lambda m: m.name)
@pytest.mark.parametrize("other", [(1, 3, 32, 40), (2, 3, 32, 32)])
def test_shapes_differ(metric, other):
    a = embed(metric, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\) and"):
        metric.score(a, embed(metric, torch.zeros(other, dtype=torch.uint8)), items(other[0]))


def test_unknown_window():
    with pytest.raises(ValueError, match="'box': expected uniform7 or gauss11"):
        Ssim("box")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", [Psnr(), Ssim("uniform7"), SsimGauss11(), Colour()], ids=lambda m: m.name)
def test_cuda_equals_cpu(metric, photographs):
    a, b = photographs
    torch.testing.assert_close(score(metric, a.cuda(), b.cuda()).cpu(), score(metric, a, b), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(176, 256), (192, 192), (320, 176)])
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_ms_ssim_is_pytorch_msssims(size, damage):
    """Where the sides stay even down to the last scale, which is where implementations agree."""
    from pytorch_msssim import ms_ssim

    a = image_of(3, *size, flat=False)
    b = DAMAGES[damage](a, np.random.RandomState(1))
    x, y = tensor(a), tensor(b)
    window = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 1, 11)  # the package's own, which it makes in float32
    want = ms_ssim(x.double(), y.double(), data_range=255, size_average=False, win=window)
    assert_same(score(MsSsim(), x, y).item(), want.item())


def slow_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One channel, by Wang's code: scipy's filters, symmetric borders, every second pixel."""
    weights, result = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 1.0
    for scale, weight in enumerate(weights):
        mean = lambda x: ndimage.gaussian_filter(x, 1.5, radius=5, mode="reflect")[5:-5, 5:-5]  # noqa: E731
        m, n = mean(a), mean(b)
        contrast = (2 * (mean(a * b) - m * n) + 58.5225) / (mean(a * a) - m * m + mean(b * b) - n * n + 58.5225)
        luminance = (2 * m * n + 6.5025) / (m * m + n * n + 6.5025)
        result *= max((contrast * luminance if scale == 4 else contrast).mean(), 0) ** weight
        blocks = (ndimage.correlate(x, np.full((2, 2), 0.25), mode="reflect", origin=-1) for x in (a, b))
        a, b = (x[::2, ::2] for x in blocks)
    return result


@pytest.mark.parametrize("size", [(161, 161), (163, 250), (177, 200)])
@pytest.mark.parametrize("damage", ["inverted", "noise", "one pixel", "unrelated"])
def test_ms_ssim_is_its_definition_at_odd_sizes(size, damage):
    a = image_of(4, *size, flat=False)
    b = DAMAGES[damage](a, np.random.RandomState(1))
    want = np.mean([slow_ms_ssim(a[..., c].astype(np.float64), b[..., c].astype(np.float64)) for c in range(3)])
    assert_same(score(MsSsim(), tensor(a), tensor(b)).item(), want)


def test_ms_ssim_of_batches_and_of_images_that_are_too_small():
    a, b = (torch.cat([tensor(image_of(seed, 170, 165, False)) for seed in seeds]) for seeds in ((0, 1), (0, 2)))
    values = score(MsSsim(), a, b)
    assert values[0] == 1
    assert values.tolist() == [score(MsSsim(), a[i, None], b[i, None]).item() for i in range(2)]
    for small in (a[:, :, :160], a[..., :160]):
        with pytest.raises(ValueError, match="MS-SSIM needs 161x161 or more"):
            embed(MsSsim(), small)
    with pytest.raises(ValueError, match=r"images of \(170, 165\) and \(165, 170\) pixels"):
        MsSsim().score(embed(MsSsim(), a), embed(MsSsim(), a.mT), items(2))
