"""Every metric reacts to known harm, in the known direction, or declares that it is blind to it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from evals.metrics.base import Column, ImageMetric, Metric, SetMetric, TokenMetric
from evals.metrics.controls import CONTROLS, faults, reactions
from evals.metrics.plan import metric_class
from evals.metrics.tokens import CodebookUse, DuplicateIds
from lactok import registry
from lactok.interface import TokenizerInfo, Tokens
from lactok.weights import missing_weights
from tests.metrics_support import items

SETTINGS = {"effnet_size": 96, "ssim_window": "uniform7"}
# Side in pixels and number of the images: the least at which a metric tells the controls apart.
SIZES = {
    "colour": (320, 12),
    "hue-drift": (320, 12),
    "ms-ssim": (176, 4),
    "lpips-alex": (64, 12),
    "lpips-vgg": (48, 4),
    "dists": (64, 4),
}
USUAL = (96, 24)
NAMES = list(registry.entries("metrics"))
CLASSES: dict[str, type[Metric]] = {name: metric_class(name) for name in NAMES}
JUDGES = [name for name, cls in CLASSES.items() if issubclass(cls, ImageMetric) and not cls.needs_reference]
OF_TOKENS = [name for name, cls in CLASSES.items() if issubclass(cls, TokenMetric)]
OF_IMAGES = [name for name in NAMES if name not in (*JUDGES, *OF_TOKENS) and CLASSES[name].columns]
ALL_CHANNELS = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (0, 2, 1), (1, 0, 2)]


def photographs(side: int, count: int) -> Tensor:
    """Quarters of four photographs, uint8; channels change places and some are negatives, so that all hues occur."""
    shown = []
    for number in range(count):
        photo = Image.fromarray([data.astronaut, data.coffee, data.chelsea, data.rocket][number % 4]())
        square = photo.crop((0, 0, min(photo.size), min(photo.size))).resize((2 * side, 2 * side), 3)
        x, y = side * (number // 4 % 2), side * (number // 8 % 2)
        pixels = np.array(square.crop((x, y, x + side, y + side)))
        channels = ALL_CHANNELS[(number + number // 4) % 6]
        pixels = 255 - pixels if number % 3 == 2 else pixels
        shown.append(torch.from_numpy(pixels[..., channels].copy()).permute(2, 0, 1))
    return torch.stack(shown)


def figures(name: str, control: str | None) -> dict[str, float]:
    """The figures of an image metric over its images, harmed by a control."""
    of = items(SIZES.get(name, USUAL)[1])
    like = "colour" if name == "hue-drift" else name  # one embedding serves both
    with torch.inference_mode():
        values = built(name).score(embedded(like, None), embedded(like, control), of)
    arrays = {key: value.double().numpy() for key, value in values.items()}
    summary = CLASSES[name].summarise({key: array[None] for key, array in arrays.items()}, of)  # type: ignore[attr-defined]
    found = {column.name: summary.get(column.name) for column in CLASSES[name].columns} | {
        column.name: arrays[column.name].mean() for column in CLASSES[name].columns if column.mean
    }
    assert not any(np.isnan(value) for value in found.values()), "the images have every hue"
    return found


@cache
def built(name: str) -> ImageMetric:
    return CLASSES[name].build(torch.device("cpu"), SETTINGS)  # type: ignore[attr-defined,no-any-return]


def effnet() -> ImageMetric:
    return built("effnet")


@cache
def effnet_features(control: str | None) -> Tensor:
    return effnet().features(embedded("effnet", control))


@cache
def embedded(name: str, control: str | None) -> Any:
    """A metric's embedding of its images, harmed by a control."""
    images = photographs(*SIZES.get(name, USUAL))
    shown = images if control is None else CONTROLS[control].harm(images)
    with torch.inference_mode():
        return built(name).embed(shown, items(len(images)))


def measured(name: str) -> dict[str, dict[str, float]]:
    """By column, the reaction to each control."""
    cls = CLASSES[name]
    if issubclass(cls, SetMetric):  # of EfficientNet's features, in the place of Inception's too
        found = {control: cls().compute(effnet_features(control), effnet_features(None)) for control in CONTROLS}
        untouched = cls().compute(effnet_features(None), effnet_features(None))
    else:
        untouched = figures(name, None)
        found = {control: figures(name, control) for control in CONTROLS}
    return {
        column.name: reactions(column, untouched[column.name], {c: f[column.name] for c, f in found.items()})
        for column in cls.columns
    }


def test_every_metric_has_a_place_here():
    assert {*OF_IMAGES, *JUDGES, *OF_TOKENS} == {n for n in NAMES if CLASSES[n].columns}
    assert set(OF_TOKENS) == {"codes", "duplicate-ids"}
    assert {"psnr", "lpips-alex", "rfid", "hue-drift"} <= set(OF_IMAGES)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_it_sees_what_it_should_and_is_blind_to_what_it_says(name: str):
    cls = CLASSES[name]
    if not issubclass(cls, SetMetric) and (lacking := missing_weights(cls.weights(), download=False)):
        pytest.skip(f"needs {lacking[0]}")
    found = measured(name)
    assert [line for column in cls.columns for line in faults(column, found[column.name])] == []


def test_a_wrong_declaration_is_found():
    shares = {"shuffled": 3.0, "cast": 0.01, "brighter": 0.0, "blur": 1.0, "shift": 0.4, "banding": -0.2}
    right = Column("X", "lower", blind_to=("cast", "brighter"))
    assert faults(right, shares) == ["X should see banding, and reacts by -0.200 of its strongest"]
    wrong = Column("X", "lower", blind_to=("shift", "banding", "cast", "brighter", "noise"))
    assert [line.split(",")[0] for line in faults(wrong, shares)] == [
        "X says that it is blind to noise: not a control",
        "X says that it is blind to shift",
        "X says that it is blind to banding",
    ]
    assert reactions(Column("Y", "zero"), 0.0, {"cast": -2.0, "blur": 1.0}) == {"cast": 1.0, "blur": 0.5}
    with pytest.raises(ValueError, match="Z has no direction"):
        reactions(Column("Z", None), 0.0, {"blur": 1.0})


def test_token_metrics_react_to_a_codebook_that_collapses_and_to_copies():
    info = TokenizerInfo("toy", 16, 64, 64, 64)
    ids = torch.randint(0, 64, (32, 16), generator=torch.Generator().manual_seed(0))
    whole, collapsed, copies = Tokens(ids), Tokens(ids % 2), Tokens(ids[[0] * 16 + list(range(16))])
    of = CodebookUse().compute(whole, info)
    assert all(CodebookUse().compute(collapsed, info)[name] < 0.5 * value for name, value in of.items())
    assert DuplicateIds().compute(whole, info)["duplicate ids"] == 0
    assert DuplicateIds().compute(copies, info)["duplicate ids"] == 17 / 32
    said = DuplicateIds().compute(Tokens(ids, torch.full((32,), 3)), info)["repeated ids"]
    assert said < DuplicateIds().compute(whole, info)["repeated ids"] < 0.3
    assert DuplicateIds().compute(collapsed, info)["repeated ids"] == pytest.approx(1 - 2 / 16)
    with pytest.raises(ValueError, match="no token to count"):
        DuplicateIds().compute(Tokens(ids, torch.zeros(32, dtype=torch.int64)), info)


def test_the_documentation_shows_what_is_declared():
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    for control, one in CONTROLS.items():
        assert f"`{control}`: {one.summary}" in text
    lines = {
        line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ") and "blind" in line
    }
    for name in OF_IMAGES:
        for column in CLASSES[name].columns:
            told = ", ".join(column.blind_to) or "nothing"
            row = next((line for names, line in lines.items() if column.name in names.split(", ")), "")
            assert f"| blind to {told} |" in row, f"docs/metrics.md: {column.name} is blind to {told}"
