"""What a build takes: GPU hours, days on so many GPUs, storage; each speed with where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lactok.data.construct.spec import Spec, SpecError

BYTES = {"jpg": 0.45, "webp": 0.30, "png": 1.45}
"""Of a pixel, about: what photographs of 1024 pixels take at quality 95 (assumed; a build's report has its own)."""
PASS = {"judge": 0.667}
"""Part of the images that the judges keep: 20 of 30 million in section 4.4."""


@dataclass(frozen=True)
class Cost:
    """One stage. images: that pass through it; rate: images a second of one process, which has `gpus` GPUs; source:
    where the rate comes from, kind: measured, given or assumed."""

    stage: str
    images: float
    rate: float
    gpus: float
    kind: str
    source: str

    @property
    def process_hours(self) -> float:
        return self.images / self.rate / 3600

    @property
    def gpu_hours(self) -> float:
        return self.process_hours * self.gpus


def speeds(given: Mapping[str, str], report: str = "") -> dict[str, dict[str, Any]]:
    """Speeds by stage or judge: those of the project, of a build's report.json, and given ones, later ones first.

    Raises SpecError for what is no speed.
    """
    known = json.loads((resources.files("lactok.data.construct") / "speeds.json").read_text())
    if report:
        try:
            stages = json.loads(Path(report).expanduser().read_bytes())["stages"]
            for name, stage in stages.items():
                if stage["items_in"] and stage["seconds"]:
                    rate, where = stage["items_in"] / stage["seconds"], f"{report}: {stage['device']}"
                    known[name] = {**known.get(name, {"gpus": 1}), "images_per_second": rate, "kind": "measured"}
                    known[name]["source"] = where
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpecError(f"speeds={report}: no report.json of a build: {error}") from error
        if "judge" in known:
            known.pop("imagereward"), known.pop("mps")
    for name, text in given.items():
        try:
            rate = float(text)
        except ValueError:
            rate = 0.0
        if rate <= 0 or name not in known:
            raise SpecError(f"speed.{name}={text}: expected images a second of one process, of {', '.join(known)}")
        known[name] = {**known[name], "images_per_second": rate, "kind": "given", "source": "given by you"}
    return known


def costs(spec: Spec, known: Mapping[str, Mapping[str, Any]], made: int, existing: int = 0) -> list[Cost]:
    """The stages of a build of `made` images from captions and `existing` ones."""
    everything = made + existing
    names = {"synthesise": made, "caption": everything}
    if "judge" in known:
        names["judge"] = everything
    else:
        left = float(everything)
        for name in spec.judges:
            names[name] = int(left)
            left *= PASS["judge"] ** (1 / len(spec.judges))  # each lets an equal part pass
    names["inspect"] = int(everything * PASS["judge"])
    lines = []
    for name, images in names.items():
        if name not in known:
            raise SpecError(f"no speed of {name} is known: give speed.{name}=IMAGES_A_SECOND")
        speed = known[name]
        lines.append(Cost(name, images, speed["images_per_second"], speed["gpus"], speed["kind"], speed["source"]))
    return lines


def told(spec: Spec, made: int, existing: int, gpus: int, known: Mapping[str, Mapping[str, Any]]) -> str:
    """The plan as text."""
    if made + existing < 1 or gpus < 1:
        raise SpecError(f"items={made}, existing={existing}, gpus={gpus}: expected at least one image and one GPU")
    lines = costs(spec, known, made, existing)
    total = sum(line.gpu_hours for line in lines)
    kept = (made + existing) * PASS["judge"]
    image = BYTES[spec.keep_format] * spec.size**2
    everything = kept * image + (made + existing) * 4200  # dropped images leave their row alone
    text = [
        f"{made:,} images synthesised, {existing:,} that exist, {kept:,.0f} kept ({PASS['judge']:.0%}: section 4.4 "
        f"keeps 20 of 30 million), {gpus:,} GPUs",
        "",
        f"{'stage':<12} {'images':>12} {'images/s':>10} {'GPUs each':>9} {'GPU hours':>12}  speed is",
    ]
    for line in lines:
        hours = f"{line.gpu_hours:,.0f}" if line.gpus else f"({line.process_hours:,.0f} core h)"
        text.append(
            f"{line.stage:<12} {line.images:>12,.0f} {line.rate:>10.4g} {line.gpus:>9g} {hours:>12}  "
            f"{line.kind}: {line.source}"
        )
    text += [
        "",
        f"GPU hours: {total:,.0f}; days on {gpus:,} GPUs: {total / gpus / 24:,.1f}, if every one is busy",
        f"storage: shards {kept * (image + 2000) / 1e12:,.2f} TB, and while it is built "
        f"{everything / 1e12:,.2f} TB of units ({image / 1e3:,.0f} kB an image, {spec.keep_format}: assumed)",
        "One assumed speed decides the whole: measure yours (items=1000 of a build, then speeds=DIR/report.json).",
    ]
    return "\n".join(text)
