"""HART's transformer: text states, then token maps of growing size, each predicted at once from the coarser ones.

Names are the published ones, so that a checkpoint loads as it is. Facts from the published hart_transformer_t2i.py and
basic_hart.py. The context takes the place of the first map: its last position predicts the 1x1 token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.generators.hart.config import TransformerConfig

_ROPE_BASE = 10000.0
_FREQUENCIES = 256  # of a sinusoidal embedding
_MAX_SCALE = math.log(100)  # of the learned scale of normalised queries, a logarithm
_FFN_EPS = 1e-6  # of the residual head's layer norms


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, cast to x's dtype, then times the weight in that dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width)."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return scaled.to(x.dtype) * self.weight.to(x.dtype)


class SinusoidEmbedding(nn.Module):
    """Numbers (N,) to (N, width): 256 cosines and sines, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: Tensor) -> Tensor:
        """numbers: (N,), of any dtype."""
        half = _FREQUENCIES // 2
        places = torch.arange(half, dtype=torch.float32, device=numbers.device)
        angles = numbers[:, None].float() * torch.exp(-math.log(10000) * places / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines (R, 1, L, head_dim) by which queries and keys of L positions are turned."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


def context_rotary(positions: Tensor, head_dim: int) -> Rotary:
    """Of text positions (R, L), in one dimension."""
    places = torch.arange(0, head_dim, 2, device=positions.device).float()
    angles = positions[..., None].float() / _ROPE_BASE ** (places / head_dim)
    return _rotary(torch.cat([angles, angles], -1))


def map_rotary(side: int, largest: int, last_position: Tensor, head_dim: int) -> Rotary:
    """Of a map of side x side: row and column, in units of the largest map, after the last text position (R,).

    The row's angles fill the first half of a head, the column's the second; since a rotation pairs element k with
    k + head_dim / 2, it mixes both angles. The checkpoint was trained so.
    """
    index = torch.arange(side, device=last_position.device) / side * largest
    cells = torch.stack(torch.meshgrid(index, index, indexing="ij"), -1).reshape(-1, 2)  # (L, 2)
    coordinates = cells + last_position[:, None, None]
    places = torch.arange(0, head_dim, 4, device=cells.device).float()
    angles = coordinates[..., None].float() / _ROPE_BASE ** (places / head_dim)  # (R, L, 2, head_dim / 4)
    return _rotary(torch.cat([angles, angles], -1).flatten(2))


def _rotary(angles: Tensor) -> Rotary:
    return Rotary(angles.cos()[:, None], angles.sin()[:, None])


Cache = list[tuple[Tensor, Tensor] | None]
"""Keys and values of all earlier positions, a pair a block; None before the first call."""


class Attention(nn.Module):
    """Attention of new positions to all earlier ones and each other, without a mask; keys have no bias."""

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.heads = config.embed_dim, config.num_heads
        self.qkv_proj, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale, self.normalised = 0.25 / math.sqrt(config.head_dim), config.attn_l2_norm
        if self.normalised:
            self.scale = 1.0
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))

    def forward(self, x: Tensor, rotary: Rotary, cache: Cache, block: int) -> Tensor:
        """x (R, L, width); cache[block] is extended by the L positions."""
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv_proj.weight, bias).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.normalised:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp(max=_MAX_SCALE).exp()
            k = F.normalize(k, dim=-1)
        q, k = rotary(q).to(v.dtype), rotary(k).to(v.dtype)
        if (earlier := cache[block]) is not None:
            k, v = torch.cat([earlier[0], k], 2), torch.cat([earlier[1], v], 2)
        cache[block] = k, v
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """The feed-forward network of LLaMA."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class FeedForward(nn.Module):
    """The feed-forward network of GPT-2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward network behind one norm that both share, adaptive or not."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, hidden = config.embed_dim, config.feed_forward
        self.attn = Attention(config)
        gated = config.mlp_type == "llama"
        self.ffn: nn.Module = GatedFeedForward(width, hidden) if gated else FeedForward(width, hidden)
        self.ln_wo_grad = RMSNorm(width, config.norm_eps)
        self.adaptive, self.table = not config.disable_aln, config.disable_aln and config.shared_aln
        if self.adaptive:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        elif self.table:
            self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, pooled: Tensor, rotary: Rotary, cache: Cache, block: int) -> Tensor:
        """x (R, L, width); pooled: (R, width), the condition of an adaptive norm."""
        if self.adaptive:
            modulation = self.ada_lin(pooled).unflatten(1, (6, -1))
        elif self.table:
            modulation = self.scale_shift_table + pooled[:, None]
        else:
            x = x + self.attn(self.ln_wo_grad(x), rotary, cache, block)
            return x + self.ffn(self.ln_wo_grad(x))
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation[:, :, None].unbind(1)
        x = x + self.attn(self.ln_wo_grad(x) * (scale1 + 1) + shift1, rotary, cache, block) * gate1
        return x + self.ffn(self.ln_wo_grad(x) * (scale2 + 1) + shift2) * gate2


class HeadNorm(nn.Module):
    """The norm before the head, always adaptive."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.ln_wo_grad = RMSNorm(width, eps)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (R, L, width); condition (R, width)."""
        scale, shift = self.ada_lin(condition).unflatten(1, (2, 1, -1)).unbind(1)
        return self.ln_wo_grad(x) * (scale + 1) + shift


class ResidualBlock(nn.Module):
    """A block of the residual head: an MLP behind an adaptive layer norm, gated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=_FFN_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x and condition (N, width)."""
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, -1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    """The residual head's last layer, behind an adaptive layer norm without weights."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_FFN_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x and condition (N, width), to (N, channels)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, -1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class ResidualHead(nn.Module):
    """The small diffusion network: noise in a token's residual, and its variance, from the transformer's state."""

    def __init__(self, config: TransformerConfig, channels: int) -> None:
        super().__init__()
        width = config.diff_width
        self.time_embed = SinusoidEmbedding(width)
        self.cond_embed = nn.Linear(config.embed_dim, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.diff_depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def forward(self, x: Tensor, timestep: int, condition: Tensor) -> Tensor:
        """Noisy residuals (N, channels) and conditions (N, embed_dim) to (N, 2 channels): noise, then variance."""
        x = self.input_proj(x)
        time = self.time_embed(torch.full((1,), timestep, device=x.device))
        condition = time + self.cond_embed(condition)
        for block in self.res_blocks:
            x = block(x, condition)
        return self.final_layer(x, condition)


class HartTransformer(nn.Module):
    """The transformer with its heads. channels: of the tokenizer's latents; codes: how many it has."""

    def __init__(self, config: TransformerConfig, channels: int, codes: int) -> None:
        super().__init__()
        self.config, width, eps = config, config.embed_dim, config.norm_eps
        self.word_embed = nn.Linear(channels, width)
        self.context_norm = RMSNorm(config.context_dim, eps) if config.use_context_norm else nn.Identity()
        self.context_embed = nn.Linear(config.context_dim, width)
        levels = len(config.patch_nums)
        self.lvl_embed: nn.Module = (
            SinusoidEmbedding(width) if config.use_timestep_embed else nn.Embedding(levels, width)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm, self.head = HeadNorm(width, eps), nn.Linear(width, codes)
        self.decoder_norm = RMSNorm(width, eps)
        self.residual_head = ResidualHead(config, channels)

    def embedded_context(self, context: Tensor) -> Tensor:
        """Text states (R, T, context_dim) to (R, T, width); zeros are the unconditional ones."""
        return self.context_embed(self.context_norm(context))

    def level(self, scale: int) -> Tensor:
        """What is added to all inputs of a scale, (1, 1, width); 0 is the context's."""
        return self.lvl_embed(torch.tensor([scale], device=self.head.weight.device))[None]

    def pooled(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """The condition (R, width) of the blocks' adaptive norms. mask: (R, T), true where text is."""
        config = self.config
        averaged = config.sep_aln_pooling_mode == "avg" if not config.disable_aln else config.shared_aln
        if not averaged:
            return embedded.amax(1)
        weights = mask[..., None].to(embedded.dtype)
        return (embedded * weights / mask.sum(1).clamp(min=1)[:, None, None]).sum(1)

    def hidden(self, x: Tensor, pooled: Tensor, rotary: Rotary, cache: Cache) -> Tensor:
        """Inputs (R, L, width) of new positions to their states, before any head."""
        rotary = Rotary(rotary.cos.to(x.dtype), rotary.sin.to(x.dtype))
        for place, block in enumerate(self.blocks):
            x = block(x, pooled, rotary, cache, place)
        return x

    def logits(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """States (R, L, width) to float32 logits (R, L, codes); the norm's condition is the context's maximum, padding
        included."""
        return self.head(self.head_nm(hidden.float(), embedded.amax(1)).float()).float()
