"""The evaluation set's photographs, which no training run may see: recognised by file and by decoded pixels.

`held_out.json` lists the photographs inside the scikit-image wheel that the `photos` dataset draws its tiles from, with
the sha256 of each file and of its decoded RGB pixels, so that a renamed or losslessly re-encoded copy is found too.
"""

from __future__ import annotations

import json
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np


@cache
def _known() -> dict[str, str]:
    """sha256 (of a file or of decoded pixels) to the photograph's name."""
    entries = json.loads((Path(__file__).parent / "held_out.json").read_text())["images"]
    return {entry[key]: entry["name"] for entry in entries for key in ("file_sha256", "pixels_sha256")}


def pixels_sha256(pixels: np.ndarray) -> str:
    """sha256 hex of decoded pixels: uint8 (H, W, 3) RGB, its shape first."""
    return sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def held_out_name(file_sha256: str, pixels: np.ndarray) -> str | None:
    """Which photograph of the evaluation set this is, or None. pixels: uint8 (H, W, 3) RGB at the file's own size."""
    return _known().get(file_sha256) or _known().get(pixels_sha256(pixels))
