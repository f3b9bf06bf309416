"""Counterfactual controls: known harm that is done to images, to which a metric must react or say that it is blind.

A column names what it is blind to (`Column.blind_to`). The reaction to a control is how far the figure gets worse from
that of untouched images, as a share of the reaction to the strongest control on single images (wrong pairs, `shuffled`,
would dwarf the others). A column that sees a control reacts by SEEN at least, one that is blind to it by BLIND at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.metrics.base import Column

SHUFFLED = "shuffled"
SEEN, BLIND = 0.05, 0.1


@dataclass(frozen=True)
class Control:
    """summary: what is done; harm: uint8 (B, 3, H, W) to the same."""

    summary: str
    harm: Callable[[Tensor], Tensor]


def shuffled(images: Tensor) -> Tensor:
    """Each image stands in the place of the next: every pair is wrong, the set is the same."""
    return images.roll(1, 0)


def cast(images: Tensor) -> Tensor:
    """A warm cast of about the same lightness: 16 more of red, 4 less of green, 16 less of blue, of 255."""
    return _bytes(images.float() + torch.tensor([16.0, -4.0, -16.0], device=images.device)[:, None, None])


def brighter(images: Tensor) -> Tensor:
    """12 more of 255 in all channels."""
    return _bytes(images.float() + 12)


def blur(images: Tensor) -> Tensor:
    """Gaussian, sigma 1.5 pixels, 9 taps; borders are repeated."""
    taps = torch.exp(-((torch.arange(9.0, device=images.device) - 4) ** 2) / (2 * 1.5**2))
    taps = (taps / taps.sum()).expand(3, 1, 1, 9)
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="replicate")
    return _bytes(F.conv2d(F.conv2d(padded, taps, groups=3), taps.transpose(2, 3), groups=3))


def shift(images: Tensor) -> Tensor:
    """One pixel to the right; the left column is repeated."""
    return torch.cat([images[..., :1], images[..., :-1]], dim=-1)


def banding(images: Tensor) -> Tensor:
    """8 bits a pixel: 3 of red, 3 of green, 2 of blue, each value in the middle of its band."""
    bands = torch.tensor([32, 32, 64], device=images.device)[:, None, None]
    return _bytes((images.int() // bands * bands + bands / 2 - 0.5).float())


CONTROLS: Mapping[str, Control] = {
    SHUFFLED: Control("each image in the place of the next one", shuffled),
    "cast": Control("a warm cast: +16 red, -4 green, -16 blue, of 255", cast),
    "brighter": Control("+12 of 255 in all channels", brighter),
    "blur": Control("Gaussian blur, sigma 1.5 pixels", blur),
    "shift": Control("one pixel to the right", shift),
    "banding": Control("8 bits a pixel: 3 of red, 3 of green, 2 of blue", banding),
}


def reactions(column: Column, untouched: float, harmed: Mapping[str, float]) -> dict[str, float]:
    """By control, the reaction of a column as a share of that to the strongest one of single images, negative where the
    figure gets better. untouched: the figure of images against themselves; harmed: by control.

    Of PSNR, infinite for untouched images, any finite figure is the strongest reaction.
    """
    if column.better is None:
        raise ValueError(f"{column.name} has no direction, so no figure of it is worse")
    if math.isinf(untouched):
        return {name: float(math.isfinite(value)) for name, value in harmed.items()}
    sign = -1 if column.better == "higher" else 1

    def bad(value: float) -> float:
        return abs(value) if column.better == "zero" else sign * value

    worse = {name: bad(value) - bad(untouched) for name, value in harmed.items()}
    most = max(value for name, value in worse.items() if name != SHUFFLED)
    return {name: value / most if most > 0 else 0.0 for name, value in worse.items()}


def faults(column: Column, found: Mapping[str, float]) -> list[str]:
    """Where a column's reactions are not what it declares, a line each."""
    lines = [
        f"{column.name} says that it is blind to {name}: not a control" for name in set(column.blind_to) - set(found)
    ]
    for name, share in found.items():
        if name in column.blind_to and abs(share) > BLIND:
            lines.append(f"{column.name} says that it is blind to {name}, and reacts by {share:.3f} of its strongest")
        if name not in column.blind_to and share < SEEN:
            lines.append(f"{column.name} should see {name}, and reacts by {share:.3f} of its strongest")
    return lines


def _bytes(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255).byte()
