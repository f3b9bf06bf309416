"""GenEval's detector: an image to instances of the 80 COCO classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evals.metrics.judges.geneval.detector_input import prepared
from evals.metrics.judges.geneval.instances import Instances, instances

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 classes in the detector's order, under the names of GenEval's object_names.txt ("tv remote" for "remote",
"computer mouse" for "mouse", "computer keyboard" for "keyboard"), which its metadata use."""


class Detector:
    """network: of detector_weights, on the device where it works."""

    def __init__(self, network: Mask2FormerForUniversalSegmentation) -> None:
        self.network = network

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, classes + 1) and mask logits (B, Q, H / 4, W / 4) of the last decoder layer.

        pixels: float32 (B, 3, H, W), normalised and padded.
        """
        found = self.network(pixel_values=pixels)
        return found.class_queries_logits, found.masks_queries_logits

    @torch.no_grad()
    def __call__(self, images: Tensor, above: float = -1.0) -> list[Instances]:
        """The instances of each image. images: uint8 (B, 3, H, W) RGB; above: as in `instances`."""
        pixels, inside = prepared(images)
        padded = (pixels.shape[-2], pixels.shape[-1])
        original = (images.shape[-2], images.shape[-1])
        return [instances(*one, padded, inside, original, above=above) for one in zip(*self.logits(pixels))]
