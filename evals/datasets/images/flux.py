"""FLUX-5K: 5,000 images that FLUX.1-dev made of a file of prompts; evals/datasets/images/make_flux.py makes them.

The paper's prompts and seeds are not published. A folder made here says what it was made with: flux.json (settings
and the sha256 of the prompts) and manifest.jsonl (a line an image: prompt, seed, sha256 of the file).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from evals.datasets.base import DataError
from evals.datasets.images.paper import PaperDataset, is_image

IMAGES = 5_000
SETTINGS = "flux.json"
MANIFEST = "manifest.jsonl"
_STEM = re.compile(r"\d{5}")


@dataclass(frozen=True)
class Made:
    """An image that was made. index: of the prompt, from 0; file: below the folder; seed: of the noise; sha256: hex,
    of the file."""

    index: int
    file: str
    prompt: str
    seed: int
    sha256: str


def read_manifest(folder: Path) -> list[Made]:
    """The images that are recorded, by index; a last line that was cut off is left out. Raises DataError."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")[:-1]  # what follows the last line's end was never finished
    try:
        made = {m.index: m for m in (Made(**json.loads(line)) for line in lines)}
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no manifest of make-flux ({type(error).__name__}: {error})") from error
    return [made[i] for i in sorted(made)]


def manifest_line(made: Made) -> str:
    """The line that records an image."""
    return json.dumps(asdict(made), ensure_ascii=False) + "\n"


class Flux5K(PaperDataset):
    """Images made by FLUX.1-dev."""

    name = "flux-5k"
    expected = IMAGES
    summary = "5,000 images made by FLUX.1-dev: the folder that `python -m evals data make-flux` writes"
    obtain = (
        "Make it: `python -m evals data make-flux prompts=FILE out=DIR` (a GPU with 40 GB, and the weights of "
        "FLUX.1-dev)"
    )
    archives = ("flux-5k.zip",)

    @staticmethod
    def item_id(name: str) -> str | None:
        """ "00017.png" to "00017"; None for any other name."""
        stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return stem if _STEM.fullmatch(stem) and is_image(name) else None

    @classmethod
    def notes_of(cls, root: Path) -> list[str]:
        path = root / SETTINGS
        if not path.is_file():
            return [f"no {SETTINGS} beside the images: how they were made is not known"]
        try:
            settings = json.loads(path.read_bytes())
            return [f"made by {settings['repository']} at revision {settings['revision']}, {settings['steps']} steps, "
                    f"guidance {settings['guidance']}, prompts sha256 {settings['prompts_sha256'][:12]}"]  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no settings file of make-flux ({type(error).__name__}: {error})") from error

    @classmethod
    def hashes(cls, root: Path) -> dict[str, str]:
        return {f"{made.index:05d}": made.sha256 for made in read_manifest(root)}
