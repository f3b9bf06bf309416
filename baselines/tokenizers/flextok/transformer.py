"""What both of FlexTok's trunks are made of: attention with normalised queries and keys, gated MLPs, adaLN, positions.

Nothing here has a bias but what makes the modulation. The published code packs a batch into one sequence with a block
mask; a normal batch gives the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.tokenizers.flextok.config import TransformerConfig

LOGIT_SCALE = 8
"""Attention logits are scaled by LOGIT_SCALE / head_dim, muP's choice, which is 1 / sqrt(head_dim) at 64 only."""

PERIOD = 10000.0
"""Of the slowest sin-cos position, times 2 pi."""


def norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension without scale and shift, computed in float32 (eps 1e-5)."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return x * (1 + scale) + shift


def sincos_positions(dim: int, side: int) -> Tensor:
    """(1, dim, side, side): quarters of the channels hold sin(a), cos(a), sin(b), cos(b); a the row, b the column.

    Frequency i of dim / 4 is PERIOD^(-i / (dim / 4)).
    """
    quarter = dim // 4
    angles = torch.arange(side, dtype=torch.float32)[:, None] * PERIOD ** -(
        torch.arange(quarter, dtype=torch.float32) / quarter
    )
    rows = angles[:, None].expand(side, side, quarter)
    columns = angles[None].expand(side, side, quarter)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], -1).permute(2, 0, 1)[None].contiguous()


def patchify(latents: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to patches (B, H / size x W / size, size x size x C): row by row; in each row, column, channel."""
    b, c, h, w = latents.shape
    cut = latents.reshape(b, c, h // size, size, w // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // size) * (w // size), size * size * c)


def unpatchify(patches: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify` for latents of height x width."""
    rows, columns = height // size, width // size
    cut = patches.reshape(len(patches), rows, columns, size, size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, height, width)


class Attention(nn.Module):
    """Self-attention whose queries and keys are normalised head by head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(config.dim, config.dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (B, N, dim); mask: bool (N, N), True where row may look at column."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(norm(q), norm(k), v, attn_mask=mask, scale=LOGIT_SCALE / self.head_dim)
        return self.to_out(out.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """fc2(SiLU(fc1 x) * fc3 x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.hidden, bias=False)
        self.fc2 = nn.Linear(config.hidden, config.dim, bias=False)
        self.fc3 = nn.Linear(config.dim, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(norm(x), mask)
        return x + self.mlp(norm(x))


class ModulatedBlock(nn.Module):
    """A pre-norm block under adaLN: the condition gives shift, scale and gate, one set for each kind of token."""

    KINDS = 2  # patches and registers

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.modulation = nn.Linear(config.dim, self.KINDS * 6 * config.dim)

    def forward(self, x: Tensor, condition: Tensor, kinds: Tensor) -> Tensor:
        """x: (B, N, dim); condition: (B or 1, dim), after its SiLU; kinds: int64 (N,), 0 for patches, 1 for registers.

        The six parts stand in the published order, which is not DiT's.
        """
        parts = self.modulation(condition).unflatten(-1, (self.KINDS, 6, -1))
        gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = (part[:, kinds] for part in parts.unbind(2))
        x = x + gate_attn * self.attn(modulate(norm(x), shift_attn, scale_attn))
        return x + gate_mlp * self.mlp(modulate(norm(x), shift_mlp, scale_mlp))
