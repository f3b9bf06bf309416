"""ImageReward v1.0 (Xu et al., NeurIPS 2023): BLIP's text encoder reads the prompt beside the image; a reward, about -2
to 2, is read off its first token.

The networks are transformers' BLIP vision and text models; the checkpoint is the authors' own (`ImageReward.pt`).
Constants without another source are those of the published package (image-reward 1.5, ImageReward.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evals.metrics.base import Column
from evals.metrics.judges.base import (
    WITHOUT,
    Judge,
    fill_buffers,
    normalised,
    original,
    shortest_to,
    torchvision_offset,
)
from lactok.state_dict import Rules, StateDictAdapter, find_state_dict, meta_skeleton, rename
from lactok.weights import HubWeights, WeightsSource, load_tensors, locate

CHECKPOINT = HubWeights(
    "zai-org/ImageReward", "ImageReward.pt", "5736be03b2652728fb87788c9797b0570450ab72", otherwise=WITHOUT
)
VOCABULARY = HubWeights(
    "google-bert/bert-base-uncased",
    "vocab.txt",
    "86b5e0934494bd15c9632b12f734a8a67f723594",
    "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    otherwise=WITHOUT,
)
TOKENS = 35
"""Places of a prompt: padded and cut to them."""
HEAD = (1024, 128, 64, 16, 1)
"""Widths of the reward's linear layers; nothing but dropout is between them."""
HEAD_PLACES = (0, 2, 4, 6, 7)
"""Their places in the published `nn.Sequential`, dropouts counted."""


@dataclass(frozen=True)
class ImageRewardConfig:
    """Sizes of the networks; by default the published ones.

    reward_mean, reward_std: of the raw rewards, by which a reward is standardised.
    """

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_depth: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    vocabulary: int = 30524  # bert-base-uncased's 30522, [DEC] and [ENC]
    positions: int = 512
    reward_mean: float = 0.16717362830052426
    reward_std: float = 1.0333394966054072


class ImageRewardNet(nn.Module):
    """Images and token ids to rewards."""

    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        self.config = config
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_size=config.vision_width,
                intermediate_size=4 * config.vision_width,
                num_hidden_layers=config.vision_depth,
                num_attention_heads=config.vision_heads,
                hidden_act="gelu",
                layer_norm_eps=1e-6,
            )
        )
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.text_width,
                encoder_hidden_size=config.vision_width,
                intermediate_size=config.text_hidden,
                num_hidden_layers=config.text_depth,
                num_attention_heads=config.text_heads,
                max_position_embeddings=config.positions,
                hidden_act="gelu",
                layer_norm_eps=1e-12,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=None,
                sep_token_id=None,
                is_decoder=True,  # there are layers of cross-attention
            ),
            add_pooling_layer=False,
        )
        widths = (config.text_width, *HEAD)
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def image_features(self, pixels: Tensor) -> Tensor:
        """All of the vision model's tokens, (B, 1 + patches, vision_width). pixels: normalised (B, 3, S, S)."""
        return self.vision(pixel_values=pixels).last_hidden_state

    def text_states(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The text encoder's last states, (B, tokens, text_width). ids, mask: int64 (B, tokens); mask 0: padding."""
        return self.text(  # is_decoder=True in the call would make attention causal
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=image.device),
            is_decoder=False,
        ).last_hidden_state

    def raw(self, states: Tensor) -> Tensor:
        """The head's output, (B, 1), of the text encoder's states."""
        x = states[:, 0].float()
        for layer in self.head:
            x = layer(x)
        return x

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Rewards, float32 (B, 1). image: from `image_features`."""
        return (self.raw(self.text_states(image, ids, mask)) - self.config.reward_mean) / self.config.reward_std


class ImageRewardAdapter(StateDictAdapter[ImageRewardNet]):
    """transformers' names <-> those of `ImageReward.pt`."""

    model_name = "ImageReward"
    rules: ClassVar[Rules] = (
        (r"^text\.", "blip.text_encoder."),
        *((rf"^head\.{ours}\.", f"mlp.layers.{place}.") for ours, place in enumerate(HEAD_PLACES)),
    )
    vision: ClassVar[Rules] = (
        (r"^vision\.", "blip.visual_encoder."),
        (r"embeddings\.class_embedding", "cls_token"),
        (r"embeddings\.position_embedding", "pos_embed"),
        (r"embeddings\.patch_embedding", "patch_embed.proj"),
        (r"encoder\.layers\.", "blocks."),
        (r"layer_norm", "norm"),
        (r"self_attn\.qkv", "attn.qkv"),
        (r"self_attn\.projection", "attn.proj"),
        (r"post_layernorm", "norm"),
    )

    def published_name(self, name: str) -> str:
        return rename(name, self.vision if name.startswith("vision.") else self.rules)

    def is_unused(self, published_name: str, model: ImageRewardNet) -> bool:
        """BLIP's two projections, which take no part in the reward, and a buffer that counts positions."""
        return published_name.startswith(("blip.vision_proj.", "blip.text_proj.")) or published_name.endswith(
            ".position_ids"
        )


def build(published: Mapping[str, Tensor], config: ImageRewardConfig | None = None) -> ImageRewardNet:
    """The network with weights under the published names, in eval mode.

    Raises lactok.weights.CheckpointMismatch listing names and shapes that do not fit.
    """
    net = ImageRewardAdapter().load(meta_skeleton(ImageRewardNet, config or ImageRewardConfig()), dict(published))
    fill_buffers(net)
    return net.eval().requires_grad_(False)


def tokenizer(vocabulary: Mapping[str, int] | str) -> Any:
    """bert-base-uncased's WordPieces with BLIP's two tokens at the end, which no prompt but one that spells them holds.

    vocabulary: its path, or words to ids.
    """
    from transformers import BertTokenizer

    made = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    made.add_special_tokens({"bos_token": "[DEC]"})
    made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return made


class ImageReward(Judge):
    """ImageReward of each image with its prompt: unbounded, about -2 to 2; float32."""

    name = "imagereward"
    summary = "ImageReward v1.0: preference for an image, given its prompt"
    columns = (Column("ImageReward", "higher", note="ImageReward v1.0 (Xu et al. 2023), with the item's prompt"),)

    def __init__(self, network: ImageRewardNet, tokenizer: Any) -> None:
        """network: from `build`, on its device; tokenizer: from `tokenizer`."""
        self.network, self.tokenizer = network, tokenizer
        self.device = next(network.parameters()).device

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        return CHECKPOINT, VOCABULARY

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> ImageReward:
        """With the published networks; the package image-reward itself where settings["judges"] is "original".

        Raises lactok.weights.MissingWeights, CheckpointMismatch.
        """
        if settings.get("judges") == "original":
            from evals.metrics.judges.original.judges import OriginalImageReward

            return OriginalImageReward.build(device, settings)
        net = build(find_state_dict(load_tensors(CHECKPOINT)))
        return cls(net.to(device), tokenizer(str(locate(VOCABULARY))))

    @classmethod
    def backend(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return original("image-reward", settings)

    def preprocess(self, images: Tensor) -> Tensor:
        """The shortest side to the network's, the square in the middle (Pillow's bytes), CLIP's mean and deviation."""
        cropped = shortest_to(images, self.network.config.image_size, torchvision_offset)
        return normalised(cropped.float() / 255)

    def features_of(self, pixels: Tensor) -> Tensor:
        return self.network.image_features(pixels)

    @torch.no_grad()
    def judge(self, embedding: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        return self.network(embedding, tokens.input_ids, tokens.attention_mask)[:, 0]
