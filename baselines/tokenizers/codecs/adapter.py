"""Image codecs as reference rows: JPEG, WebP, AVIF and JPEG XL at a tokenizer's number of bytes.

A row spends at most `bytes` on each image. An image's tokens are the bytes that it spends, so that its bits are those
measured of files. Each format has three rows:

- `avif`: the file at full size, at the highest quality that fits;
- `avif-thumbnail`: a smaller file, enlarged after it was decoded; of several sizes, each at the highest quality that
  fits, the one of highest PSNR. Two bytes of the budget say how large the image was;
- `avif-payload`: the same without what a decoder knows that knows format, encoder and size: the file's header. Five
  bytes of the budget say both sizes and the quality.

Whoever spends so little on an image would not store a header with each, and a tokenizer's ids have none; a file has.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor

from lactok.interface import Tokenizer, TokenizerInfo, Tokens, Unavailable, Unreachable
from lactok.weights import WeightsSource

# Bytes that say the image's side, and those that say the thumbnail's side and the quality.
SIDE, SETTINGS = 2, 3
# The smallest thumbnail, and thumbnails from one side to its double.
SMALLEST, STEPS = 4, 3
LOWEST = 0  # quality, of all formats
BYTE = 256


@dataclass
class CodecOptions:
    """bytes: the most to spend on an image; 448 are the bits of 256 ids of 16384 (LlamaGen VQ-16 at 256 px)."""

    bytes: int = 448


@dataclass(frozen=True, eq=False)  # hashed by identity
class Format:
    """A file format of Pillow. name: Pillow's; settings: of its encoder, for files that are counted whole and (`bare`)
    for those of which the payload is; split: a file to its header and payload; joined: (a file of the same size and
    quality, payload) to the file; package: what Pillow needs for it, "" where it has it itself;
    highest: quality."""

    name: str
    settings: Mapping[str, Any]
    bare: Mapping[str, Any]
    split: Callable[[bytes], tuple[bytes, bytes]]
    joined: Callable[[bytes, bytes], bytes]
    package: str = ""
    highest: int = 100

    @property
    def available(self) -> bool:
        """Whether Pillow reads and writes it here."""
        if self.package:
            return find_spec(self.package.replace("-plugin", "").replace("-", "_")) is not None
        return bool(features.check({"JPEG": "jpg"}.get(self.name, self.name.lower())))

    def encode(self, image: Image.Image, quality: int, bare: bool) -> bytes:
        """The file of an image at a quality, LOWEST to `highest`."""
        _load_plugin(self.package)
        buffer = io.BytesIO()
        image.save(buffer, self.name, quality=quality, **(self.bare if bare else self.settings))
        return buffer.getvalue()

    def decode(self, file: bytes) -> Image.Image:
        """The image of a file, RGB."""
        _load_plugin(self.package)
        with Image.open(io.BytesIO(file), formats=[self.name]) as image:
            return image.convert("RGB")


@cache
def _load_plugin(package: str) -> None:
    """Tell Pillow of a format of another package."""
    if package:
        __import__(package.replace("-plugin", "").replace("-", "_"))


# --- What of a file is header ----------------------------------------------------------------------------------------


def _split_jpeg(file: bytes) -> tuple[bytes, bytes]:
    """All up to the scan's data (with optimised Huffman tables, which depend on the image), and the scan."""
    place = 2
    while file[place + 1] != 0xDA:
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    return file[:place], file[place:-2]


def _join_jpeg(like: bytes, payload: bytes) -> bytes:
    return _split_jpeg(like)[0] + payload + like[-2:]


# RIFF, its size, WEBP, "VP8 ", its size; the frame's tag of three bytes; its start code and size.
RIFF, TAG, START = 20, 3, 7


def _split_webp(file: bytes) -> tuple[bytes, bytes]:
    """The container, the frame's start code and its size; the frame without these, and without the byte that makes a
    container's size even."""
    if file[12:16] != b"VP8 ":
        raise ValueError(f"a WebP file with a chunk {file[12:16]!r}: expected a lossy one without metadata, 'VP8 '")
    frame = file[RIFF : RIFF + int.from_bytes(file[16:20], "little")]
    return file[:RIFF] + frame[TAG : TAG + START], frame[:TAG] + frame[TAG + START :]


def _join_webp(like: bytes, payload: bytes) -> bytes:
    start = like[RIFF + TAG : RIFF + TAG + START]
    frame = payload[:TAG] + start + payload[TAG:]
    body = b"WEBPVP8 " + len(frame).to_bytes(4, "little") + frame + b"\0" * (len(frame) % 2)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _split_avif(file: bytes) -> tuple[bytes, bytes]:
    """The boxes before the coded image, whose own head is one of them; the coded image (AV1)."""
    place = 0
    while file[place + 4 : place + 8] != b"mdat":
        place += int.from_bytes(file[place : place + 4], "big")
    return file[: place + 8], file[place + 8 :]


def _join_avif(like: bytes, payload: bytes) -> bytes:
    """Boxes that hold the coded image's length are given its own."""
    head, coded = _split_avif(like)
    extent = head.index(b"iloc") + 22  # of the one item's one extent: its length, after its offset
    if head[extent : extent + 4] != len(coded).to_bytes(4, "big"):
        raise ValueError("an AVIF file whose item's length is not where it was expected, in one extent of one item")
    head = head[:extent] + len(payload).to_bytes(4, "big") + head[extent + 4 :]
    return head[:-8] + (len(payload) + 8).to_bytes(4, "big") + b"mdat" + payload


def _split_jxl(file: bytes) -> tuple[bytes, bytes]:
    """The signature of a bare codestream; the stream, which says the size in a few bits."""
    if file[:2] != b"\xff\x0a":
        raise ValueError(f"a JPEG XL file that begins with {file[:2]!r}: expected a bare codestream, b'\\xff\\n'")
    return file[:2], file[2:]


def _join_jxl(like: bytes, payload: bytes) -> bytes:
    return like[:2] + payload


HALF_COLOUR = {"subsampling": "4:2:0"}
JPEG = Format("JPEG", HALF_COLOUR | {"optimize": True}, HALF_COLOUR, _split_jpeg, _join_jpeg)
_WEBP = {"method": 6}
WEBP = Format("WEBP", _WEBP, _WEBP, _split_webp, _join_webp)
_AVIF = HALF_COLOUR | {"speed": 6, "max_threads": 1, "autotiling": False}
AVIF = Format("AVIF", _AVIF, _AVIF, _split_avif, _join_avif)
_JXL = {"effort": 7, "use_container": False, "num_threads": 1}
JXL = Format("JXL", _JXL, _JXL, _split_jxl, _join_jxl, "pillow-jxl-plugin", highest=99)  # its 100 fails on lossy files


# --- Rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """An image's bytes that fit, and the image that they decode to: float (3, E, E)."""

    spent: bytes
    decoded: Tensor


class Codec(Tokenizer):
    """A codec at a number of bytes; subclasses name the format and what is counted.

    best_size: whether smaller files are tried; bare: whether the header is left out.
    """

    Options = CodecOptions
    # what the reference tokenizer's tokens cost: llamagen-mini (64 x 10 bits), llamagen (256 x 14)
    preset_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mini": {"bytes": 80}, "paper": {"bytes": 448}}
    calibration = 3
    scale = "none"
    code_licence = "Apache-2.0"
    weights_licence = "none needed"
    format: ClassVar[Format]
    best_size: ClassVar[bool] = False
    bare: ClassVar[bool] = False

    @classmethod
    def weights(cls, options: CodecOptions) -> tuple[WeightsSource, ...]:
        """None. Raises Unavailable where Pillow has no such format, ValueError for a budget that is none."""
        if not cls.format.available:
            way = f"pip install {cls.format.package}" if cls.format.package else "a Pillow that was built with it"
            raise Unavailable(f"this Pillow reads and writes no {cls.format.name}; it needs {way}")
        if options.bytes < 1:
            raise ValueError(f"bytes={options.bytes}: expected at least 1")
        return ()

    @classmethod
    def at_rate(cls, bits: float) -> Mapping[str, Any] | None:
        """The whole bytes into which so many bits fit."""
        return {"bytes": math.ceil(bits / 8 - 1e-9)} if cls.format.available and bits > 0 else None

    @classmethod
    def rate_parts(cls, options: CodecOptions, tokens: Tokens) -> Mapping[str, float]:
        """Bytes of header and of payload, means over the images; what stands for a header is counted as one."""
        ahead = SIDE * cls.best_size + SETTINGS * cls.bare
        headers, total = [], []
        for spent in _bytes_of(tokens):
            headers.append(ahead + (0 if cls.bare else len(cls.format.split(spent[ahead:])[0])))
            total.append(len(spent))
        return {"header": float(np.mean(headers)), "payload": float(np.mean(total) - np.mean(headers))}

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo("codec", self.options.bytes, BYTE, input_size=None, output_size=None)

    def encode(self, images: Tensor) -> Tokens:
        """Raises Unreachable for an image that no file of so few bytes holds."""
        pixels = (images * 255 + 0.5).floor().clamp(0, 255).byte().cpu()
        spent = [self._spend(image) for image in pixels]
        ids = torch.zeros(len(spent), self.options.bytes, dtype=torch.int64)
        for row, one in zip(ids, spent, strict=True):
            row[: len(one)] = torch.frombuffer(bytearray(one), dtype=torch.uint8)
        return Tokens(ids, torch.tensor([len(one) for one in spent])).to(images.device)

    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        """The files' images, of the side that was encoded."""
        return torch.stack([self._image(spent) for spent in _bytes_of(tokens)]).to(tokens.ids.device)

    def _spend(self, image: Tensor) -> bytes:
        """The bytes of one image, uint8 (3, E, E)."""
        side, shown = image.shape[-1], Image.fromarray(image.permute(1, 2, 0).numpy())
        found = self._best(shown, image.float() / 255) if self.best_size else self._fit(shown, side)
        if found is None:
            raise Unreachable(self._why(side))
        return found.spent

    def _best(self, image: Image.Image, wanted: Tensor) -> _Fit | None:
        """Of the thumbnails' sizes, first each double of the one before and then those around the best of them, the one
        of highest PSNR."""
        sides, fits = thumbnail_sides(image.width), dict[int, tuple[float, _Fit] | None]()

        def tried(place: int) -> bool:
            if place not in fits:
                small = image.resize((sides[place],) * 2, Image.Resampling.LANCZOS)
                fit = self._fit(small if sides[place] < image.width else image, image.width)
                fits[place] = None if fit is None else (float((fit.decoded - wanted).square().mean()), fit)
            return fits[place] is not None

        for place in (*range(0, len(sides), STEPS), len(sides) - 1):
            if not tried(place):
                break

        def best() -> int | None:
            return min((p for p in fits if fits[p] is not None), key=lambda p: fits[p][0], default=None)  # type: ignore[index]  # those are left out

        if (middle := best()) is None:
            return None
        for place in range(max(0, middle - STEPS + 1), min(len(sides), middle + STEPS)):
            tried(place)
        found = fits[best()]  # type: ignore[index]  # there is one
        assert found is not None
        return found[1]

    def _fit(self, image: Image.Image, side: int) -> _Fit | None:
        """The file of highest quality that fits, None where none does. side: of the image that it stands for."""
        low, high, found = LOWEST, self.format.highest, None
        while low <= high:
            quality = (low + high) // 2 if found is not None or high < self.format.highest else LOWEST
            spent = self._spent(image, quality, side)
            if len(spent) <= self.options.bytes:
                found, low = spent, quality + 1
            elif quality == LOWEST:
                return None
            else:
                high = quality - 1
        return None if found is None else _Fit(found, self._image(found))

    def _spent(self, image: Image.Image, quality: int, side: int) -> bytes:
        """What stands for an image at a quality; side as in `_fit`."""
        file = self.format.encode(image, quality, self.bare)
        ahead = side.to_bytes(SIDE, "big") if self.best_size else b""
        if not self.bare:
            return ahead + file
        payload = self.format.split(file)[1]
        if self.format.joined(_like(self.format, image.width, quality), payload) != file:
            raise ValueError(
                f"{self.format.name} at {image.width} pixels and quality {quality}: the header is not that of a grey "
                "image of the same size and quality, so a decoder can't know it"
            )
        return ahead + image.width.to_bytes(SIDE, "big") + quality.to_bytes(1, "big") + payload

    def _image(self, spent: bytes) -> Tensor:
        """The image of what `_spent` gave: float (3, E, E) in [0, 1]."""
        file = spent[SIDE * self.best_size :]
        if self.bare:
            side, quality = int.from_bytes(file[:SIDE], "big"), file[SIDE]
            file = self.format.joined(_like(self.format, side, quality), file[SETTINGS:])
        pixels = torch.from_numpy(np.array(self.format.decode(file))).permute(2, 0, 1).float() / 255
        side = int.from_bytes(spent[:SIDE], "big") if self.best_size else pixels.shape[-1]
        if side == pixels.shape[-1]:
            return pixels
        return F.interpolate(pixels[None], size=(side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)

    def _why(self, side: int) -> str:
        """Why images of a side can't be had."""
        smallest = SMALLEST if self.best_size else side
        file = self.format.encode(_grey(smallest), LOWEST, self.bare)
        header, payload = map(len, self.format.split(file))
        header = (0 if self.bare else header) + SIDE * self.best_size + SETTINGS * self.bare
        limit = self.options.bytes
        size = f"{smallest}x{smallest} pixels"
        if header + payload > limit:
            what = "headers alone exceed the rate" if header > limit else "not even a grey image fits"
            return f"{what}: a grey image of {size} takes {header} bytes of header and {payload} of payload, of {limit}"
        return f"an image of {size} takes more than {limit} bytes at the lowest quality; {header} are header"


def thumbnail_sides(side: int) -> list[int]:
    """Sides that are tried of an image of `side` pixels: STEPS between each and its double, the image's own last."""
    count = max(0, math.floor(STEPS * math.log2(side / SMALLEST)))
    return [*dict.fromkeys(s for i in range(count) if (s := round(SMALLEST * 2 ** (i / STEPS))) < side), side]


def _bytes_of(tokens: Tokens) -> list[bytes]:
    """Each image's bytes."""
    assert tokens.lengths is not None
    rows = tokens.ids.to("cpu", torch.uint8).numpy()
    return [row[:length].tobytes() for row, length in zip(rows, tokens.lengths.tolist(), strict=True)]


def _grey(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (128, 128, 128))


@lru_cache(1024)
def _like(kind: Format, side: int, quality: int) -> bytes:
    """A file of the size and quality, from which a decoder knows the header."""
    return kind.encode(_grey(side), quality, bare=True)


class Jpeg(Codec):
    """JPEG, 4:2:0, optimised Huffman tables, at full size."""

    format = JPEG


class JpegThumbnail(Jpeg):
    """JPEG of the best thumbnail."""

    best_size = True


class JpegPayload(JpegThumbnail):
    """JPEG of the best thumbnail, standard Huffman tables, header not counted."""

    bare = True


class WebP(Codec):
    """Lossy WebP, method 6, at full size."""

    format = WEBP


class WebPThumbnail(WebP):
    """Lossy WebP of the best thumbnail."""

    best_size = True


class WebPPayload(WebPThumbnail):
    """Lossy WebP of the best thumbnail, header not counted."""

    bare = True


class Avif(Codec):
    """AVIF, 4:2:0, speed 6, at full size."""

    format = AVIF


class AvifThumbnail(Avif):
    """AVIF of the best thumbnail."""

    best_size = True


class AvifPayload(AvifThumbnail):
    """AVIF of the best thumbnail, header not counted."""

    bare = True


class JpegXL(Codec):
    """JPEG XL, effort 7, at full size (needs pillow-jxl-plugin)."""

    format = JXL


class JpegXLThumbnail(JpegXL):
    """JPEG XL of the best thumbnail (needs pillow-jxl-plugin)."""

    best_size = True


class JpegXLPayload(JpegXLThumbnail):
    """JPEG XL of the best thumbnail, signature not counted (needs pillow-jxl-plugin)."""

    bare = True
