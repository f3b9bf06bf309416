"""MPS, the Multi-dimensional Preference Score (Zhang et al., CVPR 2024), overall condition.

A CLIP ViT-H/14 whose image tokens attend to the prompt's tokens through four layers; prompt tokens that have little to
do with a fixed condition are masked. CLIP is transformers'; the layers are written here after the published code
(Kwai-Kolors/MPS, trainer/models). Constants without another source are from there and from
eval_overall_mps_on_hpdv2.py, whose way of scoring is followed.
"""

from __future__ import annotations

import functools
import gzip
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.metrics.base import Column
from evals.metrics.judges.base import CLIP_VOCABULARY, Judge, fill_buffers, normalised, shortest_to, transformers_offset
from evals.metrics.judges.pickled_module import read_pickled_module
from lactok.files import write_atomically
from lactok.state_dict import Rules, StateDictAdapter, errors_name, meta_skeleton, rename
from lactok.weights import LocalWeights, WeightsSource, load_tensors, locate

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The overall condition's text."""
KEPT_ABOVE = 0.3
"""Of a token's similarity with the condition, relative to the prompt's largest, in the evaluation scripts."""
FORWARD_KEPT_ABOVE = 0.01
"""The same in the model's own forward, where it is relative to the largest of all prompts of a batch."""
TOKENS = 77
HEAD_WIDTH = 64
FEED_FORWARD = 4  # times the width
RELEASED = "MPS_overall_checkpoint.pth"
GOOGLE_DRIVE = "17qrK_aJkVNM75ZEvMEePpLj6L867MLkN"
"""Of the released checkpoint, linked in the README of Kwai-Kolors/MPS."""
CONVERT = "python -m evals judges convert-mps"


def checkpoint() -> LocalWeights:
    """The released tensors as `convert` leaves them, under XDG_CACHE_HOME or ~/.cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return LocalWeights(
        str(cache / "lactok" / "MPS_overall_checkpoint.safetensors"),
        otherwise=f"MPS has no stable address: get {RELEASED} by `gdown {GOOGLE_DRIVE}` (the link in the README of "
        f"github.com/Kwai-Kolors/MPS), then `{CONVERT} {RELEASED}` reads it without running its code and saves its "
        "tensors there",
    )


@dataclass(frozen=True)
class MpsConfig:
    """Sizes of the networks; by default the published ones. text, vision: fields of transformers' CLIPTextConfig,
    CLIPVisionConfig."""

    projection_dim: int = 1024
    cross_layers: int = 4
    cross_heads: int = 16
    text: Mapping[str, Any] = field(
        default_factory=lambda: dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_attention_heads=16,
            num_hidden_layers=24,
            vocab_size=49408,
            max_position_embeddings=77,
            hidden_act="gelu",
        )
    )
    vision: Mapping[str, Any] = field(
        default_factory=lambda: dict(
            hidden_size=1280,
            intermediate_size=5120,
            num_attention_heads=16,
            num_hidden_layers=32,
            image_size=224,
            patch_size=14,
            hidden_act="gelu",
        )
    )


def rotary_frequencies() -> Tensor:
    """Radians a position, of each pair of a head's dimensions: (HEAD_WIDTH / 2,)."""
    return 10000.0 ** -(torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)


class ScaleNorm(nn.Module):
    """LayerNorm (eps 1e-5) whose bias is a buffer of zeros."""

    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)


def gated(x: Tensor) -> Tensor:
    """SwiGLU: the first half of the last dimension times SiLU of the second."""
    value, gate = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-query attention: q (B, N, heads x 64), k and v (B, M, 64), mask (B, 1, M) added to the logits; q's shape.

    Queries are scaled before the product, as published, which counts in float16.
    """
    batch, length, _ = q.shape
    q = q.view(batch, length, heads, HEAD_WIDTH).transpose(1, 2) * HEAD_WIDTH**-0.5
    logits = q @ k[:, None].transpose(-1, -2)
    if mask is not None:
        logits = logits + mask[:, None]
    out = logits.softmax(dim=-1) @ v[:, None]
    return out.transpose(1, 2).reshape(batch, length, heads * HEAD_WIDTH)


class CrossAttention(nn.Module):
    """Tokens to what they take from a context, with a feed-forward beside it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ScaleNorm(dim)
        self.to_q = nn.Linear(dim, heads * HEAD_WIDTH, bias=False)
        self.to_kv = nn.Linear(dim, 2 * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(heads * HEAD_WIDTH, dim, bias=False)
        self.ff_in = nn.Linear(dim, 2 * FEED_FORWARD * dim, bias=False)
        self.ff_out = nn.Linear(FEED_FORWARD * dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        k, v = self.to_kv(context).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(x), k, v, self.heads, mask)) + self.ff_out(gated(self.ff_in(x)))


class ParallelBlock(nn.Module):
    """Self-attention with rotary positions, and a feed-forward, from one projection."""

    inv_freq: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.widths = (heads * HEAD_WIDTH, HEAD_WIDTH, HEAD_WIDTH, 2 * FEED_FORWARD * dim)
        self.norm = ScaleNorm(dim)
        self.register_buffer("inv_freq", rotary_frequencies())
        self.fused = nn.Linear(dim, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(heads * HEAD_WIDTH, dim, bias=False)
        self.ff_out = nn.Linear(FEED_FORWARD * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, ff = self.fused(self.norm(x)).split(self.widths, dim=-1)
        places = torch.arange(x.shape[1], device=x.device, dtype=self.inv_freq.dtype)
        angles = torch.outer(places, self.inv_freq).repeat(1, 2)
        queries = q.view(*q.shape[:2], self.heads, HEAD_WIDTH)
        q = rotated(queries, angles[:, None]).reshape(q.shape)
        return self.attn_out(attend(q, rotated(k, angles), v, self.heads)) + self.ff_out(gated(ff))


class CrossLayer(nn.Module):
    """Both of the above, each added to what it is given."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.cross = CrossAttention(dim, heads)
        self.block = ParallelBlock(dim, heads)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        x = x + self.cross(x, context, mask)
        return x + self.block(x)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs (i, i + half) of the last dimension turned by `angles`."""
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()


class MpsNet(nn.Module):
    """CLIP's features, and the score of a text with an image."""

    def __init__(self, config: MpsConfig) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        dim = config.projection_dim
        sizes = dict(text_config=dict(config.text), vision_config=dict(config.vision), projection_dim=dim)
        self.config = config
        self.clip = CLIPModel(CLIPConfig(**sizes))
        self.layers = nn.ModuleList(CrossLayer(dim, config.cross_heads) for _ in range(config.cross_layers))

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, in which it computes."""
        return self.clip.logit_scale.dtype

    def image_features(self, pixels: Tensor) -> Tensor:
        """All tokens' features, (B, 1 + patches, dim), not normed. pixels: normalised (B, 3, S, S)."""
        tokens = self.clip.vision_model(pixel_values=pixels.to(self.dtype)).last_hidden_state
        return self.clip.visual_projection(tokens)

    def text_features(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens' features (B, places, dim), and those of each text's end (B, dim): its first largest id.

        ids: int64 (B, places). Padding is no different from other tokens.
        """
        states = self.clip.text_model(input_ids=ids).last_hidden_state
        ends = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]
        return self.clip.text_projection(states), self.clip.text_projection(ends)

    def similarity(self, text: Tensor, condition: Tensor, of_batch: bool = False) -> Tensor:
        """Each token's largest product with a token of the condition, relative to the text's largest: (B, places).

        text: (B, places, dim); condition: (1, M, dim). of_batch: relative to the largest of all texts.
        """
        products = (text @ condition.transpose(-1, -2)).amax(dim=-1)
        return products / (products.amax() if of_batch else products.amax(dim=-1, keepdim=True))

    def fused(self, image: Tensor, text: Tensor, kept: Tensor) -> Tensor:
        """The first image token after the layers, (B, dim). kept: bool (B, places), the text tokens that are seen."""
        mask = torch.zeros(kept.shape, dtype=image.dtype, device=image.device).masked_fill(~kept, -torch.inf)[:, None]
        for layer in self.layers:
            image = layer(image, text, mask)
        return image[:, 0]

    def cosine(self, image: Tensor, end: Tensor) -> Tensor:
        """exp(logit scale) times the cosine of a fused image and a text's end, (B,)."""
        image, end = (x / x.norm(dim=-1, keepdim=True) for x in (image, end))
        return self.clip.logit_scale.exp() * (image * end).sum(dim=-1)

    def forward(
        self, image: Tensor, text: tuple[Tensor, Tensor], condition: Tensor, above: float, of_batch: bool = False
    ) -> Tensor:
        """Scores (B,). image, text, condition: from the functions above; above: the least similarity that is kept."""
        tokens, end = text
        kept = self.similarity(tokens, condition, of_batch) > above
        return self.cosine(self.fused(image, tokens, kept), end)


class MpsAdapter(StateDictAdapter[MpsNet]):
    """Our names <-> those of the released module's state dict."""

    model_name = "MPS"
    rules: ClassVar[Rules] = (
        (r"^clip\.", "model."),
        (r"^layers\.", "cross_model.layers."),
        (r"cross\.ff_in", "cross.ff.0"),
        (r"cross\.ff_out", "cross.ff.2"),
        (r"block\.ff_out", "block.ff_out.1"),
        (r"block\.fused", "block.fused_attn_ff_proj"),
        (r"block\.inv_freq", "block.rotary_emb.inv_freq"),
        (r"\.cross\.", ".0.fn."),
        (r"\.block\.", ".1.fn."),
    )

    def published_name(self, name: str) -> str:
        return rename(name, self.rules)

    def is_unused(self, published_name: str, model: MpsNet) -> bool:
        """Buffers that count positions, which transformers stored up to 4.30."""
        return published_name.endswith(".position_ids")


def build(published: Mapping[str, Tensor], config: MpsConfig | None = None) -> MpsNet:
    """The network with weights under the published names, float32, in eval mode.

    Raises lactok.weights.CheckpointMismatch listing names and shapes that do not fit.
    """
    net = MpsAdapter().load(meta_skeleton(MpsNet, config or MpsConfig()), dict(published))
    fill_buffers(net)
    return net.eval().requires_grad_(False)


def convert(released: Path, target: Path | None = None, config: MpsConfig | None = None) -> Path:
    """Save the tensors of the released file as safetensors where `checkpoint` looks for them, or at `target`.

    Raises lactok.weights.WeightsError for a file that is no such network, lactok.files.WriteError.
    """
    from safetensors.torch import save

    state = read_pickled_module(released)
    with errors_name(released):
        shapes = {name: tensor.to("meta") for name, tensor in state.items()}
        MpsAdapter().from_published(shapes, meta_skeleton(MpsNet, config or MpsConfig()))
    target = target or Path(checkpoint().path)
    write_atomically(target, save({name: tensor.clone().contiguous() for name, tensor in state.items()}))
    return target


def tokenizer(vocabulary: Path) -> Any:
    """CLIP's tokenizer as transformers has it, padding with the end token, from OpenAI's file of byte pairs."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")
    pairs = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]  # as OpenAI's tokenizer reads it
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(pair) for pair in pairs)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=pairs)


class Mps(Judge):
    """MPS of each image with its prompt: exp(logit scale) times a cosine; about 5 to 15.

    A prompt token counts where its similarity with the condition is above 0.3 of the prompt's largest. half: compute
    in float16, as released.
    """

    name = "mps"
    summary = "Multi-dimensional Preference Score, overall, float32"
    columns = (Column("MPS", "higher", note="MPS, overall condition (Zhang et al. 2024), float32"),)
    half: ClassVar[bool] = False

    def __init__(self, network: MpsNet, tokenizer: Any, above: float = KEPT_ABOVE, of_batch: bool = False) -> None:
        """network: from `build`, on its device; tokenizer: from `tokenizer`.

        above: the similarity that a token must exceed. of_batch: relative to the largest of all prompts of a batch, as
        the model's own forward has it (with FORWARD_KEPT_ABOVE); values then depend on the batch, and are NaN for a
        prompt that keeps no token, so no metric has it.
        """
        self.network = network.half() if self.half else network
        self.tokenizer, self.above, self.of_batch = tokenizer, above, of_batch
        self.device = network.clip.logit_scale.device

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        return checkpoint(), CLIP_VOCABULARY

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> Mps:
        """With the published network. Raises lactok.weights.MissingWeights, CheckpointMismatch."""
        vocabulary = locate(CLIP_VOCABULARY)
        return cls(build(load_tensors(checkpoint())).to(device), tokenizer(vocabulary))

    def preprocess(self, images: Tensor) -> Tensor:
        """The shortest side to the network's, the square in the middle (Pillow's bytes), CLIP's mean and deviation."""
        side = self.network.config.vision["image_size"]
        return normalised(shortest_to(images, side, transformers_offset).float() / 255)

    def features_of(self, pixels: Tensor) -> Tensor:
        return self.network.image_features(pixels)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64 (N, places), padded with the end token and cut."""
        places = self.network.config.text["max_position_embeddings"]
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=places, return_tensors="pt"
        )
        return tokens.input_ids.to(self.device)

    @functools.cached_property
    def condition(self) -> Tensor:
        """The condition's token features, (1, places, dim)."""
        return self.network.text_features(self.ids([CONDITION]))[0]

    @torch.no_grad()
    def judge(self, embedding: Tensor, prompts: Sequence[str]) -> Tensor:
        text = self.network.text_features(self.ids(prompts))
        return self.network(embedding, text, self.condition, self.above, self.of_batch)


class MpsHalf(Mps):
    """MPS computed in float16 with float16 weights, as its evaluation scripts do: rougher, batches change it more."""

    name = "mps-fp16"
    summary = "Multi-dimensional Preference Score, overall, float16 as released"
    columns = (Column("MPS-fp16", "higher", note="MPS, overall condition (Zhang et al. 2024), float16 as released"),)
    half = True
