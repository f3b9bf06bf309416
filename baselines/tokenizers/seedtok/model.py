"""The SEED-2 tokenizer: an image as 32 causal ids, and those as one image embedding (SEED-LLaMA, arXiv 2310.01218).

EVA-CLIP's ViT reads the image, BLIP-2's Q-Former summarises it in 32 queries that see only earlier ones, each query
is matched to a codebook; codes become the CLIP embedding from which unclip.py paints. ViT and Q-Former are
transformers' BLIP-2 networks, the blocks of the way back are timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lactok.models.quantizer import VectorQuantizer

if TYPE_CHECKING:
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2VisionModel

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of OpenAI's CLIP, per channel of an image in [0, 1]."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

LN_VISION_EPS = 1e-5
"""Of the norm between ViT and Q-Former (torch's default; the ViT's own norms have another)."""


@dataclass(frozen=True)
class ViTConfig:
    """EVA-CLIP ViT-g without its 40th block, by the published names. img_size, patch_size: pixels of a side."""

    img_size: int = 224
    patch_size: int = 14
    embed_dim: int = 1408
    depth: int = 39
    num_heads: int = 16
    mlp_ratio: float = 4.3637
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class QFormerConfig:
    """BERT base with cross-attention in every `cross_attention_freq`-th layer, from the first; published names.

    causal_queries: when there are just so many queries, each sees only earlier ones. dropout: while training.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    cross_attention_freq: int = 2
    num_query_token: int = 32
    causal_queries: int = 32
    dropout: float = 0.1


@dataclass(frozen=True)
class SeedConfig:
    """The whole tokenizer without its painter, by the published names; the defaults are the released one's.

    n_embed, codebook_embed_dim: shape of the codebook; decode_depth, decode_num_heads: of the blocks on the way back;
    down_widths: outputs of the layers that shrink each position before all are joined;
    image_features_dim: of the image embedding.
    """

    vit: ViTConfig = field(default_factory=ViTConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    n_embed: int = 8192
    codebook_embed_dim: int = 32
    decode_depth: int = 4
    decode_num_heads: int = 12
    down_widths: tuple[int, int, int] = (256, 128, 32)
    image_features_dim: int = 1024

    def __post_init__(self) -> None:
        for name, cls in (("vit", ViTConfig), ("qformer", QFormerConfig)):
            if isinstance(value := getattr(self, name), Mapping):  # JSON gives mappings
                object.__setattr__(self, name, cls(**value))
        object.__setattr__(self, "down_widths", tuple(self.down_widths))


@dataclass(frozen=True)
class SeedEncoded:
    """What the encoder made of B images, from the ids back to the ViT.

    ids: int64 (B, N); quantizer_input: (B, N, codebook_embed_dim); query_output: (B, N, hidden_size);
    vision_embeds: the ViT's tokens (B, 1 + patches, embed_dim) after `ln_vision`; vit_output: before it.
    """

    ids: Tensor
    quantizer_input: Tensor
    query_output: Tensor
    vision_embeds: Tensor
    vit_output: Tensor


def normalise(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as CLIP's networks take them: per channel (x - mean) / std."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


class SeedModel(nn.Module):
    """Images to ids, and ids to image embeddings."""

    def __init__(self, config: SeedConfig | None = None) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.config = config = config or SeedConfig()
        width, queries = config.qformer.hidden_size, config.qformer.num_query_token
        self.vision = _vision(config.vit)
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, width))
        self.qformer = _qformer(config.qformer, config.vit.embed_dim)
        self.encode_task_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.codebook_embed_dim)
        )
        self.quantize = VectorQuantizer(config.n_embed, config.codebook_embed_dim, l2_norm=False, track_usage=False)
        self.decode_task_layer = nn.Sequential(
            nn.Linear(config.codebook_embed_dim, config.codebook_embed_dim),
            nn.Tanh(),
            nn.Linear(config.codebook_embed_dim, width),
        )
        self.pos_embed_image = nn.Parameter(torch.zeros(1, queries, width))
        norm = cast(type[nn.LayerNorm], partial(nn.LayerNorm, eps=1e-6))  # timm annotates a class, and takes any maker
        self.blocks_image = nn.Sequential(
            *(Block(width, config.decode_num_heads, qkv_bias=True, norm_layer=norm) for _ in range(config.decode_depth))
        )
        first, second, last = config.down_widths
        self.image_down = nn.Sequential(
            nn.Linear(width, first, bias=False),
            nn.ReLU(),
            nn.Linear(first, second, bias=False),
            nn.ReLU(),
            nn.Linear(second, last, bias=False),
        )
        self.distill_image_proj = nn.Linear(queries * last, config.image_features_dim)

    def encode(self, images: Tensor) -> SeedEncoded:
        """Normalised images (B, 3, img_size, img_size) to ids, with what lies between."""
        vit_output = self.vision.encoder(inputs_embeds=self.vision.embeddings(images)).last_hidden_state
        vision_embeds = self.vision.post_layernorm(vit_output.float())
        query_output = self._queries(vision_embeds)
        quantizer_input = self.encode_task_layer(query_output)
        ids = self.quantize.search(quantizer_input.transpose(1, 2).unsqueeze(-1)).squeeze(-1)
        return SeedEncoded(ids, quantizer_input, query_output, vision_embeds, vit_output)

    def _queries(self, vision_embeds: Tensor) -> Tensor:
        """The Q-Former's summary (B, N, hidden_size) of the ViT's tokens."""
        queries = self.query_tokens.expand(len(vision_embeds), -1, -1)
        count, mask = queries.shape[1], None
        if count == self.config.qformer.causal_queries:  # published as -10000 added to the scores
            mask = torch.ones(count, count, dtype=torch.bool, device=queries.device).tril()[None, None]
        return self.qformer(queries, attention_mask=mask, encoder_hidden_states=vision_embeds).last_hidden_state

    def quantized(self, quantizer_input: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, N, D) to ids (B, N), and their codes as `lift` gives them, with the straight-through gradient."""
        codes, ids = self.quantize(quantizer_input.transpose(1, 2).unsqueeze(-1))
        return ids.squeeze(-1), self.decode_task_layer(codes.squeeze(-1).transpose(1, 2))

    def lift(self, ids: Tensor) -> Tensor:
        """Ids (B, N) to their codes at the Q-Former's width (B, N, hidden_size)."""
        return self.decode_task_layer(self.quantize.lookup(ids.unsqueeze(-1)).squeeze(-1).transpose(1, 2))

    def image_embeds(self, lifted: Tensor) -> Tensor:
        """Lifted codes (B, N, hidden_size) to image embeddings (B, image_features_dim)."""
        positions = self.blocks_image(lifted + self.pos_embed_image)
        return self.distill_image_proj(self.image_down(positions).flatten(1))


def _vision(config: ViTConfig) -> Blip2VisionModel:
    """BLIP-2's ViT; its last norm is `ln_vision`."""
    from transformers.models.blip_2 import modeling_blip_2 as module

    vision = module.Blip2VisionModel(
        module.Blip2VisionConfig(
            hidden_size=config.embed_dim,
            intermediate_size=int(config.embed_dim * config.mlp_ratio),
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            image_size=config.img_size,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
        )
    )
    vision.post_layernorm = nn.LayerNorm(config.embed_dim, eps=LN_VISION_EPS)
    return vision


def _qformer(config: QFormerConfig, vision_width: int) -> Blip2QFormerModel:
    from transformers.models.blip_2 import modeling_blip_2 as module

    return module.Blip2QFormerModel(
        module.Blip2QFormerConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            layer_norm_eps=config.layer_norm_eps,
            cross_attention_frequency=config.cross_attention_freq,
            encoder_hidden_size=vision_width,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )
    )
