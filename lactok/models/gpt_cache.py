"""The key/value cache of a `GPT` in generation, and the two passes that use it.

The rotary table is zero for the prefix (lactok/models/gpt.py), so an id's score with each prefix position is 0. What an
id takes from n positions of a prefix is hence what it would take from one value, their mean, with n times the weight.
The cache holds that mean in place of L keys and values, and log n is added to the score with it, which is exact. In the
prefix itself, attention is a running mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lactok.models.gpt import GPT, Block, rotary_table

TEXT_SLOTS = 2
"""Slots that the prefix takes. The second holds the same mean, with the weight that rounding log n in bf16 leaves."""

_FIRST_SHARE = 0.02
"""How far below log n the first slot's weight is: more than half the distance of bfloat16 values up to 8 (2^-6)."""

MULTIPLE = 8
"""Slots are a multiple of it, which kernels of attention with a bias want."""


class Cache:
    """Preallocated keys and values of `rows` sequences; no module holds it.

    keys, values: (layers, rows, kv heads, slots, head width); zeros where nothing was written.
    text: (rows, TEXT_SLOTS), what is added to the scores with the prefix.
    """

    def __init__(self, model: GPT, rows: int) -> None:
        config, weight = model.config, model.output.weight
        self.slots = math.ceil((TEXT_SLOTS + config.block_size) / MULTIPLE) * MULTIPLE
        shape = (config.n_layer, rows, config.kv_heads, self.slots, config.head_dim)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.text = torch.zeros(rows, TEXT_SLOTS, dtype=weight.dtype, device=weight.device)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in (self.keys, self.values, self.text))


def text_weights(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, TEXT_SLOTS) in dtype, whose exponentials add up to counts (R,) to 0.1 % in bfloat16; -inf for none."""
    exact = counts.double()
    first = (exact.log() - _FIRST_SHARE).to(dtype)
    second = (exact - first.double().exp()).log().to(dtype)
    return torch.stack([first, second], -1)


def prefill(model: GPT, cache: Cache, rows: Tensor, prefix: Tensor, seen: Tensor) -> Tensor:
    """Write prefixes (R, L, dim) into `rows` (int64 (R,)); float32 logits (R, vocab_size) of the first id.

    seen: bool (R, L), False at padding, which only padding itself sees.
    """
    x, config = prefix, model.config
    weight = seen[:, :, None].float()
    others = 1 - weight
    running = weight.cumsum(1) + others
    count = weight.sum(1)
    cache.text[rows] = text_weights(count[:, 0], cache.text.dtype)
    for number, layer in enumerate(_blocks(model)):
        values = _values(layer, x).float()
        mixed = ((values * weight).cumsum(1) + values * others) / running
        mean = (values * weight).sum(1) / count.clamp(min=1)
        held = mean.view(-1, config.kv_heads, 1, config.head_dim).to(cache.values.dtype)
        cache.values[number][rows, :, :TEXT_SLOTS] = held
        x = _rest(layer, x, _for_each_query(mixed, model).to(x.dtype))
    return model.logits(x[:, -1])


BlockStep = Callable[[Block, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""`block_step`, or what torch.compile made of it."""


def step(
    model: GPT, cache: Cache, tokens: Tensor, at: Tensor, turn: Tensor, length: int, through: BlockStep | None = None
) -> Tensor:
    """Feed one id to the first R rows; float32 logits (R, vocab_size) of the ids that follow.

    tokens: int64 (R,); at: int64 (R,), the place of each in its image. turn: float32 (N, head_dim / 2, 2), `id_turns`.
    length: slots that attention reads, above TEXT_SLOTS + every place. through: in place of `block_step`.
    """
    count, through = len(tokens), through or block_step
    slots = TEXT_SLOTS + at
    bias = torch.zeros(count, length, dtype=cache.text.dtype, device=tokens.device)
    bias.masked_fill_(torch.arange(length, device=tokens.device) > slots[:, None], -torch.inf)
    bias[:, :TEXT_SLOTS] = cache.text[:count]
    bias, turned = bias[:, None, None], turn[at][:, None]
    x = model.tok_embeddings(tokens)
    for number, layer in enumerate(_blocks(model)):
        x = through(layer, x, cache.keys[number, :count], cache.values[number, :count], slots, turned, bias)
    return model.logits(x)


def block_step(
    layer: Block, x: Tensor, keys: Tensor, values: Tensor, slots: Tensor, turned: Tensor, bias: Tensor
) -> Tensor:
    """One block's part of `step`: x (R, dim) to (R, dim), its keys and values written into their slots.

    keys, values: (R, kv heads, slots, head width), of the cache; slots: int64 (R,); bias: (R, 1, 1, length), added to
    the scores.
    """
    config, rows = layer.attention.config, torch.arange(len(x), device=x.device)
    length = bias.shape[-1]
    q, k, v = layer.attention.project(layer.attention_norm(x), turned)
    keys[rows, :, slots] = k.to(keys.dtype)
    values[rows, :, slots] = v.to(values.dtype)
    mixed = F.scaled_dot_product_attention(
        q[:, :, None].to(keys.dtype),
        keys[:, :, :length],
        values[:, :, :length],
        bias,
        enable_gqa=config.kv_heads != config.n_head,
    )
    return _rest(layer, x, mixed.flatten(1).to(x.dtype))


def id_turns(model: GPT) -> Tensor:
    """float32 (N, head_dim / 2, 2): the rotary table of ids, on the model's device."""
    return rotary_table(model.config)[model.config.cls_token_num :].to(model.output.weight.device)


def _blocks(model: GPT) -> list[Block]:
    return cast("list[Block]", list(model.layers))


def _values(layer: Block, x: Tensor) -> Tensor:
    """Values (R, L, kv heads * head width) of a block's input: queries and keys of a prefix are zero."""
    config, wqkv = layer.attention.config, layer.attention.wqkv
    return F.linear(layer.attention_norm(x), wqkv.weight[-config.kv_heads * config.head_dim :])


def _for_each_query(mixed: Tensor, model: GPT) -> Tensor:
    """(R, L, kv heads * head width), each head repeated for the queries that share it: (R, L, dim)."""
    config = model.config
    if config.kv_heads == config.n_head:
        return mixed
    heads = mixed.unflatten(-1, (config.kv_heads, config.head_dim))
    return heads.repeat_interleave(config.n_head // config.kv_heads, -2).flatten(-2)


def _rest(layer: Block, x: Tensor, mixed: Tensor) -> Tensor:
    """A block after its attention."""
    x = x + layer.attention.wo(mixed)
    return x + layer.feed_forward(layer.ffn_norm(x))
