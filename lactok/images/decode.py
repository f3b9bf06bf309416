"""An image file to the uint8 RGB array that evaluation and training start from.

The rules, whose version is the protocol's `decode`: the EXIF orientation is applied; alpha is composited over white;
grey, palette, CMYK (Adobe's inverted one too) and YCbCr become RGB as Pillow converts them, without colour profiles
unless `Decoding.colour` says so;
16-bit samples are scaled to 8 bits by v * 255 / 65535, rounded; of several frames the first one is taken. A file that
can't be decoded whole is refused. HEIC is read where pillow-heif is installed, which turns images upright itself.

Two limits of Pillow: it reduces images with more than one 16-bit channel (RGB, RGBA, grey with alpha) itself, by
keeping the high byte of each sample, which is at most 1 of 255 away from the rounded value (images that were widened
from 8 bits by v * 257 come back exactly); and floating-point samples have no stated range, so they are refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from lactok.images.colour import ProfileError, is_srgb, to_srgb

# The version of the rules above: raise it when the same file gives other pixels.
VERSION = 1

# Pillow's own warning threshold, a quarter of a GiB at 3 bytes a pixel: few enough that several images decode at
# once in a few GB. An image may be as wide as it likes below that; `Decoding` may raise it.
MAX_PIXELS = 89_478_485

# Formats that Pillow names but that hold no raster it can decode by itself: EPS starts Ghostscript, the others need a
# loader that Pillow does not bring, or are recognised only.
_NOT_DECODED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})

# What undoes EXIF orientation 2 to 8 (EXIF 2.32, 4.6.4, tag 0x0112).
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Endings of the formats that pillow-heif reads (registered for image/heif and image/heic; AVIF is read by Pillow too).
HEIF_ENDINGS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs"})

Colour = Literal["ignore", "srgb"]

NOTE_FRAMES = "several frames: the first one is used"
NOTE_ALPHA = "alpha composited over white"
NOTE_SIXTEEN = "16-bit colour: Pillow keeps the high byte of each sample"
NOTE_PROFILE = "colour profile other than sRGB: ignored (protocol.colour=srgb converts by it)"
NOTE_BAD_PROFILE = "colour profile that can't be read: ignored"
NOTE_CONVERTED = "converted to sRGB by its colour profile"


class ImageError(Exception):
    """A file can't be used as an image. path: as it was given ("<bytes>" for bytes); reason: one line."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Decoding:
    """What of the rules can be chosen. max_pixels: an image with more is refused; colour: "ignore" colour profiles, as
    evaluators do, or convert to "srgb" by them (lactok/images/colour.py), an image without one being sRGB; larger: what
    a refused image's message gives as the way out."""

    max_pixels: int = MAX_PIXELS
    colour: Colour = "ignore"
    larger: str = "dataset.max_pixels=N"


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 (H, W, 3) RGB, contiguous; notes: what was given up on the way, one fixed text for each kind."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def decode(source: str | os.PathLike | bytes, how: Decoding = Decoding()) -> Decoded:  # it is frozen
    """The image in a file, or in the bytes of one. Safe to call from threads.

    Raises ImageError for a file that can't be read, is empty, truncated or damaged, is no image, has
    floating-point samples, or has more than how.max_pixels pixels.
    """
    if isinstance(source, bytes):
        return _decode(source, "<bytes>", how)
    return _decode(read_bytes(source), os.fspath(source), how)


def read_bytes(path: str | os.PathLike) -> bytes:
    """A file's bytes. Raises ImageError, with the system's reason, when it can't be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(os.fspath(path), f"can't be read: {error.strerror or error}") from error


@cache
def formats() -> tuple[str, ...]:
    """The names of the formats that are decoded."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(sorted(set(Image.OPEN) - _NOT_DECODED))


def decoders() -> str:
    """The packages that decode, with versions: another one may give other pixels."""
    found = [f"Pillow {PIL.__version__}"]
    with contextlib.suppress(PackageNotFoundError):
        found.append(f"pillow-heif {version('pillow-heif')}")
    return ", ".join(found)


@cache
def extensions() -> frozenset[str]:
    """Endings of those formats' files, lower case, with the dot."""
    decoded = {*formats(), "MPO"}  # Pillow opens MPO by its JPEG plugin
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in decoded)


def unread_formats(endings: Mapping[str, int]) -> str:
    """A line on files that are images of a format that is not read here, with the way out; "" where there are none.

    endings: lower case with the dot, to their number.
    """
    found = {ending: count for ending, count in endings.items() if ending in HEIF_ENDINGS - extensions()}
    if not found:
        return ""
    counts = ", ".join(f"{count:,} {ending}" for ending, count in sorted(found.items()))
    return f"{counts}: images that are not read without pillow-heif: pip install 'lactok[heif]'"


def has_image_ending(name: str) -> bool:
    """Whether a file's name ends as those of the decoded formats do, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in extensions()


def holds_image(path: str | os.PathLike) -> bool:
    """Whether a file begins as one of the decoded formats does, whatever its name; its pixels are not read."""
    try:
        with Image.open(path, formats=formats()):
            return True
    except Image.DecompressionBombError:
        return True  # `decode` will say that it is too large
    except Exception:  # Pillow's plugins raise nearly every built-in error on files that are none of theirs
        return False


def size_of(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in pixels of the upright image in a file, from its header alone. Raises ImageError."""
    try:
        with Image.open(path, formats=formats()) as image:
            turned = image.getexif().get(_ORIENTATION_TAG) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else (image.width, image.height)
    except Exception as error:  # Pillow's plugins raise nearly every built-in error on files that are none of theirs
        raise ImageError(os.fspath(path), f"can't be read: {str(error) or type(error).__name__}") from error


def _decode(data: bytes, name: str, how: Decoding) -> Decoded:
    if not data:
        raise ImageError(name, "the file is empty (0 bytes)")
    # Another package may have set it; half an image must never be scored.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if Image.MAX_IMAGE_PIXELS is not None and how.max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = how.max_pixels  # Pillow's own limit is one for the process
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            if (pixels := image.width * image.height) > how.max_pixels:
                raise ImageError(name, _too_large(pixels, how, f"{image.width} x {image.height}, "))
            sixteen = _is_sixteen_bit_colour(image)
            image.load()
            orientation = image.getexif().get(_ORIENTATION_TAG)
            alpha = _is_transparent(image)
            profile = image.info.get("icc_profile") or b""
            rgb = _to_srgb(image, profile) if profile and how.colour == "srgb" else _to_rgb(image)
            notes = [(NOTE_FRAMES, getattr(image, "is_animated", False)), (NOTE_ALPHA, alpha), (NOTE_SIXTEEN, sixteen)]
            if profile:
                notes += _notes_on_profile(profile, how)
    except ImageError as error:
        raise ImageError(name, error.reason) from error
    except UnidentifiedImageError as error:
        raise ImageError(name, f"not an image in a format that Pillow {PIL.__version__} reads") from error
    except Image.DecompressionBombError as error:
        seen = re.search(r"\d+", str(error))
        raise ImageError(name, _too_large(int(seen[0]), how) if seen else str(error)) from error
    except Exception as error:  # Pillow's plugins raise nearly every built-in error on damaged files
        raise ImageError(name, f"can't be decoded whole: {str(error) or type(error).__name__}") from error
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return Decoded(np.array(rgb, dtype=np.uint8, order="C"), tuple(note for note, applies in notes if applies))


def upright_rgb(image: Image.Image) -> np.ndarray:
    """An image in memory as `decode` gives its file, colour profiles ignored: uint8 (H, W, 3). Raises ValueError."""
    image.load()
    try:
        rgb = _to_rgb(image)
    except ImageError as error:
        raise ValueError(f"an image of mode {image.mode}: {error.reason}") from error
    orientation = image.getexif().get(_ORIENTATION_TAG)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb, dtype=np.uint8, order="C")


def _too_large(pixels: int, how: Decoding, sides: str = "") -> str:
    return f"too large: {sides}{pixels:,} pixels; at most {how.max_pixels:,} are decoded ({how.larger})"


def _notes_on_profile(profile: bytes, how: Decoding) -> list[tuple[str, bool]]:
    """Each note, and whether it applies."""
    try:
        other = not is_srgb(profile)
    except ProfileError:
        return [(NOTE_BAD_PROFILE, True)]
    return [(NOTE_PROFILE if how.colour == "ignore" else NOTE_CONVERTED, other)]


def _is_sixteen_bit_colour(image: Image.Image) -> bool:
    """Whether Pillow's unpacker will drop low bytes; told from the raw mode of the file's tiles, before loading."""
    return any(re.search(r"\b(RGB[AX]?|LA);16[BLN]", str(tile.args)) for tile in getattr(image, "tile", ()))


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is less than opaque."""
    if not image.has_transparency_data:
        return False
    if image.mode.startswith("I"):
        return bool((np.asarray(image) == image.info["transparency"]).any())
    return bool((np.asarray(image.convert("RGBA").getchannel("A")) < 255).any())


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image to mode RGB."""
    if image.mode == "F":
        raise ImageError("", "floating-point samples have no stated range: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_sixteen_bits(image)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """A loaded image with a colour profile to sRGB, mode RGB, alpha over white."""
    alpha = None
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_rgb(image).getchannel("R")
    elif image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
    base = image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
    try:
        converted = to_srgb(base, profile)
    except ProfileError as error:
        raise ImageError("", str(error)) from error
    if alpha is None:
        return converted
    return Image.composite(converted, Image.new("RGB", converted.size, "white"), alpha)


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey samples 0 to 65535 to RGB; v * 255 / 65535 = v / 257 has no halves to round."""
    samples = np.asarray(image)
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        raise ImageError("", f"integer samples from {low} to {high}: expected 0 to 65535; convert it to 16 bits")
    scaled = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:
        scaled[samples == image.info["transparency"]] = 255
    return Image.fromarray(scaled).convert("RGB")
