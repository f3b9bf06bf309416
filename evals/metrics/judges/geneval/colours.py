"""GenEval's colour classifier: OpenAI's CLIP ViT-L/14, by open_clip, on crops of detections.

Activations are QuickGELU's, with which the network was trained. open_clip's model `ViT-L-14` has plain GELU since its
version 3, whatever its tag, and GenEval ran a version in which the tag `openai` gave QuickGELU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from evals.metrics.judges.base import CLIP_VOCABULARY
from evals.metrics.judges.geneval.logic import COLOURS
from lactok.state_dict import errors_name
from lactok.weights import MissingWeights, UrlWeights, WeightsError, locate

if TYPE_CHECKING:
    from open_clip import CLIP

MODEL = "ViT-L-14-quickgelu"
SOURCE = UrlWeights(
    "https://openaipublic.azureedge.net/clip/models/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/"
    "ViT-L-14.pt",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
)
"""OpenAI's file, which GenEval's version of open_clip downloads; the address holds its sha256. open_clip 3 takes the
tag from the hub instead (timm/vit_large_patch14_clip_224.openai), in a file whose sha256 is not known here."""

_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's file has beside the weights."""

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
"""GenEval's; the embedding of a colour is their mean."""
SCALE = 100.0
"""Of cosines, as GenEval's classifier has it; it changes no answer."""


class ColourClassifier:
    """clip: a CLIP of open_clip, on the device where it works."""

    def __init__(self, clip: CLIP) -> None:
        from open_clip import image_transform

        self.clip = clip
        size = clip.visual.image_size
        # open_clip's default: bicubic to the short side, the centre, CLIP's mean and deviation
        self.preprocess = image_transform(size[0] if isinstance(size, tuple) else size, is_train=False)
        self._of_class: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @torch.no_grad()
    def answer(self, class_names: Sequence[str], crops: Sequence[Image.Image]) -> list[str]:
        """The colour of each crop, which shows an object of the class at its place. RGB images of any size."""
        return [COLOURS[place] for place in self.logits(class_names, crops).argmax(dim=1).tolist()]

    @torch.no_grad()
    def logits(self, class_names: Sequence[str], crops: Sequence[Image.Image]) -> Tensor:
        """float32 (N, 10): SCALE times the cosine of each crop with each of COLOURS."""
        if not crops:
            return torch.zeros(0, len(COLOURS), device=self.device)
        pixels = torch.stack([self.preprocess(crop) for crop in crops]).to(self.device)
        seen = self.clip.encode_image(pixels, normalize=True)
        asked = torch.stack([self._colours_of(name) for name in class_names])
        return SCALE * torch.einsum("nd,ncd->nc", seen, asked)

    def _colours_of(self, name: str) -> Tensor:
        """(10, D): the embedding of each colour of a class, of unit length."""
        if name not in self._of_class:
            from open_clip import get_tokenizer

            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            tokens = get_tokenizer(MODEL)(texts).to(self.device)
            each = self.clip.encode_text(tokens, normalize=True).unflatten(0, (len(COLOURS), len(TEMPLATES)))
            self._of_class[name] = normalize(each.mean(dim=1), dim=-1)
        return self._of_class[name]


def build(published: Mapping[str, Tensor], device: torch.device | str = "cpu", **sizes: Any) -> CLIP:
    """MODEL with weights under open_clip's names, float32, frozen, in eval mode. sizes: of a smaller one, as in
    open_clip's configurations (embed_dim, vision_cfg, text_cfg).

    Raises MissingWeights where open_clip can't be imported, WeightsError for other names or shapes.
    """
    clip = skeleton(**sizes)
    try:
        clip.load_state_dict({name: tensor.float() for name, tensor in published.items()}, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"this is not a checkpoint of CLIP {MODEL}: {' '.join(str(error).split())}") from error
    return clip.eval().requires_grad_(False).to(device)


def skeleton(**sizes: Any) -> CLIP:
    """The network before its weights; see `build`."""
    try:
        from open_clip import CLIP, get_model_config
    except ImportError as error:
        install = f"run `pip install {CLIP_VOCABULARY.requirement}`"
        raise MissingWeights(f"open_clip can't be imported ({error}); {install}") from error
    return CLIP(**((get_model_config(MODEL) or {}) | sizes))


def load(device: torch.device | str = "cpu") -> CLIP:
    """The published network. Raises lactok.weights.WeightsError when the package or its weights are not here."""
    locate(CLIP_VOCABULARY)
    path = locate(SOURCE)
    with errors_name(path):
        return build(read_openai(path), device)


def read_openai(path: Path) -> dict[str, Tensor]:
    """The weights in OpenAI's file, a TorchScript archive; only for a file that was verified, since it holds code.

    Raises WeightsError for another form.
    """
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except RuntimeError as error:
        raise WeightsError(f"it is no TorchScript archive: {' '.join(str(error).split())}") from error
    return {name: tensor for name, tensor in state.items() if name not in _SIZES}
