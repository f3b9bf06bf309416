"""What preference judges share: prompts, batches, and the preprocessing of pictures, on the device.

A judge reads an image and the prompt in `Item.payload`, and gives one number an image. The published preprocessings
start from Pillow images; Pillow's bicubic resize of 8-bit images is done here in exact integer arithmetic, so that
every device gives its very bytes. They are those of Pillow 13, which shrinks images along their columns first where
that is the larger part; Pillows before 13 always took rows first, and give some bytes of images more than about twice
as high as wide otherwise by 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.metrics.base import ImageMetric
from lactok.interface import Item
from lactok.weights import DistributionWeights, WeightsError

if TYPE_CHECKING:
    from PIL import Image

    Picture = Tensor | Image.Image

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in [0, 1]: all three judges take them
STD = (0.26862954, 0.26130258, 0.27577711)
WITHOUT = "leave this metric out of metrics=[...]"
"""What is left to a user without network."""
CLIP_VOCABULARY = DistributionWeights(
    "open_clip_torch",
    "open_clip/bpe_simple_vocab_16e6.txt.gz",
    "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    "open_clip_torch==3.3.0",
)
"""The byte pairs of CLIP's tokenizer, OpenAI's file."""

_FRACTION_BITS = 22  # Pillow, Resample.c: PRECISION_BITS of 8-bit images
_CUBIC_A = -0.5  # Pillow, Resample.c: bicubic_filter
_CUBIC_SUPPORT = 2.0  # pixels each side, at scale 1


class Judge(ImageMetric):
    """A network that says how much people would prefer an image, given its prompt.

    `embed` gives the network's features of the images, `score` reads the prompts beside them. An image's value depends
    on that image and its prompt alone; batches change it by rounding only (tested: 1e-5 in float32).
    """

    needs_reference = False
    protocol_fields = ("judges",)
    device: torch.device

    @classmethod
    def backend(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """See `Metric.backend`; a judge with an original overrides this."""
        return original(None, settings)

    @abstractmethod
    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of any size to the network's input, float32 (B, 3, S, S)."""

    @abstractmethod
    def judge(self, embedding: Tensor, prompts: Sequence[str]) -> Tensor:
        """The values (B,) of B images with these features and prompts, in any float dtype."""

    def score(self, reference: Any, embedding: Tensor, items: Sequence[Item]) -> dict[str, Tensor]:
        """The column's values, float64 (B,). Raises ValueError for an item without a prompt."""
        return {self.columns[0].name: self.judge(embedding, prompts_of(items)).double()}

    def rate(self, pictures: Sequence[Picture], prompts: Sequence[str], batch: int = 16) -> Tensor:
        """The values of pictures of any sizes with a prompt each, float64 (N,) on the CPU.

        pictures: uint8 (3, H, W), or Pillow images of any mode, converted to RGB as the published codes do
        (transparency is dropped). Raises ValueError when the numbers differ.
        """
        if len(pictures) != len(prompts):
            raise ValueError(f"{len(pictures)} pictures and {len(prompts)} prompts")
        values = [torch.empty(0, dtype=torch.float64)]
        for start in range(0, len(pictures), batch):
            part = slice(start, start + batch)
            pixels = [self.preprocess(rgb(picture).to(self.device)[None]) for picture in pictures[part]]
            with torch.no_grad():
                embedding = self.features_of(torch.cat(pixels))
                values.append(self.judge(embedding, prompts[part]).double().cpu())
        return torch.cat(values)

    @abstractmethod
    def features_of(self, pixels: Tensor) -> Tensor:
        """What `judge` takes of preprocessed images."""

    @torch.no_grad()
    def embed(self, images: Tensor, items: Sequence[Item]) -> Tensor:
        """The network's features of a batch. images: uint8 (B, 3, H, W) on the judge's device."""
        return self.features_of(self.preprocess(images))


def original(package: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the published package adds to a judge's identity; {} where settings["judges"] is "ported".

    package: a key of ENVIRONMENTS, None of a judge that has none. Raises lactok.weights.MissingWeights where its
    environment is not here, WeightsError where there is none to make.
    """
    if settings.get("judges") != "original":
        return {}
    if package is None:
        raise WeightsError(
            "judges.backend=original: this judge's package is not among those that can be installed (imagereward and "
            "geneval have one): leave it out of metrics=[...], or score it with judges.backend=ported"
        )
    from evals.metrics.judges.original.environments import ENVIRONMENTS

    return ENVIRONMENTS[package].identity()


def prompts_of(items: Sequence[Item]) -> list[str]:
    """The items' prompts. Raises ValueError naming the first item that has none."""
    for item in items:
        if not item.payload:
            raise ValueError(f"item {item.id} has no prompt: a judge needs one (datasets of prompts have them)")
    return [item.payload for item in items]


def rgb(picture: Picture) -> Tensor:
    """A picture as uint8 (3, H, W). Raises ValueError for a tensor of another form."""
    if not isinstance(picture, Tensor):
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(f"a picture of {picture.dtype} {tuple(picture.shape)}: expected uint8 (3, H, W)")
    return picture


def fill_buffers(module: nn.Module) -> None:
    """Give the position ids of transformers' networks, which no checkpoint holds, values where they lie on meta.

    Raises ValueError for another tensor that is still there after loading.
    """
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta and name == "position_ids":
                part.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
    if left := [name for name, tensor in tensors_of(module) if tensor.is_meta]:
        raise ValueError(f"no values for {', '.join(left)}")


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those that no checkpoint holds too."""
    yield from module.named_parameters()
    yield from module.named_buffers()


# --- preprocessing ---------------------------------------------------------------------------------------------------


def normalised(pixels: Tensor) -> Tensor:
    """RGB in [0, 1], float32 (B, 3, H, W), less MEAN over STD."""
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def shortest_to(images: Tensor, side: int, offset: Callable[[int], int]) -> Tensor:
    """Images with their shortest side resized to `side` as Pillow does, and the square in their middle.

    images: uint8 (B, 3, H, W); gives the same of (B, 3, side, side). The other side is rounded down (torchvision's
    `Resize`, transformers' `shortest_edge`). offset: pixels left out before the square, of those left out on both
    sides; the libraries round halves differently.
    """
    height, width = images.shape[-2:]
    short, long = sorted((height, width))
    sizes = (side, int(side * long / short))
    new_height, new_width = sizes if height <= width else sizes[::-1]
    top, left = offset(new_height - side), offset(new_width - side)
    across, down = _taps(width, new_width, left, side), _taps(height, new_height, top, side)
    x, y = (None if t.weights is None else torch.from_numpy(t.weights).to(images.device) for t in (across, down))
    rows_first = not 0 < height - new_height > 2 * (width - new_width)  # Pillow 13, Resample.c: horizontal_first
    read = images[:, :, down.start : down.stop, across.start : across.stop]
    return torch.stack([_resampled(image, x, y, rows_first) for image in read])


def torchvision_offset(spare: int) -> int:
    """Of `CenterCrop`: the half, to even."""
    return round(spare / 2)


def transformers_offset(spare: int) -> int:
    """Of `center_crop` in transformers' image processors: the half, rounded down."""
    return spare // 2


@dataclass(frozen=True, eq=False)
class _Taps:
    """A resize along one side. start, stop: the inputs that are read; weights: integers (stop - start, outputs),
    float64; None where the inputs are kept as they are."""

    start: int
    stop: int
    weights: np.ndarray | None


@lru_cache(maxsize=16)
def _taps(length: int, new_length: int, first: int, count: int) -> _Taps:
    """For outputs `first` to `first + count` of a resize to `new_length` (Pillow, Resample.c: precompute_coeffs, then
    normalize_coeffs_8bpc, in their order of operations)."""
    if new_length == length:
        return _Taps(first, first + count, None)
    scale = length / new_length
    reach = max(scale, 1.0)
    support = _CUBIC_SUPPORT * reach
    centres = (np.arange(first, first + count) + 0.5) * scale
    low = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centres + support + 0.5).astype(np.int64), length)
    inside = np.arange((high - low).max()) < (high - low)[:, None]
    inputs = low[:, None] + np.arange(inside.shape[1])
    weights = _bicubic((inputs - centres[:, None] + 0.5) * (1.0 / reach)) * inside
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    rounded = np.trunc(weights * (1 << _FRACTION_BITS) + np.where(weights < 0, -0.5, 0.5))
    start, stop = int(low.min()), int(high.max())
    matrix = np.zeros((count, stop - start))
    outputs = np.broadcast_to(np.arange(count)[:, None], inside.shape)
    matrix[outputs[inside], (inputs - start)[inside]] = rounded[inside]
    return _Taps(start, stop, np.ascontiguousarray(matrix.T))


def _bicubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), _CUBIC_A
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _resampled(image: Tensor, across: Tensor | None, down: Tensor | None, rows_first: bool) -> Tensor:
    """One image, uint8 (3, H, W): along its rows and along its columns, rounded to 8 bits after each, as in Pillow."""
    if not rows_first:
        return _along(_along(image.transpose(1, 2), down).transpose(1, 2), across)
    return _along(_along(image, across).transpose(1, 2), down).transpose(1, 2)


def _along(image: Tensor, weights: Tensor | None) -> Tensor:
    """uint8 (3, N, inputs) to (3, N, outputs). Sums stay below 2^31, which float64 holds exactly in any order."""
    if weights is None:
        return image
    sums = image.double() @ weights
    half = 1 << (_FRACTION_BITS - 1)
    return ((sums + half) / (1 << _FRACTION_BITS)).floor().clamp(0, 255).byte()


def longest_to(images: Tensor, side: int, antialias: bool = True) -> Tensor:
    """Images with their longest side resized to `side`, black around them: float32 (B, 3, side, side) in about [0, 1].

    images: uint8 (B, 3, H, W). As the package hpsv2 does (hpsv2/src/open_clip/transform.py, ResizeMaxSize): on floats,
    each side rounded (here to one pixel at least), values beyond [0, 1] kept, the smaller half of the border first.
    An image whose longest side has that length already is padded too; the package would leave it, and its network
    take squares alone. antialias: of the resize; torchvision's default since 0.17, off before.
    """
    pixels = images.float() / 255
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    new_height, new_width = (max(1, round(length * scale)) for length in (height, width))
    if scale != 1.0:
        pixels = F.interpolate(
            pixels, size=(new_height, new_width), mode="bicubic", align_corners=False, antialias=antialias
        )
    down, right = side - new_height, side - new_width
    return F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
