"""Optimizer steps of the miniatures' recipes on the CPU: images/s in float32 and in what `precision=auto` chooses.

Each recipe runs by its preset on cuts of bundled photographs; nothing is kept. Float32 in contiguous memory
and the trainer's own step (channels-last, bfloat16 autocast where this CPU multiplies it) alternate, so that what else
the machine does falls on both; the ratio is of the medians.

    python benchmarks/mini_steps.py
    python benchmarks/mini_steps.py --recipes vq,pixel-hypersd --seconds 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # as a script: the repository's root is not on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F

from benchmarks.measuring import call_times, describe_device
from benchmarks.training_steps import Step
from lactok.train.config import compose_config
from lactok.train.precision import resolve
from lactok.train.recipe import Batch

VGG = ("options.perceptual_network=lpips-vgg",)
RECIPES: dict[str, tuple[str, ...]] = {
    "vae": ("recipe=vae", *VGG),
    "vq": ("recipe=vq", *VGG),
    "vq-effnet": ("recipe=vq",),
    "titok": ("recipe=titok", *VGG),
    "flextok": ("recipe=flextok",),
    "seed": ("recipe=seed",),
    "ldm": ("recipe=ldm",),
    "accelerator-hypersd": ("recipe=accelerator", "accelerator=hypersd"),
    "diffusion": ("recipe=diffusion",),
    "pixel-hypersd": ("recipe=pixel", "accelerator=hypersd", *VGG),
    "pixel-tlcm": ("recipe=pixel", "accelerator=tlcm", *VGG),
}
"""Name to what chooses it on the trainer's command line; with LPIPS-vgg where what ships was trained on it."""
ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """images/s of one recipe: float32 in contiguous memory, and the trainer's step in `precision`."""

    recipe: str
    batch: int
    side: int
    plain: float
    ours: float

    def __str__(self) -> str:
        return (
            f"| `{self.recipe}` | {self.batch} of {self.side} | {self.plain:.1f} | {self.ours:.1f} "
            f"| {self.ours / self.plain:.2f} |"
        )


def tiles(count: int, side: int) -> torch.Tensor:
    """(count, 3, side, side) of the bundled photographs, in [0, 1]."""
    from skimage import data

    sources = [torch.from_numpy(photo()) for photo in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
    cut = [photo[y : y + 256, x : x + 256] for photo in sources for y in (0, 40) for x in (0, 100, 190)]
    images = torch.stack([cut[n % len(cut)] for n in range(count)]).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(images, (side, side), mode="area")


def step_of(arguments: Sequence[str], precision: str, memory_format: torch.memory_format) -> tuple[Step, int]:
    """A step of a recipe's preset, and the side of its images."""
    config, recipe_class = compose_config(
        [*arguments, "scale=mini", "data.root=none", "device=cpu", f"precision={precision}"]
    )
    recipe = recipe_class(config.options, config.steps, config.seed)
    recipe.to(memory_format=memory_format)
    side = recipe.image_size_at(config.steps - 1)
    step = Step(config, recipe.train(), side, torch.device("cpu"))
    images = tiles(config.batch_size, side).contiguous(memory_format=memory_format)
    step.batch = Batch(images, tuple(range(config.batch_size)), config.steps // 2)
    return step, side


def measure(name: str, arguments: Sequence[str], seconds: float) -> Row:
    """Rounds of both kinds in turn, each after a warm-up."""
    ways = (("fp32", torch.contiguous_format), (resolve("auto", "cpu"), torch.channels_last))
    steps = [step_of(arguments, *way) for way in ways]
    times: list[list[float]] = [[], []]
    for step, _ in steps:
        step()
    for _ in range(ROUNDS):
        for (step, _), found in zip(steps, times, strict=True):
            found += call_times(step, step.device, seconds / ROUNDS)
    (step, side), batch = steps[0], steps[0][0].config.batch_size
    plain, ours = (batch / statistics.median(found) for found in times)
    return Row(name, batch, side, plain, ours)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES), help=f"of {list(RECIPES)}")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long each kind of a recipe is timed [12]")
    parser.add_argument("--threads", type=int, default=1, help="of torch [1]")
    args = parser.parse_args(argv)
    names = args.recipes.split(",")
    if unknown := [name for name in names if name not in RECIPES]:
        parser.error(f"--recipes {', '.join(unknown)}: expected some of {', '.join(RECIPES)}")
    torch.set_num_threads(args.threads)
    print(f"{describe_device(torch.device('cpu'))}, torch {torch.__version__}\n")
    print(f"| recipe | batch, pixels | fp32, contiguous | {resolve('auto', 'cpu')}, channels-last | ratio |")
    print("|---|---|---|---|---|")
    for name in names:
        print(measure(name, RECIPES[name], args.seconds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
