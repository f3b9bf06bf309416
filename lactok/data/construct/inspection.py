"""The last stage of a unit: each image decoded and fingerprinted, and compared with the evaluation sets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lactok.data.construct.items import WorkItem
from lactok.data.construct.prints import BITS, NEAR_HELD, Print, distance, mirrored, print_of, same_picture
from lactok.data.construct.spec import Spec, SpecError
from lactok.data.construct.stages import StageWork
from lactok.data.held_out import held_out_name, pixels_sha256
from lactok.images.decode import ImageError, decode
from lactok.images.folder import list_folder

LEAK = "leak"
PREVIEW = 96
"""Pixels of the longer side of what the report shows of a dropped image."""
PREVIEWS = 2
"""Images of one reason that a unit keeps for the report."""
CANDIDATES = 64
"""Evaluation images that an image is compared with at most, those with the nearest hashes."""


class EvaluationSet:
    """Images that training must not see, as prints and, where they are compared, features.

    named: each image's name and pixels, uint8 (H, W, 3), which are not kept: 4 kB an image stay, with features 9 kB.
    names: N; signatures: uint8 (N, BITS / 8); thumbnails; features: float32 (N, 1280) of unit length, or None.
    """

    def __init__(self, named: Iterable[tuple[str, np.ndarray]], network: Any = None) -> None:
        self.names: list[str] = []
        self.thumbnails: list[bytes] = []
        self.digests: dict[str, str] = {}
        signatures, rows = [], []
        for name, pixels in named:
            seen = print_of(pixels)
            self.names.append(name)
            self.thumbnails.append(seen.thumbnail)
            self.digests[pixels_sha256(pixels)] = name
            signatures.append(seen.signature)
            if network is not None:
                rows.append(features(network, pixels))
        self.signatures = np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), BITS // 8)
        self.features = np.concatenate(rows) if rows else None

    def by_picture(self, pixels: np.ndarray, digest: str, seen: Print | None = None) -> str:
        """The image that this one is, as it stands or left to right; "" for none. seen: its print where it is known."""
        if digest in self.digests:
            return self.digests[digest]
        if not self.names:
            return ""
        if (place := self._same_as(seen or print_of(pixels))) >= 0:
            return self.names[place]
        place = self._same_as(print_of(mirrored(pixels)))
        return f"{self.names[place]}, mirrored" if place >= 0 else ""

    def _same_as(self, seen: Print) -> int:
        """The place of the image of this print, -1 for none."""
        apart = distance(self.signatures, np.frombuffer(seen.signature, np.uint8))
        near = np.flatnonzero(apart <= NEAR_HELD)
        for place in near[np.argsort(apart[near], kind="stable")][:CANDIDATES]:
            if same_picture(self.thumbnails[place], seen.thumbnail):
                return int(place)
        return -1

    def by_features(self, row: np.ndarray, above: float) -> tuple[str, float]:
        """The image whose features are nearest if their cosine is more than `above`, else ""; and the cosine."""
        if self.features is None:
            return "", 0.0
        cosines = self.features @ row
        best = int(cosines.argmax())
        return (self.names[best] if cosines[best] > above else ""), float(cosines[best])


def features(network: Any, pixels: np.ndarray) -> np.ndarray:
    """EfficientNet-Lite0's pooled features of an image at 224 x 224, float32 (1, 1280) of unit length."""
    import torch

    small = np.array(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC))
    tensor = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        row = network(tensor.to(next(network.parameters()).device)).pooled
    return torch.nn.functional.normalize(row.flatten(1), dim=1).cpu().numpy()


def evaluation_images(names: Sequence[str], spec: Spec) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pixels) of all evaluation sets of the settings, one image after the other: a set may not fit into memory.
    Raises SpecError for a folder that is missing or empty."""
    for name in names:
        if name == "photos":
            yield from _photos()
        elif name.startswith("scenes:"):
            from lactok.data.construct.miniature import evaluation_scenes

            yield from evaluation_scenes(spec, int(name.partition(":")[2]))
        else:
            folder = Path(name).expanduser()
            paths = list_folder(folder).images if folder.is_dir() else {}
            if not paths:
                raise SpecError(f"leakage={name}: no folder of images; name those of the evaluation sets, or photos")
            for short, path in sorted(paths.items()):
                try:
                    pixels = decode(path).pixels
                except ImageError as error:
                    raise SpecError(f"leakage={name}: {error}; remove it or repair it") from error
                yield f"{folder.name}/{short}", pixels


def _photos() -> Iterator[tuple[str, np.ndarray]]:
    """The benchmark's own photographs, as far as scikit-image's wheel is here; by digest they are always known."""
    listed = json.loads((resources.files("lactok.data") / "held_out.json").read_text())["images"]
    try:
        data = resources.files("skimage.data")
    except ModuleNotFoundError:
        return
    files = [(entry["name"], data / entry["name"]) for entry in listed]
    yield from ((f"photos/{name}", decode(file.read_bytes()).pixels) for name, file in files if file.is_file())


class Inspection(StageWork):
    """Decodes (a broken image is dropped), converts to a format of shards, fingerprints, looks for leaks."""

    name = "inspect"

    def __init__(self, spec: Spec) -> None:
        self.batch, self.spec, self.network = spec.stages.inspect.batch, spec, None
        self.preview: dict[str, int] = {}
        if spec.leak_cosine < 1:
            from lactok.feature_extractors.effnet import load_lite0

            self.network = load_lite0("cuda" if spec.stages.inspect.gpus else "cpu")
        self.held = EvaluationSet(evaluation_images(spec.leakage, spec), self.network)

    def work(self, items: Sequence[WorkItem]) -> None:
        for item in items:
            if (pixels := item.decoded()) is not None:
                self._inspect(item, pixels)

    def _inspect(self, item: WorkItem, pixels: np.ndarray) -> None:
        if min(pixels.shape[:2]) < 32:
            item.drop("image too small", f"{pixels.shape[1]} x {pixels.shape[0]} pixels")
            return
        item.height, item.width = pixels.shape[:2]
        item.format = item.format or kept_format(item.image)
        if not item.format:  # of another format than shards have
            item.image, item.format = encoded(pixels, "png", 100), "png"
        item.pixels_sha256 = pixels_sha256(pixels)
        seen = print_of(pixels)
        item.signature, item.thumbnail = seen.signature, seen.thumbnail
        if name := held_out_name(sha256(item.image).hexdigest(), pixels):
            item.drop(f"{LEAK}: content", f"photos/{name}")
        elif name := self.held.by_picture(pixels, item.pixels_sha256, seen):
            item.drop(f"{LEAK}: perceptual hash", name)
        elif self.network is not None:
            name, cosine = self.held.by_features(features(self.network, pixels)[0], self.spec.leak_cosine)
            if name:
                item.drop(f"{LEAK}: features", f"{name}, cosine {cosine:.3f}")


def previews(items: Sequence[WorkItem]) -> None:
    """Give the first dropped images of each reason a small JPEG, for the report."""
    shown: dict[str, int] = {}
    for item in items:
        if not item.reason or not item.image or shown.get(item.reason, 0) >= PREVIEWS:
            continue
        try:
            image = Image.fromarray(decode(item.image).pixels)
        except ImageError:
            continue
        image.thumbnail((PREVIEW, PREVIEW))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        item.preview = buffer.getvalue()
        shown[item.reason] = shown.get(item.reason, 0) + 1


def kept_format(image: bytes) -> str:
    """The ending of a file that shards keep as it is; "" for another format."""
    if image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else ""


def encoded(pixels: np.ndarray, kind: str, quality: int) -> bytes:
    """An image as a file: PNG; JPEG without subsampling of colour; WebP, lossless at quality 100."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if kind == "png":
        image.save(buffer, "PNG", compress_level=6)
    elif kind == "jpg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        image.save(buffer, "WEBP", quality=quality, lossless=quality == 100, method=4)
    return buffer.getvalue()
