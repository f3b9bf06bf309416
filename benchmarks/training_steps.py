"""An optimizer step of LacTok's training at paper scale: how long it takes, and what it uses of the device.

Stages: diffusion is equation 4, hypersd and tlcm are equation 6 with that accelerator. Each is the recipe of
`python -m lactok.train ... scale=paper` with its preset's precision (bf16 autocast), gradient checkpointing, AdamW and
averaged weights. What differs: weights are drawn, not read (the time is the same), images are noise that lies on the
device already, and the encoder always sees the middle one of its three sizes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.device_weights import draw_weights
from benchmarks.measuring import Settings, call_times, peak_bytes
from evals.engine.environment import CAST
from lactok.train.config import TrainConfig, compose_config
from lactok.train.dry_run import plan
from lactok.train.optimizer import build_optimizers
from lactok.train.recipe import Batch, Recipe
from lactok.train.schedule import learning_rate
from lactok.train.simulate import CudaKernels, recomputed_as_on_cuda

STAGES = {
    "diffusion": ("recipe=diffusion",),
    "hypersd": ("recipe=pixel", "accelerator=hypersd"),
    "tlcm": ("recipe=pixel", "accelerator=tlcm"),
}
"""Name to what chooses it on the trainer's command line."""
ENCODER_SIZE, QUICK_ENCODER_SIZE = 256, 64
WARM_UP = 2
"""Steps before the clock runs: the first makes AdamW's moments."""


@dataclass(frozen=True)
class Row:
    """One stage on target images of `side` pixels; batch: of them in a step; steps: how many were timed.

    seconds_per_step: median of forward, backward, clipping, optimizer and average. flops_per_step: matrix products,
    convolutions and attention as they run on CUDA, what is computed again on the way back included, counted on the
    meta device as `dry_run=true` does; a multiply-add is two. share: of the matrix rate. peak_bytes: most device memory
    allocated in a step, weights, gradients and AdamW's moments in it. loss: of the last step. parts: seconds of one
    more step by its parts, each ended by a synchronization, so that they don't overlap. checkpointing: whether
    activations are computed again in the backward pass (`gradient_checkpointing`).
    """

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
    parts: dict[str, float]
    checkpointing: bool


def stage_config(stage: str, side: int, quick: bool, batch: int = 1) -> tuple[TrainConfig, type[Recipe]]:
    """The preset of a stage with `batch` images of one size a step; reads no data and looks for none."""
    scale, encoder = ("mini", QUICK_ENCODER_SIZE) if quick else ("paper", ENCODER_SIZE)
    # the miniature's perceptual network comes in a package that a machine for this may lack; full size trains on LPIPS
    distance = ("options.perceptual=0", "options.pixel=1") if quick and stage != "diffusion" else ()
    sizes = f"options.picture_sizes=[{side}]", f"options.encoder_sizes=[{encoder}]"
    batch_size = f"batch_size={batch}"
    return compose_config([*STAGES[stage], f"scale={scale}", batch_size, "dry_run=true", *sizes, *distance])


def build(config: TrainConfig, recipe_class: type[Recipe], device: torch.device) -> Recipe:
    """The recipe with drawn weights in place of all checkpoints, which are not looked for."""
    with torch.device("meta"):
        recipe = recipe_class(config.options, config.steps, config.seed)
    draw_weights(recipe, device)
    recipe.to(device, memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        recipe.checkpoint_activations()
    return recipe.train()


class Step:
    """An optimizer step as the loop takes it (lactok/train/loop.py), again and again on the same images.

    loss: of the last one taken.
    """

    def __init__(self, config: TrainConfig, recipe: Recipe, side: int, device: torch.device) -> None:
        self.config, self.recipe, self.device, optimizer = config, recipe, device, config.optimizer
        self.trained = [p for p in recipe.parameters() if p.requires_grad]
        rate = learning_rate(optimizer, 0, config.steps)
        self.optimizers = build_optimizers(recipe, replace(optimizer, learning_rate=rate), device)
        self.average = AveragedModel(
            nn.ParameterList(self.trained), multi_avg_fn=get_ema_multi_avg_fn(optimizer.ema_decay)
        )
        images = torch.rand(config.batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.batch = Batch(images.to(device), tuple(range(config.batch_size)), 0)
        self.loss = math.nan

    def __call__(self, done: Callable[[str], object] = lambda part: None) -> None:
        """Take one; the loss comes to the CPU, as the loop looks at whether it is finite. done: told of each part."""
        for one in self.optimizers:
            one.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self.recipe(self.batch)
        self.loss = losses.total.item()
        done("forward")
        losses.total.backward()
        done("backward")
        nn.utils.clip_grad_norm_(self.trained, self.config.optimizer.clip_norm)
        done("clip")
        for one in self.optimizers:
            one.step()
        done("optimizer")
        with torch.no_grad():
            self.recipe.after_step(0)
        self.average.update_parameters(nn.ParameterList(self.trained))
        done("average")


def step_parts(step: Step) -> dict[str, float]:
    """Seconds of one step by its parts."""
    parts: dict[str, float] = {}
    since = time.perf_counter()

    def done(part: str) -> None:
        nonlocal since
        if step.device.type == "cuda":
            torch.cuda.synchronize(step.device)
        parts[part], since = time.perf_counter() - since, time.perf_counter()

    step(done)
    return parts


def measure_step(
    stage: str, side: int, settings: Settings, rate: float, batch: int = 1, checkpointing: bool | None = None
) -> Row:
    """checkpointing: None for the preset's. Raises torch's OutOfMemoryError where a step does not fit."""
    config, recipe_class = stage_config(stage, side, settings.quick, batch)
    if checkpointing is not None:
        config = dataclasses.replace(config, gradient_checkpointing=checkpointing)
    (phase,) = plan(config, recipe_class).phases
    step = Step(config, build(config, recipe_class, settings.device), side, settings.device)
    for _ in range(WARM_UP):
        step()
    times = call_times(step, settings.device, settings.seconds)
    seconds, flops = statistics.median(times), phase.cost.flops
    return Row(
        stage=stage,
        side=side,
        batch=batch,
        steps=len(times),
        seconds_per_step=seconds,
        images_per_second=batch / seconds,
        flops_per_step=flops,
        share=flops / seconds / rate,
        peak_bytes=peak_bytes(step, settings.device),
        parts=step_parts(step),
        loss=step.loss,
        checkpointing=config.gradient_checkpointing,
    )


VIEWS = frozenset(
    {
        *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "empty"),
        *("empty_like", "empty_strided", "expand", "new_empty", "new_empty_strided", "permute", "reshape"),
        *("select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose"),
        *("unbind", "unsqueeze", "view"),
    }
)
"""Operations that start no kernel."""


class Started(TorchDispatchMode):
    """Counts operations that start a kernel, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if (name := func._schema.name.removeprefix("aten::")) not in VIEWS:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Launches:
    """Operations of a step that start a kernel. casts: those of them that change a dtype."""

    forward: int
    backward: int
    casts: int


def launches(stage: str, side: int, batch: int = 1, checkpointing: bool = True, held: bool = False) -> Launches:
    """At paper scale, counted on the meta device, with autocast's bfloat16 as on CUDA; without optimizer and average.

    held: were the weights of the frozen UNet and autoencoder held in bfloat16.
    """
    config, recipe_class = stage_config(stage, side, quick=False, batch=batch)
    with torch.device("meta"):
        recipe = recipe_class(config.options, config.steps, config.seed)
    recipe.to("meta")
    for name in ("unet", "vae") if held else ():
        for module in recipe.frozen[name].modules():
            if isinstance(module, CAST):
                module.to(torch.bfloat16)
    if checkpointing:
        recipe.checkpoint_activations(recomputed_as_on_cuda(autocast=True))
    recipe.train()
    images = Batch(torch.empty(batch, 3, side, side, device="meta"), tuple(range(batch)), 0)
    forward, backward = Started(), Started()
    with forward, CudaKernels(autocast=True):
        loss = recipe(images).total
    with backward, CudaKernels(autocast=True):
        loss.backward()
    counts = [sum(mode.calls.values()) for mode in (forward, backward)]
    return Launches(*counts, sum(mode.calls["_to_copy"] for mode in (forward, backward)))
