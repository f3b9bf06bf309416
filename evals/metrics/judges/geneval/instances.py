"""From the detector's raw logits to instances, as mmdetection's Mask2Former does it.

transformers has instance post-processing of its own, which is another: it resizes all masks to 384x384, rounds scores,
and gives no boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

MAX_INSTANCES = 100
"""Best (query, class) pairs of an image (mmdetection's test_cfg.max_per_image of this model)."""
EPSILON = 1e-6
"""In the divisor of a mask's mean, as in mmdetection."""


@dataclass(frozen=True)
class Instances:
    """N instances of an image, best score first.

    labels: int64 (N,); scores: float32 (N,) in [0, 1], the class's probability times the mean of the mask's sigmoid
    inside; boxes: float32 (N, 4), x0, y0, x1, y1 around the mask, x1 and y1 one past its last pixel, zeros where it is
    empty; masks: bool (N, H, W).
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded: tuple[int, int],
    inside: tuple[int, int],
    original: tuple[int, int],
    most: int = MAX_INSTANCES,
    above: float = -1.0,
) -> Instances:
    """The `most` best pairs of a query and a class of one image; a query may be in several.

    class_logits: (Q, classes + 1), the last for no object. mask_logits: (Q, h, w). Sizes are (height, width): of the
    network's padded input, of the image in its upper left corner, of the image as it was. above: pairs whose
    probability is no more are left out before masks are made; no score exceeds its pair's probability, so that those
    with a score above it are all there.
    """
    classes = class_logits.shape[-1] - 1
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1].flatten()
    values, pairs = probabilities.topk(min(most, len(probabilities)), sorted=False)
    values, pairs = values[values > above], pairs[values > above]
    queries, of_pair = (pairs // classes).unique(return_inverse=True)
    if not len(queries):
        device = class_logits.device
        empty = torch.zeros(0, *original, dtype=torch.bool, device=device)
        return Instances(pairs, values, torch.zeros(0, 4, device=device), empty)
    logits = _resized(_resized(mask_logits[queries].float(), padded)[:, : inside[0], : inside[1]], original)
    masks = logits > 0
    counts = masks.flatten(1).sum(dim=1)
    means = (logits.sigmoid() * masks).flatten(1).sum(dim=1) / (counts + EPSILON)
    scores = values * means[of_pair]
    order = scores.argsort(descending=True, stable=True)
    of_pair = of_pair[order]
    return Instances(pairs[order] % classes, scores[order], _boxes(masks)[of_pair], masks[of_pair])


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _boxes(masks: Tensor) -> Tensor:
    """float32 (N, 4) of bool (N, H, W)."""
    ends = []
    for filled in (masks.any(dim=1), masks.any(dim=2)):  # (N, W), (N, H)
        places = torch.arange(filled.shape[1], device=masks.device)
        first = torch.where(filled, places, filled.shape[1]).amin(dim=1)
        last = torch.where(filled, places, -1).amax(dim=1) + 1
        ends += [first, last]
    x0, x1, y0, y1 = ends
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return torch.where(masks.flatten(1).any(dim=1)[:, None], boxes, 0.0)
