"""The miniature's stages: scenes in place of FLUX.1-dev, their labels in place of Qwen2.5-VL, a classifier's confidence
in place of the judges; and what is planted among them to be found.

What is planted, and where, is a function of the seed and the item's index. It is told to the report alone: no stage
reads `WorkItem.planted`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lactok.data.construct.inspection import encoded
from lactok.data.construct.items import WorkItem
from lactok.data.construct.listing import Entry, cleaned
from lactok.data.construct.spec import Spec
from lactok.data.construct.stages import StageWork
from lactok.data.scenes.combinations import Split
from lactok.data.scenes.draws import Draws
from lactok.data.scenes.render import captions, scene

EVALUATION_SEED = 10**6
"""Added to the seed of the scenes that stand for an evaluation set."""
COPIES = ("exact", "jpeg", "resized", "brighter", "darker", "jpeg of a resized one")
BROKEN = ("cut short", "no image", "empty")
HOSTILE = ("100 kB", "control characters", "white space")


def planted(spec: Spec, index: int) -> tuple[str, str, int]:
    """(kind, how, index of the image it copies): kind "" for most items."""
    draws = Draws(f"lactok plants 1|{spec.seed}|{index}")
    place = draws.below(10**6) / 10**6
    kind = ""
    for kind, part in spec.plant.model_dump().items():  # noqa: B007  # the one that it stops at
        if place < part:
            break
        place -= part
    else:
        return "", "", -1
    if kind == "duplicates":
        original = next((i for i in range(index - 1, -1, -1) if not planted(spec, i)[0]), -1)
        for _ in range(8):
            earlier = draws.below(index) if index else -1
            if earlier >= 0 and not planted(spec, earlier)[0]:
                original = earlier
                break
        return ("", "", -1) if original < 0 else (kind, draws.choice(COPIES), original)
    if kind == "leaks":
        count = next((int(name[7:]) for name in spec.leakage if name.startswith("scenes:")), 0)
        return (kind, draws.choice(COPIES), draws.below(count)) if count else ("", "", -1)
    return kind, draws.choice(BROKEN if kind == "broken" else HOSTILE), -1


def scene_entries(spec: Spec) -> Iterator[Entry]:
    """An item a scene, with its label as the source's caption; those with hostile captions among them."""
    for index, (text, _) in enumerate(captions(spec.seed, spec.items)):
        kind, how, _original = planted(spec, index)
        if kind == "hostile":
            text = {"100 kB": "x" * 100_000, "control characters": f"{text}\x00\x1b[2J", "white space": " \t\n"}[how]
        caption, reason, detail = cleaned(text, spec.longest_caption)
        yield Entry("scenes", f"seed {spec.seed}, scene {index}", caption, "", reason, detail)


def evaluation_scenes(spec: Spec, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Scenes of another stream, which show held-out combinations."""
    return ((f"scenes/{index}", _evaluation_scene(spec, index)) for index in range(count))


def _evaluation_scene(spec: Spec, index: int) -> np.ndarray:
    return scene(spec.seed + EVALUATION_SEED, index, spec.size, Split.HELD_OUT).image


def copied(pixels: np.ndarray, how: str) -> np.ndarray:
    """What becomes of an image that is copied around, `how` one of COPIES."""
    image = Image.fromarray(pixels)
    if how in ("resized", "jpeg of a resized one"):
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
    if how in ("jpeg", "jpeg of a resized one"):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=70)
        image = Image.open(buffer)
    made = np.asarray(image.convert("RGB"))
    if how in ("brighter", "darker"):
        made = np.clip(made.astype(np.int32) + (12 if how == "brighter" else -12), 0, 255).astype(np.uint8)
    return made


class SceneSynthesiser(StageWork):
    """The scene with the item's index."""

    name = "synthesise"

    def __init__(self, spec: Spec) -> None:
        self.batch, self.spec = spec.stages.synthesise.batch, spec

    def work(self, items: Sequence[WorkItem]) -> None:
        for item in items:
            kind, how, original = planted(self.spec, item.index)
            item.planted = f"{kind}: {how} of {original}" if original >= 0 else f"{kind}: {how}" if kind else ""
            if kind == "leaks":
                pixels = copied(_evaluation_scene(self.spec, original), how)
            elif kind == "duplicates":
                pixels = copied(scene(self.spec.seed, original, self.spec.size).image, how)
            else:
                pixels = scene(self.spec.seed, item.index, self.spec.size).image
            item.seed = self.spec.seed
            item.image, item.format = encoded(pixels, self.spec.keep_format, self.spec.quality), self.spec.keep_format
            if kind == "broken":
                item.image = {"cut short": item.image[: len(item.image) // 2], "no image": b"<html>", "empty": b""}[how]


class LabelCaptioner(StageWork):
    """The label of the scene, which is what the source says."""

    name = "caption"

    def __init__(self, spec: Spec) -> None:
        self.batch = spec.stages.caption.batch

    def work(self, items: Sequence[WorkItem]) -> None:
        for item in items:
            item.caption = item.raw_caption


class Confidence(StageWork):
    """The largest of EfficientNet-Lite0's class probabilities: higher for images that look like something."""

    name = "judge"

    def __init__(self, spec: Spec) -> None:
        from lactok.feature_extractors.effnet import load_lite0

        self.batch, self.spec, self.network = spec.stages.judge.batch, spec, load_lite0()

    def work(self, items: Sequence[WorkItem]) -> None:
        import torch

        for item in items:
            if (pixels := item.decoded()) is None:
                continue
            batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
            with torch.inference_mode():  # one at a time: no rounding that depends on what else is there
                value = float(self.network(batch).logits.softmax(1).max())
            item.scores["confidence"] = round(value, 6)
            if value <= self.spec.judges["confidence"]:
                item.drop("score: confidence", f"{value:.4f}, must exceed {self.spec.judges['confidence']:g}")


def models(spec: Spec) -> dict[str, Any]:
    """What made and chose the images, for build.json."""
    from lactok.feature_extractors.effnet import LITE0

    return {
        "synthesiser": {"name": "scenes", "seed": spec.seed, "size": spec.size},
        "captioner": {"name": "labels"},
        "judges": {"confidence": {"name": "efficientnet-lite0", "sha256": LITE0.sha256}},
    }
