"""Colour and brightness shift: scikit-image's colours, the right number for a known change, and of the right sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage import color, data
from torch import Tensor

from evals.metrics.image.cielab import ciede2000, lab_of_linear, linear_light
from evals.metrics.image.colour import Colour
from tests.metrics_support import embed, scores

# The 34 pairs of Sharma, Wu and Dalal (2005), table 1: two colours L* a* b* and their difference. They cover hues on
# both sides of 0, hues opposite each other, greys, and the blues that are rotated.
PUBLISHED = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def lab_pairs() -> tuple[np.ndarray, np.ndarray]:
    """50,000 pairs: near and far, hues around 0 and opposite each other, and greys."""
    r = np.random.RandomState(0)
    colours = np.concatenate([r.uniform(0, 100, (50_000, 1)), r.uniform(-128, 128, (50_000, 2))], axis=1)
    colours[:, 1:] *= r.uniform(size=(50_000, 1))
    others = r.permutation(colours)
    others[:20_000] = colours[:20_000] + r.normal(0, 3, (20_000, 3))
    colours[20_000:25_000, 2] *= 1e-3 * np.sign(colours[20_000:25_000, 1])  # hues just above 0 or opposite ...
    others[20_000:25_000] = colours[20_000:25_000] * (1, 1, -1)  # ... and just below
    others[25_000:30_000, 1:] = -colours[25_000:30_000, 1:] * r.uniform(0.9, 1.1, (5_000, 2))
    colours[30_000:31_000, 1:] = 0
    others[30_500:31_500, 1:] = 0
    return colours, others


def lab_of(image: np.ndarray) -> np.ndarray:
    """scikit-image's L*a*b* of the cells' mean sRGB: uint8 (H, W, 3) to (8, 8, 3), cells cut one by one."""
    values = image / 255
    height, width = image.shape[:2]
    cells = [
        [
            values[i * height // 8 : (i + 1) * height // 8, j * width // 8 : (j + 1) * width // 8].mean(axis=(0, 1))
            for j in range(8)
        ]
        for i in range(8)
    ]
    return color.rgb2lab(np.array(cells))


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].contiguous()


def score(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """colour-de00 and brightness-dl of two images."""
    found = scores(Colour(), tensor(a), tensor(b))
    assert list(found) == [column.name for column in Colour.columns]
    assert {v.dtype for v in found.values()} == {torch.float64}
    return found["colour-de00"].item(), found["brightness-dl"].item()


def pixels_of(light: np.ndarray) -> np.ndarray:
    """Linear light, 0 to 1, to uint8 sRGB."""
    srgb = np.where(light > 0.0031308, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055, light * 12.92)
    return np.clip(np.round(srgb * 255), 0, 255).astype(np.uint8)


def light_of(pixels: np.ndarray) -> np.ndarray:
    return linear_light(torch.from_numpy(pixels / 255)).numpy()


def test_ciede2000_of_the_published_pairs():
    rows = torch.tensor(
        [[float(v) for v in line.split()] for line in PUBLISHED.split("\n") if line], dtype=torch.float64
    )
    assert rows.shape == (34, 7)
    torch.testing.assert_close(ciede2000(rows[:, :3], rows[:, 3:6]), rows[:, 6], rtol=0, atol=5.1e-5)
    torch.testing.assert_close(ciede2000(rows[:, 3:6], rows[:, :3]), rows[:, 6], rtol=0, atol=5.1e-5)


def test_ciede2000_is_scikit_images():
    a, b = lab_pairs()
    ours = ciede2000(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(ours, color.deltaE_ciede2000(a, b), rtol=0, atol=1e-6)
    assert (ciede2000(torch.from_numpy(a), torch.from_numpy(a)) == 0).all()


def test_lab_is_scikit_images():
    """All greys, and 200,000 of the colours."""
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    some = np.random.RandomState(0).randint(0, 256, (200_000, 3), dtype=np.uint8)
    pixels = np.concatenate([greys, some])
    ours = lab_of_linear(linear_light(torch.from_numpy(pixels / 255))).numpy()
    np.testing.assert_allclose(ours, color.rgb2lab(pixels), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), height=st.integers(8, 90), width=st.integers(8, 90))
@example(seed=1, height=8, width=8)  # a pixel a cell
@example(seed=2, height=15, width=9)  # cells of 1 and of 2 pixels
@example(seed=3, height=601, width=350)
def test_equal_to_scikit_image(seed, height, width):
    r = np.random.RandomState(seed)
    a = r.randint(0, 256, (height, width, 3), dtype=np.uint8)
    b = np.clip(a * r.uniform(0.5, 1.3, 3) + r.randint(-30, 31, a.shape), 0, 255).astype(np.uint8)
    x, y = lab_of(a), lab_of(b)
    want = color.deltaE_ciede2000(x, y).mean(), (y - x)[..., 0].mean()
    assert score(a, b) == pytest.approx(want, rel=0, abs=1e-6)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """The coffee cup, 400x600, darkened a little so that it can be made brighter without clipping."""
    return pixels_of(light_of(data.coffee()) * 0.7)


def test_identical_images(photograph):
    assert score(photograph, photograph) == (0, 0)
    assert score(np.zeros_like(photograph), np.zeros_like(photograph)) == (0, 0)


@pytest.mark.parametrize("added", [0.1, 0.02, -0.02])
def test_more_light_everywhere(added):
    """A grey of linear luminance 0.3 and one of more or less light: brightness moves as L* = 116 cbrt(Y) - 16 does,
    and the colour shift is that of lightness alone."""
    grey = np.full((64, 64, 3), 0.3)
    a, b = pixels_of(grey), pixels_of(grey + added)
    colour, brightness = score(a, b)
    l1, l2 = (116 * np.cbrt(light_of(p)[0, 0, 1]) - 16 for p in (a, b))
    assert brightness == pytest.approx(l2 - l1, abs=1e-6)
    assert brightness == pytest.approx(116 * (np.cbrt(0.3 + added) - np.cbrt(0.3)), abs=0.3)  # pixels are rounded
    middle = ((l1 + l2) / 2 - 50) ** 2
    assert colour == pytest.approx(abs(l2 - l1) / (1 + 0.015 * middle / np.sqrt(20 + middle)), abs=1e-3)


def test_a_photograph_brighter_and_darker(photograph):
    light = light_of(photograph)
    brighter, darker = (score(photograph, pixels_of(light * gain)) for gain in (1.2, 0.8))
    assert brighter[1] > 2
    assert darker[1] < -2
    assert min(brighter[0], darker[0]) > 2
    back = score(pixels_of(light * 1.2), photograph)
    assert back == pytest.approx((brighter[0], -brighter[1]), abs=1e-9)


def test_a_turned_hue_leaves_brightness(photograph):
    """Hues turned by 40 degrees in CIELAB at the same L*: a large colour shift and hardly one of brightness."""
    lab = color.rgb2lab(photograph)
    lab[..., 1:] *= 0.4  # colours that exist at every hue
    turn = np.deg2rad(40)
    turned = lab.copy()
    turned[..., 1] = np.cos(turn) * lab[..., 1] - np.sin(turn) * lab[..., 2]
    turned[..., 2] = np.sin(turn) * lab[..., 1] + np.cos(turn) * lab[..., 2]
    a, b = (np.round(color.lab2rgb(x) * 255).astype(np.uint8) for x in (lab, turned))
    colour, brightness = score(a, b)
    assert colour > 3
    assert abs(brightness) < 0.1


def test_blurring_within_cells_costs_nothing(photograph):
    """The mean of every 4x4 pixels in their place. Values are multiples of 16, so that the means are whole numbers."""
    sharp = photograph[:384, :576] // 16 * 16  # cells of 48x72
    means = sharp.reshape(96, 4, 144, 4, 3).mean(axis=(1, 3))
    blurred = means.astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    assert (blurred[::4, ::4] == means).all()
    assert (blurred != sharp).mean() > 0.3
    assert score(sharp, blurred) == (0, 0)


def test_detail_within_a_cell_costs_nothing():
    """A checkerboard against its inverse, against the grey of the same mean, and against that of the same light."""
    board = ((np.arange(64)[:, None] + np.arange(64)) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert score(board, 255 - board) == pytest.approx((0, 0), abs=1e-9)
    assert score(board, np.full_like(board, 128)) == pytest.approx((0, 0), abs=0.3)  # the mean is 127.5
    assert score(board, np.full_like(board, 188))[1] > 20  # half the light of 255 is much more than half its value


def test_a_shift_in_one_cell_counts_a_sixty_fourth():
    a = np.full((80, 80, 3), 100, np.uint8)
    one, every = a.copy(), np.full_like(a, 130)
    one[10:20, 70:80] = 130
    assert np.array(score(a, one)) * 64 == pytest.approx(score(a, every), rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 3, 7, 40), (1, 3, 40, 7)])
def test_less_than_a_pixel_a_cell(shape):
    with pytest.raises(ValueError, match=rf"images of {shape[2]}x{shape[3]} pixels.* need 8x8"):
        embed(Colour(), torch.zeros(shape, dtype=torch.uint8))
