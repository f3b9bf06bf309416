"""decode: the right pixels from every kind of image, and a clear refusal of what is none."""

import io
import os
import pickle
import struct
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image, ImageFile

from evals.datasets.images.photos import load_source
from lactok.images import decode as rules
from lactok.images.decode import Decoding, ImageError, decode, has_image_ending, holds_image


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    """A real image, not square: uint8 (90, 120, 3)."""
    return load_source("chelsea.png")[60:150, 100:220].copy()


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png16(samples: np.ndarray) -> bytes:
    """A 16-bit PNG, which Pillow can't write: uint16 (H, W, C), C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA."""
    height, width, channels = samples.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def refused(data: bytes | os.PathLike) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.reason


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP"])
def test_lossless_formats_come_back_exactly(cat, format):
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode(encoded(Image.fromarray(cat), format, **options))
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable
    assert np.array_equal(decoded.pixels, cat)
    assert decoded.notes == ()


def test_file_and_bytes_give_the_same(cat, tmp_path):
    data = encoded(Image.fromarray(cat), "JPEG", quality=90)
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    assert np.array_equal(decode(path).pixels, decode(data).pixels)
    assert np.array_equal(decode(str(path)).pixels, decode(data).pixels)


# What a camera stores for each orientation: the transform that makes the stored image from the upright one.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(cat, orientation, format):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](cat)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    pixels = decode(encoded(stored, format, exif=exif, **options)).pixels
    assert pixels.shape == cat.shape
    worst = np.abs(pixels.astype(int) - cat).max()
    assert worst <= (6 if format == "JPEG" else 0)


def test_orientation_out_of_range_changes_nothing(cat):
    exif = Image.Exif()
    exif[0x0112] = 9
    assert np.array_equal(decode(encoded(Image.fromarray(cat), "PNG", exif=exif)).pixels, cat)


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette_become_rgb(cat, mode):
    image = Image.fromarray(cat).convert(mode)
    assert np.array_equal(decode(encoded(image, "PNG")).pixels, np.asarray(image.convert("RGB")))


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha.astype(float)[..., None] / 255
    return colour * weight + 255 * (1 - weight)


def test_alpha_is_composited_over_white(cat):
    alpha = np.tile(np.linspace(0, 255, cat.shape[1]).round().astype(np.uint8), (cat.shape[0], 1))
    decoded = decode(encoded(Image.fromarray(np.dstack([cat, alpha])), "PNG"))
    assert np.abs(decoded.pixels - over_white(cat, alpha)).max() <= 1
    assert np.array_equal(decoded.pixels[:, 0], np.full_like(cat[:, 0], 255))
    assert np.array_equal(decoded.pixels[:, -1], cat[:, -1])
    assert decoded.notes == (rules.NOTE_ALPHA,)


def test_opaque_alpha_changes_nothing(cat):
    decoded = decode(encoded(Image.fromarray(cat).convert("RGBA"), "PNG"))
    assert np.array_equal(decoded.pixels, cat)
    assert decoded.notes == ()


def test_grey_with_alpha(cat):
    grey = np.asarray(Image.fromarray(cat).convert("L"))
    alpha = np.full_like(grey, 128)
    decoded = decode(encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), "PNG"))
    assert np.abs(decoded.pixels - over_white(np.dstack([grey] * 3), alpha)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(format):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 200, 10, 30] + [0] * 750)
    image.putpixel((0, 0), 0)
    decoded = decode(encoded(image, format, transparency=0))
    assert decoded.pixels[0, 0].tolist() == [255, 255, 255]
    assert decoded.pixels[1, 3].tolist() == [200, 10, 30]
    assert decoded.notes == (rules.NOTE_ALPHA,)


def test_rgb_with_a_transparent_colour():
    image = Image.new("RGB", (3, 1), (1, 2, 3))
    image.putpixel((2, 0), (9, 9, 9))
    decoded = decode(encoded(image, "PNG", transparency=(9, 9, 9)))
    assert decoded.pixels.tolist() == [[[1, 2, 3], [1, 2, 3], [255, 255, 255]]]


ALL_16_BITS = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_rounded(format):
    pixels = decode(encoded(Image.fromarray(ALL_16_BITS), format)).pixels
    expected = np.floor(ALL_16_BITS * (255 / 65535) + 0.5).astype(np.uint8)
    assert all(np.array_equal(pixels[..., c], expected) for c in range(3))


def test_pgm_of_16_bits():
    data = b"P5 256 256 65535\n" + ALL_16_BITS.astype(">u2").tobytes()
    expected = np.floor(ALL_16_BITS * (255 / 65535) + 0.5).astype(np.uint8)
    assert np.array_equal(decode(data).pixels[..., 0], expected)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_is_at_most_one_step_off(channels):
    samples = np.stack([ALL_16_BITS] * channels, axis=-1)
    if channels != 3:
        samples[..., -1] = 65535
    decoded = decode(png16(samples))
    assert np.abs(decoded.pixels[..., 0] - ALL_16_BITS * (255 / 65535)).max() <= 1
    assert decoded.notes == (rules.NOTE_SIXTEEN,)


def test_16_bit_colour_widened_from_8_bits_is_exact(cat):
    assert np.array_equal(decode(png16(cat.astype(np.uint16) * 257)).pixels, cat)


def test_integers_beyond_16_bits_are_refused():
    image = Image.fromarray(np.array([[0, 70000]], np.int32))
    assert "from 0 to 70000: expected 0 to 65535" in refused(encoded(image, "TIFF"))


def test_floats_are_refused():
    image = Image.fromarray(np.zeros((4, 4), np.float32))
    assert "no stated range" in refused(encoded(image, "TIFF"))


def test_cmyk_jpeg_is_not_inverted(cat):
    # Pillow writes CMYK JPEG as Adobe does, inverted and marked so; read naively the image would be a negative.
    pixels = decode(encoded(Image.fromarray(cat).convert("CMYK"), "JPEG", quality=95)).pixels
    assert np.abs(pixels.astype(int) - cat).mean() < 3


def moving(cat) -> dict:
    return {"save_all": True, "append_images": [Image.fromarray(255 - cat)], "duration": 40}


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_first_frame_of_an_animation(cat, format, options):
    first = Image.fromarray(cat).quantize(64) if format == "GIF" else Image.fromarray(cat)
    decoded = decode(encoded(first, format, **moving(cat), **options))
    assert np.array_equal(decoded.pixels, np.asarray(first.convert("RGB")))
    assert decoded.notes == (rules.NOTE_FRAMES,)


def test_one_pixel():
    assert decode(encoded(Image.new("RGB", (1, 1), (7, 8, 9)), "PNG")).pixels.tolist() == [[[7, 8, 9]]]


@pytest.mark.parametrize("size", [(20_000, 15), (15, 20_000), (20_000, 1)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_20_000_pixels_wide(size, format):
    assert decode(encoded(Image.new("RGB", size, "white"), format)).pixels.shape == (size[1], size[0], 3)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_too_many_pixels_are_refused_with_both_numbers(side):
    # Black: 400 million pixels in a few kB, as a decompression bomb would have them.
    data = encoded(Image.new("1", (side, side)), "PNG")
    with pytest.warns(Image.DecompressionBombWarning) if side == 10_000 else nullcontext():
        reason = refused(data)
    assert f"{side * side:,} pixels" in reason
    assert f"{rules.MAX_PIXELS:,}" in reason


def test_the_limit_can_be_raised_beyond_pillows_own(cat, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(Image.fromarray(cat), "PNG")
    assert np.array_equal(decode(data, Decoding(max_pixels=90 * 120)).pixels, cat)
    with pytest.raises(ImageError, match=r"10,799 are decoded \(dataset\.max_pixels=N\)"):
        decode(data, Decoding(max_pixels=90 * 120 - 1))


def test_heic_is_read_where_pillow_heif_is(cat):
    heif = pytest.importorskip("pillow_heif")
    assert {".heic", ".heif"} <= rules.extensions()
    assert "pillow-heif" in rules.decoders()
    stored, exif = np.ascontiguousarray(STORED[6](cat)), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    heif.from_pillow(Image.fromarray(stored)).save(buffer, quality=95, exif=exif.tobytes())
    pixels = decode(buffer.getvalue()).pixels
    assert pixels.shape == cat.shape
    assert np.abs(pixels.astype(int) - cat).mean() < 4


def test_formats_that_are_not_read_are_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(rules, "extensions", lambda: frozenset({".png"}))
    assert rules.unread_formats({".heic": 3, ".txt": 2, ".heif": 1}).startswith("3 .heic, 1 .heif: images")
    assert "lactok[heif]" in rules.unread_formats({".heic": 3})
    assert rules.unread_formats({".txt": 2}) == ""


@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000"])
def test_truncated_files_are_refused(cat, format, part, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some package may have left it
    data = encoded(Image.fromarray(cat), format)
    assert refused(data[: int(len(data) * part)])


def test_a_missing_trailer_loses_no_pixel(cat):
    assert np.array_equal(decode(encoded(Image.fromarray(cat), "PNG")[:-12]).pixels, cat)


def test_empty_file():
    assert refused(b"") == "the file is empty (0 bytes)"


@pytest.mark.parametrize("data", [b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 99])
def test_no_image(data):
    assert refused(data)


def test_postscript_is_never_run(tmp_path):
    path = tmp_path / "page.png"
    path.write_bytes(encoded(Image.new("RGB", (8, 8)), "EPS"))
    assert "not an image in a format" in refused(path)
    assert ".eps" not in rules.extensions()


def test_the_error_names_the_file(tmp_path):
    with pytest.raises(ImageError, match="can't be read: No such file") as caught:
        decode(tmp_path / "absent.png")
    assert caught.value.path == str(tmp_path / "absent.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_permission_denied(cat, tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(Image.fromarray(cat), "PNG"))
    path.chmod(0)
    assert "Permission denied" in refused(path)


def test_endings():
    expected = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".mpo"}
    assert expected <= rules.extensions()
    assert not rules.extensions() & {".pdf", ".mpg", ".eps", ".h5", ".txt"}


def test_an_image_is_known_by_its_content_or_its_ending(cat, tmp_path):
    files = {"cat.dat": encoded(Image.fromarray(cat), "JPEG"), "cat.png": b"", "none.txt": b"a cat", "page": b"%!PS"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert [holds_image(tmp_path / name) for name in files] == [True, False, False, False]
    assert [has_image_ending(name) for name in files] == [False, True, False, False]


def test_an_error_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(ImageError("a.png", "the file is empty (0 bytes)")))
    assert (str(error), error.reason) == ("a.png: the file is empty (0 bytes)", "the file is empty (0 bytes)")
