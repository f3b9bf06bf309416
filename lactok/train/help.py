"""The text of `python -m lactok.train --help`; imports neither torch nor Hydra, so it comes at once."""

from __future__ import annotations

import dataclasses

from lactok.registry import entries
from lactok.train.chain import PARTS
from lactok.train.config import CHAIN, SCALES, loop_keys, preset_path

_TEXT = """\
Train a model of this project from a folder of images, or from tars of them.

    python -m lactok.train recipe=NAME data.root=DIR [scale=mini] [key=value ...]

The run lives in one folder (out=, by default runs/RECIPE-SCALE). The same command resumes where a run stopped or was
killed, with the same weights in the end as an uninterrupted one. In the folder:
    log.csv, validation.csv, log.png     losses and measurements, and their plot
    samples/step-*.png                   validation images: originals above reconstructions
    checkpoints/step-*                   the last two, to resume from
    RECIPE-SCALE.safetensors             averaged weights, written at every checkpoint and at the end

Recipes
{recipes}
    {chain:<14} all miniatures, each part a run of its own, in this order:
                   {parts}
                   in runs/{chain}/PART-mini (out= names another folder). Finished parts are left as they are, and
                   the same command resumes with the next. Keys hold for all parts; PART.key=value holds for one,
                   and accelerator.key=value or pixel.key=value for both of a kind. parts=[NAME,NAME] chooses: what a
                   part needs and is not chosen is the one that ships. jobs=N trains N parts at once, each as soon as
                   those that it needs are done; minutes=M gives each a window of so many minutes.

Keys (key=value, Hydra syntax; quote twice what holds spaces or '=': "data.root='/my images'")
{keys}
{presets}
Examples
    python -m lactok.train recipe=vq data.root=~/images
    python -m lactok.train recipe=vq data.root=~/images out=runs/try steps=200 optimizer.learning_rate=3e-4
    python -m lactok.train recipe=vq data.root=~/images stop_after_minutes=30 trackers=[tensorboard]
    python -m lactok.train recipe=vq data.root=~/images out=runs/muon optimizer.name=muon minutes=30
    python -m lactok.train recipe=vq 'data.root=[~/images,~/scenes]' 'data.weights=[0.85,0.15]' minutes=30
    python -m lactok.train recipe=vq "data.root='shards/{{00000..00009}}.tar'"
    python -m lactok.train recipe=mini-all data.root=~/images stop_after_minutes=60
    python -m lactok.train recipe=mini-all data.root=~/images jobs=3 minutes=8 steps=100000 device=cuda precision=bf16
    python -m lactok.train recipe=mini-all data.root=~/images out=runs/try steps=200 pixel.options.colour=0.5
    accelerate launch --num_processes 4 -m lactok.train recipe=vq data.root=~/images precision=bf16
    torchrun --nproc_per_node=4 -m lactok.train recipe=generator data.root=runs/tokens sharding=full precision=bf16
"""


def help_text() -> str:
    """Recipes, keys with defaults and units, the presets, and examples."""
    recipes = [f"    {e.name:<14} {e.target} ({e.distribution})" for e in entries("recipes").values()]
    keys = [f"    {name:<26} {_default(f):<8} {f.metadata['help']}" for name, f in loop_keys().items()]
    presets = [_preset(name, scale) for name in entries("recipes") for scale in SCALES]
    parts = ", ".join(part.name for part in PARTS)
    return _TEXT.format(
        chain=CHAIN,
        parts=parts,
        recipes="\n".join(recipes),
        keys="\n".join(keys),
        presets="\n".join(p for p in presets if p),
    )


def _default(key: dataclasses.Field) -> str:
    if key.default is dataclasses.MISSING:
        return "[]"
    return {None: "-", "": "-"}.get(key.default, str(key.default))


def _preset(recipe: str, scale: str) -> str:
    """The preset as it stands: its comments explain the recipe's own keys."""
    path = preset_path(recipe, scale)
    if not path.is_file():
        return ""
    body = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    return f"Defaults of recipe={recipe} scale={scale} (options.* are the recipe's own)\n" + "".join(
        f"    {line}\n" for line in body
    )
