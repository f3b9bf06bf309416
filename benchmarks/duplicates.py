"""How many copies the construction of training data finds, by what was done to them, and what else it takes for one.

    python benchmarks/duplicates.py PHOTOS                    2,000 photographs and 2,000 scenes: a few minutes
    python benchmarks/duplicates.py --photos 0 --scenes 50    seconds, without photographs

PHOTOS: a folder of photographs, all of them different. Duplicates: a copy is compared with the image that it was made
of, by the rules of `lactok.data.construct.duplicates`; false are images that one of the earlier images is taken for.
Leaks: the first half of the images is the evaluation set; copies of it are looked for, and false are images of the
second half that are found in it. Perceptual hash and thumbnails alone; --features adds EfficientNet-Lite0's.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from lactok.data.construct.inspection import EvaluationSet, features
from lactok.data.construct.miniature import COPIES, copied
from lactok.data.construct.prints import NEAR, Print, bands, distance, mirrored, print_of, same_picture
from lactok.data.scenes import scene
from lactok.images.decode import decode
from lactok.images.folder import list_folder
from lactok.progress import Meter

Change = Callable[[np.ndarray], np.ndarray]
SCENE_SIDE = 64


def _encoded(kind: str, quality: int) -> Change:
    def change(pixels: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, quality=quality)
        return np.asarray(Image.open(buffer).convert("RGB"))

    return change


def _resized(part: float) -> Change:
    def change(pixels: np.ndarray) -> np.ndarray:
        height, width = (max(1, round(part * side)) for side in pixels.shape[:2])
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))

    return change


def _brighter(levels: int) -> Change:
    return lambda pixels: np.clip(pixels.astype(np.int32) + levels, 0, 255).astype(np.uint8)


def _enhanced(kind: Any, by: float) -> Change:
    return lambda pixels: np.asarray(kind(Image.fromarray(pixels)).enhance(by))


def _cut(part: float, of_one_side: bool = False) -> Change:
    """`part` of each side's length is cut off: half of it at either end, or all of it at the top and on the left."""

    def change(pixels: np.ndarray) -> np.ndarray:
        down, right = (max(1, round(part * side)) for side in pixels.shape[:2])
        top, left = (down, right) if of_one_side else (down // 2, right // 2)
        return np.ascontiguousarray(pixels[top : pixels.shape[0] - down + top, left : pixels.shape[1] - right + left])

    return change


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def _planted(how: str) -> Change:
    return lambda pixels: copied(pixels, how)


CHANGES: dict[str, Change] = {
    **{f"planted: {how}": _planted(how) for how in COPIES},
    "JPEG 50": _encoded("JPEG", 50),
    "JPEG 30": _encoded("JPEG", 30),
    "JPEG 10": _encoded("JPEG", 10),
    "WebP 50": _encoded("WEBP", 50),
    "half the size": _resized(0.5),
    "twice the size": _resized(2.0),
    "24 levels brighter": _brighter(24),
    "24 levels darker": _brighter(-24),
    "contrast 0.85": _enhanced(ImageEnhance.Contrast, 0.85),
    "contrast 1.15": _enhanced(ImageEnhance.Contrast, 1.15),
    "saturation 0.8": _enhanced(ImageEnhance.Color, 0.8),
    "cut by 2 %, centred": _cut(0.02),
    "cut by 4 %, centred": _cut(0.04),
    "cut by 10 %, centred": _cut(0.10),
    "cut by 2 %, one side": _cut(0.02, True),
    "cut by 4 %, one side": _cut(0.04, True),
    "cut by 10 %, one side": _cut(0.10, True),
    "mirrored": mirrored,
    "grey": _grey,
}
"""What is done to an image, by name."""


def found_as_duplicate(image: Print, copy: Print) -> bool:
    """Whether the build drops the copy: hashes share a part and are near, thumbnails show one picture."""
    a, b = (np.frombuffer(one.signature, np.uint8)[None] for one in (image, copy))
    shared = bool((bands(a) == bands(b)).any())
    return shared and distance(a, b)[0] <= NEAR and same_picture(image.thumbnail, copy.thumbnail)


def false_duplicates(prints: Sequence[Print]) -> tuple[list[int], int]:
    """(images that are taken for one of those before them, pairs of hashes that were near)."""
    hashes = np.array([np.frombuffer(one.signature, np.uint8) for one in prints])
    parts = bands(hashes)
    false, near = [], 0
    for place in range(1, len(prints)):
        candidates = np.flatnonzero(distance(hashes[:place], hashes[place]) <= NEAR)
        candidates = candidates[(parts[candidates] == parts[place]).any(axis=1)]
        near += len(candidates)
        if any(same_picture(prints[other].thumbnail, prints[place].thumbnail) for other in candidates):
            false.append(place)
    return false, near


def measured(label: str, images: Sequence[np.ndarray], changes: Mapping[str, Change], network: Any) -> dict[str, Any]:
    """Parts found by change, and false ones, of a set of different images."""
    half = max(1, len(images) // 2)
    prints = [print_of(pixels) for pixels in images]
    held = EvaluationSet([(f"{place}", pixels) for place, pixels in enumerate(images[:half])], network)
    rows: dict[str, dict[str, float]] = {}
    with Meter(len(changes) + 1, label, "edit") as meter:
        for count, (name, change) in enumerate(changes.items(), start=1):
            copies = [change(pixels) for pixels in images]
            duplicates = [found_as_duplicate(image, print_of(copy)) for image, copy in zip(prints, copies, strict=True)]
            leaks = [is_leak(held, copy, network) == f"{place}" for place, copy in enumerate(copies[:half])]
            rows[name] = {"duplicates": float(np.mean(duplicates)), "leaks": float(np.mean(leaks))}
            meter.at(count)
        false, near = false_duplicates(prints)
        taken = [place for place, pixels in enumerate(images[half:], start=half) if is_leak(held, pixels, network)]
        meter.at(len(changes) + 1)
    return {
        "images": len(images),
        "found": rows,
        "false_duplicates": false,
        "near_pairs": near,
        "pairs": len(images) * (len(images) - 1) // 2,
        "evaluation_images": half,
        "false_leaks": taken,
    }


def is_leak(held: EvaluationSet, pixels: np.ndarray, network: Any) -> str:
    """The evaluation image that this one is, as the build's last stage sees it; "" for none."""
    name = held.by_picture(pixels, "").partition(",")[0]
    if not name and network is not None:
        name = held.by_features(features(network, pixels)[0], 0.95)[0]
    return name


def photographs(folder: Path, count: int) -> list[np.ndarray]:
    """The first of a folder's images by name, uint8 (H, W, 3)."""
    paths = sorted(list_folder(folder).images.items())[:count]
    if len(paths) < count:
        raise SystemExit(f"{folder} holds {len(paths)} images, {count} are asked for: give --photos {len(paths)}")
    return [decode(path).pixels for _, path in paths]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="PHOTOS")
    parser.add_argument("--photos", type=int, default=2000, help="how many of the folder [2000]")
    parser.add_argument("--scenes", type=int, default=2000, help="how many scenes of 64 pixels [2000]")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes [0]")
    parser.add_argument("--changes", default="", help="substring of the names of the changes that are made [all]")
    parser.add_argument("--features", action="store_true", help="compare EfficientNet-Lite0's features too (slow)")
    parser.add_argument("--json", type=Path, help="file that gets the figures")
    given = parser.parse_args(arguments)
    if given.photos and not given.folder:
        parser.error("expected a folder of photographs, or --photos 0")
    changes = {name: change for name, change in CHANGES.items() if given.changes in name}
    network = None
    if given.features:
        from lactok.feature_extractors.effnet import load_lite0

        network = load_lite0()
    sets = {}
    if given.photos:
        sets["photographs"] = photographs(given.folder, given.photos)
    if given.scenes:
        sets["scenes"] = [scene(given.seed, place, SCENE_SIDE).image for place in range(given.scenes)]
    made = {}
    for label, images in sets.items():
        started = time.monotonic()
        made[label] = measured(label, images, changes, network)
        show(label, made[label], time.monotonic() - started)
    if given.json:
        given.json.write_text(json.dumps(made, indent=1) + "\n")
    return 0


def show(label: str, figures: Mapping[str, Any], seconds: float) -> None:
    """Print a set's figures."""
    print(f"{label}: {figures['images']:,} images, {seconds:.0f} s")
    print(f"  {'found':<28} {'duplicates':>10} {'leaks':>8}")
    for name, row in figures["found"].items():
        print(f"  {name:<28} {row['duplicates']:>10.2%} {row['leaks']:>8.2%}")
    false, taken = figures["false_duplicates"], figures["false_leaks"]
    others = figures["images"] - figures["evaluation_images"]
    print(f"  taken for a duplicate: {len(false)} ({len(false) / figures['images']:.3%})")
    print(f"  near pairs: {figures['near_pairs']:,} of {figures['pairs']:,}")
    print(f"  taken for a leak: {len(taken)} of {others:,} ({len(taken) / max(1, others):.3%})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
