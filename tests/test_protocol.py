"""The protocol's conventions, on real pictures."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from evals.tasks.protocol import ReconstructionProtocol
from evals.tasks.reconstruction import evaluation_image, native_images, scored_images, to_tensor

MINI = ReconstructionProtocol("mini-128", eval_size=128, fit="squash", effnet_size=128)


@pytest.fixture(scope="module")
def coffee() -> np.ndarray:
    return data.coffee()  # uint8 (400, 600, 3)


def test_hash_covers_every_field_but_the_label():
    changed = {
        "eval_size": 256, "fit": "crop", "eval_filter": "lanczos", "native_from": "source", "native_filter": "bilinear",
        "native_antialias": False, "back_filter": "bilinear", "back_antialias": False, "rounding": "truncate",
        "ssim_window": "gauss11", "effnet_size": 160, "decode": 2, "colour": "srgb",
    }  # fmt: skip
    assert set(changed) == {f.name for f in dataclasses.fields(ReconstructionProtocol)} - {"name"}
    hashes = {dataclasses.replace(MINI, **{k: v}).hash for k, v in changed.items()}
    assert len(hashes | {MINI.hash}) == len(changed) + 1
    assert dataclasses.replace(MINI, name="other").hash == MINI.hash


def test_hashes_of_the_presets_are_pinned():
    """A changed default or field name makes old results incomparable: change these on purpose only."""
    from evals.config import compose_config

    hashes = {
        n: compose_config([f"protocol={n}"]).make_protocol().hash for n in ("mini-128", "native-256", "paper-1024")
    }
    assert hashes == PINNED


PINNED = {"mini-128": "dc63a1535e56", "native-256": "ef9ada42cd57", "paper-1024": "203b65f6e61d"}


def test_squash_is_pillows_resize(coffee: np.ndarray):
    want = np.asarray(Image.fromarray(coffee).resize((128, 128), Image.Resampling.BICUBIC))
    assert np.array_equal(evaluation_image(coffee, MINI), want)


def test_crop_takes_the_centre(coffee: np.ndarray):
    protocol = dataclasses.replace(MINI, fit="crop")
    want = Image.fromarray(coffee).resize((192, 128), Image.Resampling.BICUBIC).crop((32, 0, 160, 128))
    assert np.array_equal(evaluation_image(coffee, protocol), np.asarray(want))


def test_a_picture_of_evaluation_size_is_untouched(coffee: np.ndarray):
    tile = coffee[:128, :128]
    assert evaluation_image(tile, MINI) is tile


def test_one_pixel_and_very_wide_pictures(coffee: np.ndarray):
    dot = np.full((1, 1, 3), 77, np.uint8)
    wide = np.tile(coffee[:15], (1, 34, 1))[:, :20000]
    for fit in ("squash", "crop"):
        protocol = dataclasses.replace(MINI, fit=fit)
        assert (evaluation_image(dot, protocol) == 77).all()
        assert evaluation_image(wide, protocol).shape == (128, 128, 3)


def test_native_and_back(coffee: np.ndarray):
    evaluation = to_tensor([evaluation_image(coffee, MINI)])
    same = native_images(evaluation, [], 128, MINI)
    assert torch.equal(scored_images(same, MINI), evaluation)
    native = native_images(evaluation, [], 64, MINI)
    assert native.shape == (1, 3, 64, 64)
    assert native.min() >= 0
    assert native.max() <= 1
    # torch's antialiased bicubic is Pillow's, up to Pillow's rounding and clipping to 8 bits after each direction
    pillow = np.asarray(Image.fromarray(evaluation[0].permute(1, 2, 0).numpy()).resize((64, 64), Image.BICUBIC))
    difference = np.abs(native[0].permute(1, 2, 0).numpy() * 255 - pillow)
    assert difference.max() < 2
    assert difference.mean() < 0.3


def test_native_from_the_source_differs(coffee: np.ndarray):
    evaluation = to_tensor([evaluation_image(coffee, MINI)])
    protocol = dataclasses.replace(MINI, native_from="source")
    from_source = native_images(evaluation, [coffee], 64, protocol)
    want = np.asarray(Image.fromarray(coffee).resize((64, 64), Image.BICUBIC))
    assert np.array_equal((from_source[0].permute(1, 2, 0) * 255).round().byte().numpy(), want)
    assert not torch.equal(from_source, native_images(evaluation, [], 64, MINI))


@pytest.mark.parametrize(("rounding", "want"), [("half_up", [0, 1, 2, 255, 255]), ("truncate", [0, 0, 1, 254, 255])])
def test_rounding_happens_once(rounding: str, want: list[int]):
    protocol = dataclasses.replace(MINI, rounding=rounding)
    values = torch.tensor([-0.3, 0.5, 1.5, 254.9, 300.0]).div(255).view(5, 1, 1, 1).expand(5, 3, 128, 128)
    assert scored_images(values, protocol)[:, 0, 0, 0].tolist() == want


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [("fit", "stretch", "squash, crop"), ("eval_size", 3, "16 to 16384"), ("rounding", "up", "half_up, truncate")],
)
def test_bad_fields_say_what_is_allowed(field: str, value: object, named: str):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(MINI, **{field: value})


def made(*overrides: str) -> ReconstructionProtocol:
    from evals.config import compose_config

    return compose_config([f"protocol.{o}" for o in overrides]).make_protocol()


def test_ways_to_write_a_value_make_one_protocol():
    plain = made("native_antialias=false")
    assert plain.native_antialias is False
    for written in ("no", "off", "No", "'false'", "0", "n"):
        same = made(f"native_antialias={written}")
        assert same.native_antialias is False, written
        assert same.hash == plain.hash, written
    for written in ("yes", "on", "1", "true"):
        assert made(f"native_antialias={written}").hash == MINI.hash, written
    assert made("eval_size=128.0").hash == made("eval_size='128'").hash == MINI.hash
    assert isinstance(made("eval_size=128.0").eval_size, int)
    assert ReconstructionProtocol("p", 128, "squash", native_antialias="no").native_antialias is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("native_antialias=null", r"protocol\.native_antialias=None: expected bool"),
        ("native_antialias=[]", r"protocol\.native_antialias=\[\]: expected bool"),
        ("back_antialias=2", r"protocol\.back_antialias=2: expected bool"),
        ("back_antialias=maybe", r"protocol\.back_antialias='maybe': expected bool"),
        ("decode=banana", r"protocol\.decode='banana': expected int"),
        ("decode=true", r"protocol\.decode=True: expected int"),
        ("decode=2", r"protocol\.decode=2: .* expected 1"),
        ("eval_size=100.5", r"protocol\.eval_size=100\.5: expected int"),
        ("eval_size=null", r"protocol\.eval_size=None: expected int"),
        ("effnet_size=[128]", r"protocol\.effnet_size=\[128\]: expected int"),
        ("eval_size=8", r"protocol\.eval_size=8: expected 16 to 16384"),
        ("fit=stretch", r"protocol\.fit='stretch': expected one of squash, crop"),
        ("fit=no", r"protocol\.fit='no'"),
        ("back_filter=null", r"protocol\.back_filter=None: expected one of nearest, bilinear, bicubic"),
    ],
)
def test_values_of_another_type_are_refused(override: str, message: str):
    from evals.config import ConfigError

    with pytest.raises(ConfigError, match=message):
        made(override)
