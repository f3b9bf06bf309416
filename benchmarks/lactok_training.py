"""How long an optimizer step of LacTok's training takes at paper scale, and what it uses of the device.

    python benchmarks/lactok_training.py                                   all stages, 512 and 1024 pixels; needs CUDA
    python benchmarks/lactok_training.py --stages diffusion --sizes 1024   the paper's stage 1 alone
    python benchmarks/lactok_training.py --quick                           miniatures on the CPU: shows that it works

Stages: diffusion is equation 4, hypersd and tlcm are equation 6 with that accelerator. Each is the recipe of
`python -m lactok.train ... scale=paper` with its preset's precision (bf16 autocast), gradient checkpointing, AdamW and
averaged weights. What differs: weights are drawn, not read (the time is the same), images are noise that lies on the
device already, the batch is one image, and the encoder always sees the middle one of its three sizes.

    s/step        median over calls: forward, backward, clipping, optimizer and average
    TFLOPs/step   matrix products, convolutions and attention as they run on CUDA, what is computed again on the way
                  back included; counted on the meta device, as `dry_run=true` does; a multiply-add is two
    share         TFLOPs/step / s/step / matrix rate, which is that of benchmarks/tokenizers.py
    peak memory   torch.cuda.max_memory_allocated of a step, weights, gradients and AdamW's moments in it

Exits 2 without a CUDA device, 1 when a step that was asked for does not fit its memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the repository, not this folder, where `tokenizers` is a file and not the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.tokenizers import Settings, call_times, gib, machine, matrix_rate, names, peak_bytes
from lactok.train.config import TrainConfig, compose_config
from lactok.train.dry_run import plan
from lactok.train.loop import learning_rate
from lactok.train.recipe import Batch, Recipe

STAGES = {
    "diffusion": ("recipe=diffusion",),
    "hypersd": ("recipe=pixel", "accelerator=hypersd"),
    "tlcm": ("recipe=pixel", "accelerator=tlcm"),
}
"""Name to what chooses it on the trainer's command line."""
SIZES, QUICK_SIZES = ("512", "1024"), ("64",)
ENCODER_SIZE, QUICK_ENCODER_SIZE = 256, 64
WARM_UP = 2
"""Steps before the clock runs: the first makes AdamW's moments."""


@dataclass(frozen=True)
class Row:
    """One stage on target images of `side` pixels; batch: of them in a step; steps: how many were timed."""

    stage: str
    side: int
    batch: int
    steps: int
    seconds_per_step: float
    images_per_second: float
    flops_per_step: int
    share: float
    peak_bytes: int | None
    loss: float


def stage_config(stage: str, side: int, quick: bool) -> tuple[TrainConfig, type[Recipe]]:
    """The preset of a stage with images of one size, one a step; reads no data and looks for none."""
    scale, encoder = ("mini", QUICK_ENCODER_SIZE) if quick else ("paper", ENCODER_SIZE)
    sizes = f"options.picture_sizes=[{side}]", f"options.encoder_sizes=[{encoder}]"
    return compose_config([*STAGES[stage], f"scale={scale}", "batch_size=1", "dry_run=true", *sizes])


def build(config: TrainConfig, recipe_class: type[Recipe], device: torch.device) -> Recipe:
    """The recipe with drawn weights in place of all checkpoints, which are not looked for."""
    with torch.device("meta"):
        recipe = recipe_class(config.options, config.steps, config.seed)
    draw_weights(recipe, device)
    recipe.to(device, memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        recipe.checkpoint_activations()
    return recipe.train()


@torch.no_grad()
def draw_weights(network: nn.Module, device: torch.device, seed: int = 0) -> None:
    """Give what lies on the meta device values by `seed`, in seconds where the device is a GPU.

    Scaled as in lactok/seeded.py, so that activations neither vanish nor overflow: kernels by 1 / sqrt(fan in), a
    norm's scale and a running variance near 1, other vectors near 0. Integers are zero.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def drawn(name: str, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype, device=device)
        values = torch.empty(like.shape, dtype=like.dtype, device=device).normal_(generator=generator)
        if like.ndim >= 2:
            return values.mul_(1 / math.sqrt(math.prod(like.shape[1:])))
        return values.mul_(0.05).add_(float(name in ("weight", "running_var")))

    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(drawn(name, parameter), requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, drawn(name, buffer))


class Step:
    """An optimizer step as the loop takes it (lactok/train/loop.py), again and again on one image.

    loss: of the last one taken.
    """

    def __init__(self, config: TrainConfig, recipe: Recipe, side: int, device: torch.device) -> None:
        self.config, self.recipe, self.device, optimizer = config, recipe, device, config.optimizer
        self.trained = [p for p in recipe.parameters() if p.requires_grad]
        betas = optimizer.beta1, optimizer.beta2
        rate = learning_rate(optimizer, 0, config.steps)
        self.optimizer = torch.optim.AdamW(self.trained, rate, betas, weight_decay=optimizer.weight_decay)
        self.average = AveragedModel(
            nn.ParameterList(self.trained), multi_avg_fn=get_ema_multi_avg_fn(optimizer.ema_decay)
        )
        images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.batch = Batch(images.to(device), (0,), 0)
        self.loss = math.nan

    def __call__(self) -> None:
        """Take one; ends with the loss on the CPU, as the loop looks at whether it is finite."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self.recipe(self.batch)
        self.loss = losses.total.item()
        losses.total.backward()
        nn.utils.clip_grad_norm_(self.trained, self.config.optimizer.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.recipe.after_step(0)
        self.average.update_parameters(nn.ParameterList(self.trained))


def measure(stage: str, side: int, settings: Settings, rate: float) -> Row:
    """Raises torch's OutOfMemoryError where a step does not fit."""
    config, recipe_class = stage_config(stage, side, settings.quick)
    (phase,) = plan(config, recipe_class).phases
    step = Step(config, build(config, recipe_class, settings.device), side, settings.device)
    for _ in range(WARM_UP):
        step()
    times = call_times(step, settings.device, settings.seconds)
    peak = peak_bytes(step, settings.device)
    seconds, flops = statistics.median(times), phase.cost.flops
    return Row(stage, side, 1, len(times), seconds, 1 / seconds, flops, flops / seconds / rate, peak, step.loss)


def show(console: Console, facts: dict[str, object], rows: Sequence[Row]) -> None:
    packages = facts["packages"]
    console.print(
        f"{facts['device']}; torch {packages['torch']}, diffusers {packages['diffusers']}; {facts['precision']}, "
        f"matrix rate {facts['matrix_flops_per_second'] / 1e12:.4g} TFLOP/s"
        + ("; miniatures: the figures mean nothing" if facts["quick"] else ""),
        soft_wrap=True,
    )
    table = Table("stage", "side", "steps", "s/step", "images/s", "TFLOPs/step", "share", "GiB")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        speed = f"{row.seconds_per_step:.4g}", f"{row.images_per_second:.4g}", f"{row.flops_per_step / 1e12:.4g}"
        counts = str(row.side), str(row.steps)
        table.add_row(row.stage, *counts, *speed, f"{row.share:.1%}", gib(row.peak_bytes))
    console.print(table)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=names(list(STAGES)), default=list(STAGES), help=f"of {', '.join(STAGES)}")
    parser.add_argument(
        "--sizes", type=names(SIZES), default=list(SIZES), help="pixels of a side [512,1024]; 64 if quick"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each is timed [30]")
    parser.add_argument("--quick", action="store_true", help="miniatures on the CPU, 64 pixels, one step each")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures here too")
    args = parser.parse_args(argv)
    if not args.quick and not torch.cuda.is_available():
        print(
            f"error: a CUDA device is missing: torch {torch.__version__} sees none here, and networks of this size "
            "train on a GPU only (of 80 GB; `python -m lactok.train recipe=diffusion scale=paper batch_size=1 "
            "dry_run=true` counts it). Run this there, or add --quick for miniatures on the CPU",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cpu" if args.quick else "cuda")
    precision = stage_config(args.stages[0], 1024, args.quick)[0].precision  # one and the same of all stages
    seconds = 0.0 if args.quick else args.seconds
    settings = Settings(device, precision, compile=False, quick=args.quick, seconds=seconds)
    console, rate = Console(), matrix_rate(settings)
    facts, rows, failures = machine(settings, rate), [], {}
    for stage in args.stages:
        for side in map(int, QUICK_SIZES if args.quick else args.sizes):
            try:
                rows.append(measure(stage, side, settings, rate))
            except torch.OutOfMemoryError as error:
                failures[f"{stage} {side}"] = str(error).splitlines()[0]
            gc.collect()  # its networks, before the next ones are built
            if device.type == "cuda":
                torch.cuda.empty_cache()
            rate = max(rate, matrix_rate(settings))
    facts["matrix_flops_per_second"] = rate
    rows = [dataclasses.replace(row, share=row.flops_per_step / row.seconds_per_step / rate) for row in rows]
    show(console, facts, rows)
    for name, reason in failures.items():
        console.print(f"{name}: NOT MEASURED: {reason}", soft_wrap=True)
    if args.json:
        record = {"machine": facts, "rows": [dataclasses.asdict(row) for row in rows], "not_measured": failures}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
