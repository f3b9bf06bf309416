"""What several tests share: a third-party package on the path, pictures in a folder, the tables of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parent.parent

# A tokenizer that is fast and whose ids and noise are checkable; tests derive broken ones from it.
TOY = """
import torch
import torch.nn.functional as F
from lactok.interface import Tokenizer, TokenizerInfo, Tokens


class Toy(Tokenizer):
    noise = False

    @property
    def info(self):
        return TokenizerInfo("toy", tokens_per_image=64, codebook_size=256, input_size=64, output_size=64,
                             deterministic=not self.noise)

    def encode(self, images):
        return Tokens((F.adaptive_avg_pool2d(images.mean(1), 8) * 255).round().long().flatten(1))

    def decode(self, encoded, seeds):
        grey = (encoded.ids.view(-1, 1, 8, 8).float() / 255).expand(-1, 3, 8, 8)
        images = F.interpolate(grey, size=64, mode="bilinear")
        if self.noise:
            draws = [torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds]
            images = images + 0.1 * (torch.stack(draws) - 0.5)
        return images
"""


def install_plugin(
    folder: Path, module: str, source: str, names: dict[str, str], group: str = "tokenizers", **groups: dict[str, str]
) -> Path:
    """A third-party package as pip would lay it out: a module and its dist-info. names: entry name to attribute, of
    `group`; groups: the same of other groups (generators={...}, metrics={...})."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = []
    for kind, entries in {group: names, **groups}.items():
        lines += [f"[lactok.{kind}]", *(f"{name} = {module}:{attribute}" for name, attribute in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def pictures(folder: Path, count: int = 4) -> Path:
    """`count` real photographs as PNG files: cuts of scikit-image's coffee cup and cat."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = (data.coffee(), data.chelsea())
    for i in range(count):
        x, y = (37 * i) % 250, (23 * i) % 140
        Image.fromarray(sources[i % 2][y : y + 150, x : x + 190]).save(folder / f"picture {i:02}.png")
    return folder


def environment(*plugins: Path) -> dict[str, str]:
    """The environment of a command with third-party packages, on one thread."""
    path = os.pathsep.join([*map(str, plugins), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def the_run(out: Path) -> Path:
    """The folder of the only run in a store."""
    (folder,) = (out / "runs").iterdir()
    return folder


def table(out: Path) -> pd.DataFrame:
    """table.csv of the only run in a store, by row."""
    return pd.read_csv(the_run(out) / "table.csv", index_col=0)
