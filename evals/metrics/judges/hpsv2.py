"""Human Preference Score v2 (Wu et al. 2023): the cosine of a fine-tuned CLIP ViT-H/14's image and text features.

There are two checkpoints, 2.0 and 2.1, whose scores do not compare; each has a metric and a column of its own, and
every name says which. A score is the plain cosine, about 0.2 to 0.35: what the package's `score` gives. Its benchmark
tables print it times 100. The network is open_clip's, of which the published package holds a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from evals.metrics.base import Column
from evals.metrics.judges.base import CLIP_VOCABULARY, WITHOUT, Judge, fill_buffers, longest_to, normalised
from lactok.state_dict import StateDictAdapter, find_state_dict, meta_skeleton
from lactok.weights import HubWeights, MissingWeights, WeightsSource, load_tensors, locate

if TYPE_CHECKING:
    from open_clip.model import CLIP

_REPOSITORY = "xswu/HPSv2"
_REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"
CHECKPOINTS = {
    "2.0": HubWeights(_REPOSITORY, "HPS_v2_compressed.pt", _REVISION, otherwise=WITHOUT),
    "2.1": HubWeights(
        _REPOSITORY,
        "HPS_v2.1_compressed.pt",
        _REVISION,
        "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
        otherwise=WITHOUT,
    ),
}


@dataclass(frozen=True)
class HpsConfig:
    """open_clip's configuration of a CLIP; by default its ViT-H-14. vision, text: fields of CLIPVisionCfg, CLIPTextCfg;
    more: other arguments of its class."""

    embed_dim: int = 1024
    vision: Mapping[str, Any] = field(
        default_factory=lambda: dict(image_size=224, layers=32, width=1280, head_width=80, patch_size=14)
    )
    text: Mapping[str, Any] = field(
        default_factory=lambda: dict(context_length=77, vocab_size=49408, width=1024, heads=16, layers=24)
    )
    more: Mapping[str, Any] = field(default_factory=dict)


class HpsAdapter(StateDictAdapter["CLIP"]):
    """The names are open_clip's own."""

    model_name = "HPSv2 (open_clip's ViT-H-14)"

    def published_name(self, name: str) -> str:
        return name


def empty(config: HpsConfig) -> CLIP:
    """The network without values. Raises MissingWeights where open_clip is not installed."""
    try:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    except ImportError as error:
        raise MissingWeights(
            f"HPSv2 needs the package open_clip_torch ({error}); run `pip install {CLIP_VOCABULARY.requirement}`"
        ) from error
    return CLIP(config.embed_dim, CLIPVisionCfg(**config.vision), CLIPTextCfg(**config.text), **config.more)


def build(published: Mapping[str, Tensor], config: HpsConfig | None = None) -> CLIP:
    """The network with weights under the published names, in eval mode.

    Raises lactok.weights.CheckpointMismatch listing names and shapes that do not fit.
    """
    net = HpsAdapter().load(meta_skeleton(empty, config or HpsConfig()), dict(published))
    if net.attn_mask is not None and net.attn_mask.is_meta:  # no checkpoint holds it
        places = net.attn_mask.shape[-1]
        net.attn_mask = torch.full((places, places), -torch.inf).triu(1)
    fill_buffers(net)
    return net.eval().requires_grad_(False)


def side_of(network: CLIP) -> int:
    """Pixels a side of the squares that it takes."""
    return network.visual.image_size[0]


class HpsV2(Judge):
    """HPSv2 of each image with its prompt: the cosine, -1 to 1; float32.

    The published runs are under CUDA's float16 autocast, about 1e-3 from these values.
    """

    release: ClassVar[str]

    def __init__(self, network: CLIP, tokenizer: Any, antialias: bool = True) -> None:
        """network: from `build`, on its device; tokenizer: texts to ids (N, places), open_clip's.

        antialias: of the resize. On: what the package gives with torchvision 0.17 and later; off: with those before.
        """
        self.network, self.tokenizer, self.antialias = network, tokenizer, antialias
        self.device = network.logit_scale.device

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        return CHECKPOINTS[cls.release], CLIP_VOCABULARY

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> HpsV2:
        """With the published network. Raises lactok.weights.MissingWeights, CheckpointMismatch."""
        vocabulary = str(locate(CLIP_VOCABULARY))
        net = build(find_state_dict(load_tensors(CHECKPOINTS[cls.release]), ("state_dict",)))
        from open_clip.tokenizer import SimpleTokenizer

        return cls(net.to(device), SimpleTokenizer(bpe_path=vocabulary, context_length=net.context_length))

    def preprocess(self, images: Tensor) -> Tensor:
        """The longest side to the network's, black around the rest, CLIP's mean and deviation."""
        return normalised(longest_to(images, side_of(self.network), self.antialias))

    def features_of(self, pixels: Tensor) -> Tensor:
        """Image features of unit length, (B, embed_dim)."""
        return self.network.encode_image(pixels, normalize=True)

    @torch.no_grad()
    def judge(self, embedding: Tensor, prompts: Sequence[str]) -> Tensor:
        text = self.network.encode_text(self.tokenizer(list(prompts)).to(self.device), normalize=True)
        return (embedding * text).sum(dim=1)


class HpsV20(HpsV2):
    """HPSv2 with the checkpoint 2.0, the package's default in `score`."""

    name = "hpsv2-2.0"
    summary = "Human Preference Score v2.0, plain cosine"
    release = "2.0"
    columns = (Column("HPSv2-2.0", "higher", digits=4, note="HPSv2, checkpoint 2.0 (Wu et al. 2023), plain cosine"),)


class HpsV21(HpsV2):
    """HPSv2 with the checkpoint 2.1, the package's default in `evaluate`."""

    name = "hpsv2-2.1"
    summary = "Human Preference Score v2.1, plain cosine"
    release = "2.1"
    columns = (Column("HPSv2-2.1", "higher", digits=4, note="HPSv2, checkpoint 2.1 (Wu et al. 2023), plain cosine"),)
