"""Keeping a learned codebook in use while it trains, and how much of it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from torch import Tensor, nn

from lactok.data.batches import rng
from lactok.models.quantizer import VectorQuantizer

COLLAPSED = 3.0
"""Perplexity up to which a codebook that could do better has collapsed; ours that train hold tens to hundreds."""

REVIVAL = 11
"""RNG stream, lactok/data/batches.py, that picks the vectors onto which dead codes are moved."""


@dataclass
class RevivalOptions:
    """How dead codes come back.

    revive_every: steps between looks at the codebook; revive_until: share of the steps after which it is left alone;
    dead_below: a code is dead when it was used less than this share of the uniform use since the last look.
    """

    revive_every: int = 50
    revive_until: float = 0.8
    dead_below: float = 0.03

    def check_revival(self) -> None:
        """For a recipe's `__post_init__`. Raises ValueError."""
        if self.revive_every < 1:
            raise ValueError(f"revive_every={self.revive_every}: expected a whole number of at least 1")


class DeadCodes(nn.Module):
    """Counts how often each code is used, and moves those that fell out of use onto the encoder's vectors."""

    used: Tensor

    def __init__(self, codebook_size: int, options: RevivalOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("used", torch.zeros(codebook_size, dtype=torch.int64))
        self._vectors: Tensor | None = None  # the encoder's last ones, (M, D)

    @torch.no_grad()
    def note(self, ids: Tensor, pre_quant: Tensor) -> None:
        """Ids of any shape, and the vectors (B, D, h, w) of which they are the nearest codes."""
        self.used.scatter_add_(0, ids.flatten(), torch.ones_like(ids.flatten()))
        self._vectors = pre_quant.detach().float().permute(0, 2, 3, 1).flatten(0, 2)

    @torch.no_grad()
    def revive(self, quantizer: VectorQuantizer, seed: int, step: int, total_steps: int) -> None:
        """Every `revive_every` steps, move dead codes onto random vectors of the step's last micro-batch."""
        options, done = self.options, step + 1
        if done % options.revive_every or done > options.revive_until * total_steps:
            return
        dead = torch.nonzero(self.used < options.dead_below * self.used.float().mean()).flatten()
        weight, vectors = quantizer.embedding.weight, self._vectors
        assert vectors is not None, "revive() before any note(): the encoder's vectors are not known yet"
        order = rng(seed, REVIVAL, step).permutation(len(vectors))[: len(dead)]
        chosen = vectors[torch.from_numpy(order).to(weight.device)]
        if quantizer.l2_norm:
            chosen = F.normalize(chosen, dim=1)
        weight[dead[: len(chosen)]] = chosen.to(weight.dtype)
        broadcast(weight.data)  # ranks saw other images: all take what the first one made of its own
        self.used.zero_()


def codebook_statistics(ids: Tensor, codebook_size: int) -> dict[str, float]:
    """Share of the codebook that `ids` (any shape) use, and their perplexity (exp of the entropy)."""
    share = torch.bincount(ids.flatten(), minlength=codebook_size).double()
    share = share / share.sum()
    entropy = -(share[share > 0] * share[share > 0].log()).sum().item()
    return {"codebook_use": (share > 0).double().mean().item(), "codebook_perplexity": math.exp(entropy)}


def collapse_warning(step: int, values: Mapping[str, float]) -> str:
    """What to say of measurements, `codebook_statistics` among them, when the ids are one code or a few; else "".

    Nothing of step 0: an encoder that has not learned anything yet may give all images the same ids.
    """
    use, perplexity = values.get("codebook_use", 1.0), values.get("codebook_perplexity", math.inf)
    if step == 0 or perplexity > COLLAPSED or use > 0.5:
        return ""
    return (
        f"warning: the codebook has collapsed at step {step}: the ids of the validation images have a perplexity of "
        f"{perplexity:.3g} ({use:.2%} of the codes are used), expected more than {COLLAPSED:g}. "
        "If it stays so, start anew with another out= and a lower optimizer.learning_rate or a longer "
        "optimizer.warmup_steps; where the recipe has them, also with a smaller options.revive_every or a later "
        "options.quantize_from"
    )
