"""The autoregressive image model of LlamaGen (arXiv 2406.06525), from which LacTokGen starts: a Llama-like decoder.

Its sequence is a prefix (the L positions of a caption, or one of a class) and then the N ids of an image, row by row.
Names of modules are the published ones (FoundationVision/LlamaGen, autoregressive/models/gpt.py, of which the constants
here are, too). Generation from a cache is lactok/models/gpt_generation.py.

A prefix position has an all-zero row in the rotary table: its query and key are zero, not unrotated. Prefix positions
hence weigh each other alike, and an image id scores 0 with each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TEXT, CLASS = "t2i", "c2i"
"""What stands before the ids, by the published names: the states of a caption, or a class."""

SIZES: dict[str, dict[str, int]] = {
    "B": {"n_layer": 12, "n_head": 12, "dim": 768},
    "L": {"n_layer": 24, "n_head": 16, "dim": 1024},
    "XL": {"n_layer": 36, "n_head": 20, "dim": 1280},
}
"""Published sizes, as arguments of `GPTConfig`; the text-conditional model is published as XL alone."""


TRAINING_ALONE = (
    *("token_dropout_p", "attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "drop_path_rate"),
    *("class_dropout_prob", "initializer_range"),
)
"""Fields of `GPTConfig` that no trained network depends on."""


@dataclass(frozen=True)
class GPTConfig:
    """Architecture of a `GPT` with the published names; the defaults are GPT-XL from text at 256 pixels.

    model_type: "t2i" or "c2i". dim, n_layer, n_head: width, blocks, heads of queries; n_kv_head: heads of keys and
    values, None for n_head. ffn_dim_multiplier: of the feed-forward's width; multiple_of: what that is rounded up to.
    vocab_size: number of ids; block_size: ids of an image, a square. cls_token_num: length L of the prefix, 1 for c2i.
    caption_dim: width of the text encoder's states. uncond_positions: rows of the unconditional embedding, None for L.
    token_dropout_p, attn_dropout_p, resid_dropout_p, ffn_dropout_p: shares of values; drop_path_rate: share of samples
    that skip the last block, falling to 0 at the first; class_dropout_prob: share of conditions that are replaced by
    the unconditional one. These are of training alone, but a table of classes has the unconditional row only where
    class_dropout_prob > 0. initializer_range: standard deviation of the starting weights.
    """

    model_type: str = TEXT
    dim: int = 1280
    n_layer: int = 36
    n_head: int = 20
    n_kv_head: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    vocab_size: int = 16384
    block_size: int = 256
    cls_token_num: int = 120
    caption_dim: int = 2048
    num_classes: int = 1000
    uncond_positions: int | None = None
    norm_eps: float = 1e-5
    rope_base: float = 10000
    token_dropout_p: float = 0.1
    attn_dropout_p: float = 0.0
    resid_dropout_p: float = 0.1
    ffn_dropout_p: float = 0.1
    drop_path_rate: float = 0.0
    class_dropout_prob: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.model_type not in (TEXT, CLASS):
            raise ValueError(f"model_type {self.model_type!r}: expected {TEXT!r} or {CLASS!r}")
        if self.model_type == CLASS and self.cls_token_num != 1:
            raise ValueError(f"cls_token_num {self.cls_token_num}: a class takes 1 position")
        if self.dim % self.n_head or self.head_dim % 4:
            raise ValueError(
                f"dim {self.dim} with {self.n_head} heads: the width of a head must be a whole multiple of 4, two "
                "halves of pairs"
            )
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_kv_head {self.n_kv_head}: expected a divisor of n_head {self.n_head}")
        if self.side**2 != self.block_size:
            raise ValueError(f"block_size {self.block_size}: expected a square number of ids")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def side(self) -> int:
        """Ids of a row and of a column."""
        return math.isqrt(self.block_size)

    @property
    def positions(self) -> int:
        """Length of the whole sequence, L + N."""
        return self.cls_token_num + self.block_size

    @property
    def ffn_dim(self) -> int:
        """Inner width of a feed-forward: two thirds of 4 dim, rounded up."""
        width = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return math.ceil(width / self.multiple_of) * self.multiple_of

    def same_network(self, other: GPTConfig) -> bool:
        """Whether weights of one fit the other: settings of training alone may differ."""
        row = self.has_unconditional == other.has_unconditional
        return row and replace(other, **{name: getattr(self, name) for name in TRAINING_ALONE}) == self

    @property
    def has_unconditional(self) -> bool:
        """Whether there is an unconditional embedding, without which there is no guidance."""
        return self.model_type == TEXT or self.class_dropout_prob > 0


def rotary_table(config: GPTConfig) -> Tensor:
    """float32 (L + N, head_dim / 2, 2): cosine and sine by position and pair; zeros, both, for the prefix.

    The first half of the pairs turns with the row of an id, the second with its column, by base^(-2i / (head_dim / 2)).
    """
    half = config.head_dim // 2
    frequencies = config.rope_base ** -(torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half)
    angles = torch.outer(torch.arange(config.side, dtype=torch.float32, device="cpu"), frequencies)
    grid = torch.cat([angles.repeat_interleave(config.side, 0), angles.repeat(config.side, 1)], 1)
    prefix = torch.zeros(config.cls_token_num, half, 2, device="cpu")
    return torch.cat([prefix, torch.stack([grid.cos(), grid.sin()], -1)])


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Vectors (..., heads, head_dim) whose neighbours (2i, 2i + 1) are pairs, turned in float32, in their dtype.

    turn: float32 cosines and sines, broadcast against (..., heads, head_dim / 2, 2). As complex numbers it takes the
    fewest kernels; torch.compile, which generates no code for these, gets the products written out.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (a, b), (cosine, sine) = pairs.unbind(-1), turn.unbind(-1)
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2).type_as(x)
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(turn)
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def padding_mask(text: Tensor, length: int) -> Tensor:
    """bool (B, length, length), True where a position (row) sees another: earlier ones but padding, and itself.

    text: (B, L), nonzero where the caption is. Padding sees itself, too, so that no row is empty.
    """
    lower = torch.ones(length, length, dtype=torch.bool, device=text.device).tril()
    seen = F.pad(text.bool(), (0, length - text.shape[1]), value=True)
    return (lower & seen[:, None]) | torch.eye(length, dtype=torch.bool, device=text.device)


def token_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean cross entropy (nats) of logits (B, T, V) and ids (B, T).

    valid: (B,), which samples count; the sum over theirs is divided by the number of their ids, at least 1.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none")
    if valid is None:
        return losses.mean()
    weights = valid.to(losses.dtype).repeat_interleave(targets.shape[1])
    return (losses * weights).sum() / weights.sum().clamp(min=1)


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis in float32, cast back, then scaled."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], None, self.eps).type_as(x) * self.weight


class Attention(nn.Module):
    """Causal self-attention with 2D rotary embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        heads = config.n_head + 2 * config.kv_heads
        self.wqkv = nn.Linear(config.dim, heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_dropout_p)

    def project(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., dim) to turned queries, turned keys and values (..., heads, head_dim); turn as for `rotate`."""
        queries = self.config.n_head
        joint = self.wqkv(x).unflatten(-1, (-1, self.config.head_dim))
        turned = rotate(joint[..., : queries + self.config.kv_heads, :], turn)
        return turned[..., :queries, :], turned[..., queries:, :], joint[..., queries + self.config.kv_heads :, :]

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, T, dim); turn (T, 1, head_dim / 2, 2); mask bool (B, 1, T, T), None for a causal one."""
        q, k, v = (part.transpose(1, 2) for part in self.project(x, turn))
        dropout = self.config.attn_dropout_p if self.training else 0.0
        grouped = self.config.kv_heads != self.config.n_head
        slow = q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled()
        if slow and mask is not None and not grouped:
            mixed = attend(q, k, v, mask, dropout)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, enable_gqa=grouped)
        return self.resid_dropout(self.wo(mixed.transpose(1, 2).flatten(2)))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """F.scaled_dot_product_attention written out, in float32, for gradients of bfloat16 on a CPU.

    With the fused kernel a step of attention took 2.4 times as long there; in float32 it is the faster one
    (benchmarks/attention.py; AMD EPYC, torch 2.15). Every row of mask sees something.
    """
    with torch.autocast("cpu", enabled=False):
        scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return (F.dropout(weights, dropout) @ v.float()).to(v.dtype)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.ffn_dropout = nn.Dropout(config.ffn_dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Attention and feed-forward, each normed before and added. drop_path: share of samples that skip each."""

    def __init__(self, config: GPTConfig, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.drop_path = drop_path

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self._kept(self.attention(self.attention_norm(x), turn, mask))
        return x + self._kept(self.feed_forward(self.ffn_norm(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class CaptionProjection(nn.Module):
    """Linear, GELU (tanh form), linear, without biases, so that zeros stay zeros."""

    def __init__(self, caption_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(caption_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(states), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """A text encoder's states (B, L, caption_dim) to a prefix (B, L, dim).

    `uncond_embedding` (L, caption_dim) stands for no caption: random, in the state dict, never trained.
    """

    uncond_embedding: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config.caption_dim, config.dim)
        rows = config.cls_token_num if config.uncond_positions is None else config.uncond_positions
        self.register_buffer("uncond_embedding", torch.randn(rows, config.caption_dim) / config.caption_dim**0.5)

    def forward(self, states: Tensor, drop: Tensor | None = None) -> Tensor:
        states = states.to(self.cap_proj.fc1.weight.dtype)
        if drop is not None:
            rows = len(self.uncond_embedding)
            if rows != states.shape[1]:
                raise ValueError(f"{states.shape[1]} text positions, but the unconditional embedding has {rows}")
            states = torch.where(drop[:, None, None], self.uncond_embedding.to(states.dtype), states)
        return self.cap_proj(states)


class ClassEmbedder(nn.Module):
    """Classes, int64 (B,), to a prefix (B, 1, dim). The row after the last class stands for none."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.unconditional = config.num_classes if config.has_unconditional else None
        self.embedding_table = nn.Embedding(config.num_classes + config.has_unconditional, config.dim)

    def forward(self, classes: Tensor, drop: Tensor | None = None) -> Tensor:
        if drop is not None:
            if self.unconditional is None:
                raise ValueError("the table has no unconditional row (class_dropout_prob is 0)")
            classes = torch.where(drop, self.unconditional, classes)
        return self.embedding_table(classes)[:, None]


class GPT(nn.Module):
    """Logits of the next id from a condition and the ids so far.

    Conditions: states of a caption (B, L, caption_dim), left-padded with zeros, or classes int64 (B,).
    """

    def __init__(self, config: GPTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GPTConfig()
        self.cls_embedding = CaptionEmbedder(config) if config.model_type == TEXT else ClassEmbedder(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.tok_dropout = nn.Dropout(config.token_dropout_p)
        shares = [config.drop_path_rate * i / max(config.n_layer - 1, 1) for i in range(config.n_layer)]
        self.layers = nn.ModuleList(Block(config, share) for share in shares)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self._again: Callable[..., Tensor] | None = None
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Published starting weights: normal, the output zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(std=self.config.initializer_range)
        self.output.weight.zero_()

    def checkpoint_activations(self, function: Callable[..., Tensor] | None = None) -> None:
        """In training, keep a block's input alone and compute the rest again in the backward pass.

        function: does so for a block and its inputs; None for torch.utils.checkpoint.
        """
        self._again = function or partial(checkpoint, use_reentrant=False)

    def prefix(self, condition: Tensor, drop: Tensor | None = None) -> Tensor:
        """(B, L, dim) of conditions. drop: bool (B,), which become the unconditional one; None for none of them, or,
        in training, for a random share of `class_dropout_prob`.

        Raises ValueError where there is no unconditional embedding of that length.
        """
        share = self.config.class_dropout_prob
        if drop is None and self.training and share:
            drop = torch.rand(len(condition), device=condition.device) < share
        return self.cls_embedding(condition, drop)

    def logits(self, x: Tensor) -> Tensor:
        """float32 (..., vocab_size) of the last block's states (..., dim)."""
        return self.output(self.norm(x)).float()

    def forward(
        self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        """float32 logits (B, L + T, vocab_size); those at L - 1 + k are of id k.

        tokens: int (B, T), the first T ids, 0 <= T <= N. mask: bool (B, L + T, L + T), True where a position sees
        another (`padding_mask`); None for a causal one. drop: see `prefix`. Raises ValueError for more ids.
        """
        if tokens.shape[1] > self.config.block_size:
            raise ValueError(f"{tokens.shape[1]} ids of an image that has {self.config.block_size}")
        x = self.tok_dropout(torch.cat([self.prefix(condition, drop), self.tok_embeddings(tokens)], 1))
        turn = rotary_table(self.config).to(x.device)[: x.shape[1], None]
        for layer in self.layers:
            inputs = x, turn, None if mask is None else mask[:, None]
            x = layer(*inputs) if self._again is None or not self.training else self._again(layer, *inputs)
        return self.logits(x)

    def training_logits(
        self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        """float32 logits (B, N, vocab_size) of every id of an image (B, N), for `token_loss`.

        mask: of the whole sequence, bool (B, L + N, L + N); the last position is not fed.
        """
        cut = None if mask is None else mask[:, :-1, :-1]
        return self(tokens[:, :-1], condition, cut, drop)[:, self.config.cls_token_num - 1 :]
