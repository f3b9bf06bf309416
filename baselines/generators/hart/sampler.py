"""How HART makes an image: all tokens of a map at once, map by map, and residuals of the last map's tokens.

Guidance rises with the scale. Noise is handed in by a source, so that an image's result follows from its own seed
alone (`SeededNoise`). Facts from the published hart_transformer_t2i.py, `autoregressive_infer_cfg`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.generators.hart import diffusion
from baselines.generators.hart.tokenizer import HartTokenizer
from baselines.generators.hart.transformer import Cache, HartTransformer, context_rotary, map_rotary

TOP_K, TOP_K_LATE, LATE_SCALE = 600, 300, 7
"""How many codes may be drawn; from scale 7 on, TOP_K_LATE."""


@dataclass(frozen=True)
class Sampling:
    """How to sample; the defaults are the published sample.py's.

    guidance_scale: g of (1 + g s) conditional - g s unconditional, s rising from 0 at the first map to 1 (the last map
    keeps the s of the one before). more_smooth: maps before the sum are averages of codes under Gumbel noise, colder
    with each scale, instead of drawn codes. top_p: 0 means off.
    """

    guidance_scale: float = 4.5
    more_smooth: bool = True
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale {self.guidance_scale}: expected 0 (none) or more")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: expected 0 (off) to 1")


@dataclass(frozen=True)
class Context:
    """The text of B prompts. states: (B, T, context_dim); mask: bool (B, T), true where text is; positions: int64
    (B, T), -1 for padding on the left."""

    states: Tensor
    mask: Tensor
    positions: Tensor


class Noise(Protocol):
    """Where the noise comes from; each method is called once a scale or step, in order: ids, then smoothing."""

    def ids(self, scale: int, shape: tuple[int, int, int]) -> Tensor:
        """Exp(1) (B, n, codes), by which codes are drawn."""

    def smoothing(self, scale: int, shape: tuple[int, int, int]) -> Tensor:
        """Exp(1) (B, n, codes), for the Gumbel noise of smoothing."""

    def start(self, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal (B, n, channels), from which residuals start."""

    def step(self, step: int, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal (B, n, channels) of a diffusion step; (2 B, n, channels) where the unconditional half, which
        does not count, is to have its own."""


class SeededNoise:
    """Noise of which image i's follows from seeds[i] alone, drawn on the CPU: the same for every device and batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def ids(self, scale: int, shape: tuple[int, int, int]) -> Tensor:
        """See `Noise`."""
        return self._drawn(shape, lambda x, generator: x.exponential_(generator=generator))

    smoothing = ids

    def start(self, shape: tuple[int, int, int]) -> Tensor:
        """See `Noise`."""
        return self._drawn(shape, lambda x, generator: x.normal_(generator=generator))

    def step(self, step: int, shape: tuple[int, int, int]) -> Tensor:
        """See `Noise`."""
        return self.start(shape)

    def _drawn(self, shape: tuple[int, int, int], fill: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        rows = [fill(torch.empty(shape[1:]), generator) for generator in self.generators]
        return torch.stack(rows).to(self.device)


Observe = Callable[[str, Tensor], None]


def guided(both: Tensor, scale: float) -> Tensor:
    """(1 + scale) conditional - scale unconditional, the first and the second half of (2 B, ...)."""
    cond, uncond = both.chunk(2)
    return (1 + scale) * cond - scale * uncond


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (..., codes) with -inf for all codes but the top_k likeliest and those beyond the share top_p."""
    least = logits.topk(min(top_k, logits.shape[-1]), dim=-1)[0].amin(-1, keepdim=True)
    logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p > 0:
        rising, order = logits.sort(dim=-1)
        out = rising.softmax(-1).cumsum(-1) <= 1 - top_p
        out[..., -1:] = False
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    return logits


def generate(
    model: HartTransformer,
    tokenizer: HartTokenizer,
    context: Context,
    sampling: Sampling,
    noise: Noise,
    observe: Observe = lambda name, value: None,
    known: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Latents (B, C, h, h) of the prompts in `context`, for `HartTokenizer.decode`.

    observe: is given inner values by name as they are made. known: ids (B, n) of scales that are used in place of those
    drawn.
    """
    run = _Run(model, tokenizer, context, sampling, noise, observe, known or {})
    sides = model.config.patch_nums
    last = len(sides) - 1
    x = run.embedded + model.level(0)
    total = x.new_zeros(len(context.states), tokenizer.config.z_channels, sides[-1], sides[-1])
    for scale in range(last):
        _, maps, _ = run.tokens(x, scale, scale / last)
        added = tokenizer.contribution(maps, scale, len(sides), sides[-1])
        total = (total + added).to(total.dtype)
        following = F.interpolate(total, size=(sides[scale + 1],) * 2, mode="area")
        observe(f"scale{scale}_f_hat", total)
        observe(f"scale{scale}_next_map", following)
        x = model.word_embed(following.flatten(2).transpose(1, 2)) + model.level(scale + 1)
        x = x.repeat(2, 1, 1)
    ids, maps, hidden = run.tokens(x, last, (last - 1) / last)
    residuals = run.residuals(ids, hidden, sampling.guidance_scale * (last - 1) / last)
    return (total + maps + residuals.transpose(1, 2).unflatten(2, (sides[-1],) * 2)).to(total.dtype)


class _Run:
    """What all scales of one call share. Rows are the prompts, then as many without a prompt."""

    def __init__(
        self,
        model: HartTransformer,
        tokenizer: HartTokenizer,
        context: Context,
        sampling: Sampling,
        noise: Noise,
        observe: Observe,
        known: Mapping[int, Tensor],
    ) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.noise, self.observe, self.known = noise, observe, known
        zeros = torch.zeros_like(context.states)
        self.embedded = model.embedded_context(torch.cat([context.states, zeros]))
        self.positions = torch.cat([context.positions, torch.zeros_like(context.positions)])
        first = torch.zeros_like(context.mask)
        first[:, 0] = True  # so that an average over no text is that of one position
        self.pooled = model.pooled(self.embedded, torch.cat([context.mask, first]))
        self.cache: Cache = [None] * len(model.blocks)

    def tokens(self, x: Tensor, scale: int, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (2 B, L, width) of a scale to its ids (B, n), its map (B, C, side, side), its states (2 B, L, width).

        ratio: how far the scale is on the way to the last, from 0 to 1.
        """
        config, observe = self.model.config, self.observe
        if scale == 0:
            rotary = context_rotary(self.positions, config.head_dim)
        else:
            sides = config.patch_nums
            rotary = map_rotary(sides[scale], sides[-1], self.positions[:, -1], config.head_dim)
        hidden = self.model.hidden(x, self.pooled, rotary, self.cache)
        predicting = hidden[:, -1:] if scale == 0 else hidden
        raw = self.model.logits(predicting, self.embedded)
        logits = guided(raw, self.sampling.guidance_scale * ratio)
        observe(f"scale{scale}_hidden", hidden)
        observe(f"scale{scale}_logits", raw)
        observe(f"scale{scale}_guided_logits", logits)
        top_k = TOP_K if scale < LATE_SCALE else TOP_K_LATE
        logits = truncated(logits, top_k, self.sampling.top_p)
        shape = (logits.shape[0], logits.shape[1], logits.shape[2])
        ids = (logits.softmax(-1) / self.noise.ids(scale, shape)).argmax(-1)
        observe(f"scale{scale}_ids", ids)
        ids = self.known.get(scale, ids)
        vectors = self.tokenizer.embedding(ids)
        if self.sampling.more_smooth:
            gumbel = -self.noise.smoothing(scale, shape).log()
            temperature = max(0.27 * (1 - ratio * 0.95), 0.005)
            weights = ((logits * (1 + ratio) + gumbel) / temperature).softmax(-1)
            vectors = weights @ self.tokenizer.embedding.weight
        side = config.patch_nums[scale]
        maps = vectors.transpose(1, 2).unflatten(2, (side, side))
        observe(f"scale{scale}_h", maps)
        return ids, maps, hidden

    def residuals(self, ids: Tensor, hidden: Tensor, guidance: float) -> Tensor:
        """Residuals (B, n, C) of the last map's ids (B, n), from its states (2 B, n, width)."""
        tokenizer, observe = self.tokenizer, self.observe
        drawn = self.model.word_embed(tokenizer.embedding(ids)).repeat(2, 1, 1)
        condition = self.model.decoder_norm(hidden + drawn).flatten(0, 1)
        channels, (count, positions) = tokenizer.config.z_channels, ids.shape
        shape = (count, positions, channels)
        observe("diffusion_condition", condition)
        observe("diffusion_guidance", torch.tensor([guidance]))

        def predict(x: Tensor, timestep: int) -> Tensor:
            half = x[: len(x) // 2]
            observe("diffusion_x", half)
            out = self.model.residual_head(half.repeat(2, 1), timestep, condition)
            observe("diffusion_net_out", out)
            if guidance != 1:  # the published code takes 1 to mean none
                out = torch.cat([guided(out[:, :channels], guidance).repeat(2, 1), out[:, channels:]], 1)
            return out

        def step(index: int) -> Tensor:
            normal = self.noise.step(index, shape).flatten(0, 1)
            return normal if len(normal) == len(condition) else normal.repeat(2, 1)

        start = self.noise.start(shape).flatten(0, 1).repeat(2, 1)
        steps = diffusion.schedule(self.model.config.num_sampling_steps)
        observe("diffusion_timesteps", torch.tensor(steps.timesteps))
        sampled = diffusion.sample(predict, start, step, steps)
        observe("diffusion_sample", sampled)
        return sampled[: len(sampled) // 2].unflatten(0, (count, positions))
