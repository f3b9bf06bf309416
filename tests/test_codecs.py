"""Codec rows spend at most their bytes, state header and payload, and say what they can't do."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from baselines.tokenizers.codecs import adapter
from baselines.tokenizers.codecs.adapter import AVIF, JPEG, WEBP, Codec, CodecOptions, thumbnail_sides
from lactok.interface import Tokens, Unavailable, Unreachable

FORMATS = [
    pytest.param(kind, marks=pytest.mark.skipif(not kind.available, reason=f"this Pillow has no {kind.name}"))
    for kind in (JPEG, WEBP, AVIF)
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Two photographs of 64 pixels, float (2, 3, 64, 64)."""
    small = [np.array(Image.fromarray(photo).resize((64, 64))) for photo in (data.astronaut(), data.chelsea())]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255


def codec(kind: adapter.Format, limit: int, best_size: bool = False, bare: bool = False) -> Codec:
    cls = type("Some", (Codec,), {"format": kind, "best_size": best_size, "bare": bare})
    return cls(CodecOptions(limit), CPU)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    return -10 * torch.log10((a - b).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_at_full_size_is_the_best_that_fits(kind: adapter.Format, images: Tensor):
    tokenizer = codec(kind, 900)
    tokens = tokenizer.encode(images)
    assert tokens.ids.shape == (2, 900)
    assert (tokens.lengths <= 900).all()
    decoded = tokenizer.decode(tokens, [0, 0])
    assert decoded.shape == images.shape
    for image, ids, length, shown in zip(images, tokens.ids, tokens.lengths.tolist(), decoded, strict=True):
        file = bytes(ids[:length].tolist())
        assert (np.array(Image.open(io.BytesIO(file)).convert("RGB")) == (shown.permute(1, 2, 0) * 255).numpy()).all()
        source = Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy())
        files = [kind.encode(source, quality, bare=False) for quality in range(0, 101, 4)]
        assert length >= max(len(one) for one in files if len(one) <= 900) * 0.97, "a better one would have fitted"
    header = Codec.rate_parts.__func__(type(tokenizer), tokenizer.options, tokens)["header"]
    assert {"JPEG": 280, "WEBP": 27, "AVIF": 275}[kind.name] <= header < 350


@pytest.mark.parametrize("kind", FORMATS)
def test_headers_can_be_left_out_and_make_room(kind: adapter.Format, images: Tensor):
    with_header, without = codec(kind, 460, best_size=True), codec(kind, 460, best_size=True, bare=True)
    found = {}
    for tokenizer in (with_header, without):
        tokens = tokenizer.encode(images)
        decoded = tokenizer.decode(Tokens(tokens.ids, tokens.lengths), [0, 0])
        assert decoded.shape == images.shape
        parts = tokenizer.rate_parts(tokenizer.options, tokens)
        assert sum(parts.values()) == pytest.approx(float(tokens.lengths.double().mean()))
        found[tokenizer.bare] = parts["header"], psnr(decoded, images)
    assert found[True][0] == 5
    assert (found[True][1] > found[False][1] - 0.2).all()
    if kind is not WEBP:  # its header is small
        assert (found[True][1] > found[False][1] + 1).all()
    alone = without.encode(images[1:])
    both = without.encode(images)
    assert torch.equal(alone.ids[0], both.ids[1]), "an image does not depend on its batch"


def test_the_best_thumbnail_is_no_worse_than_any_size_at_that_rate(images: Tensor):
    tokenizer = codec(WEBP, 120, best_size=True)
    best = psnr(tokenizer.decode(tokenizer.encode(images), [0, 0]), images)
    for side in (8, 16, 24, 40):
        small = torch.nn.functional.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        alone = codec(WEBP, 118)
        try:
            decoded = alone.decode(alone.encode(small), [0, 0])
        except Unreachable:
            continue
        large = torch.nn.functional.interpolate(decoded, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 1)
        assert (best > psnr(large, images) - 0.15).all(), side
    assert thumbnail_sides(64) == [4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 51, 64]
    assert thumbnail_sides(4) == [4]
    assert thumbnail_sides(1024)[-3:] == [645, 813, 1024]


def test_what_headers_make_unreachable_says_so(images: Tensor):
    with pytest.raises(
        Unreachable, match=r"headers alone exceed the rate: a grey image of 64x64 pixels takes 2\d\d by"
    ):
        codec(JPEG, 80).encode(images)
    with pytest.raises(Unreachable, match="not even a grey image fits"):
        codec(WEBP, 40).encode(images)
    with pytest.raises(Unreachable, match=r"an image of 64x64 pixels takes more than 320 bytes .*; 2\d\d are header"):
        codec(JPEG, 320).encode(images)


def test_what_pillow_lacks_is_unavailable_and_no_other_rate_is_asked_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="no JXL; it needs pip install pillow-jxl-plugin"):
        adapter.JpegXL.weights(CodecOptions())
    assert adapter.JpegXL.at_rate(640) is None
    with pytest.raises(ValueError, match="bytes=0: expected at least 1"):
        adapter.Jpeg.weights(CodecOptions(0))
    assert [adapter.Jpeg.at_rate(bits) for bits in (640, 638.0, 641, 7)] == [
        {"bytes": 80}, {"bytes": 80}, {"bytes": 81}, {"bytes": 1},
    ]  # fmt: skip


def test_jpeg_xl_where_it_is_installed(images: Tensor):
    if not adapter.JXL.available:
        pytest.skip("needs pillow-jxl-plugin")
    tokenizer = codec(adapter.JXL, 200, best_size=True, bare=True)
    tokens = tokenizer.encode(images)
    assert (tokens.lengths <= 200).all()
    assert (psnr(tokenizer.decode(tokens, [0, 0]), images) > 15).all()
    assert codec(adapter.JXL, 500).encode(images).lengths.max() <= 500


def test_a_file_of_another_kind_is_no_silent_fallback():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", lossless=True)
    with pytest.raises(ValueError, match="expected a lossy one without metadata"):
        WEBP.split(buffer.getvalue())
    with pytest.raises(ValueError, match="expected a bare codestream"):
        adapter.JXL.split(b"\0\0\0\x0cJXL ")
