"""Judges whose values the published packages give, in their own processes (judges.backend=original)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.metrics.judges.base import prompts_of
from evals.metrics.judges.geneval import detector_weights
from evals.metrics.judges.geneval.instances import Instances
from evals.metrics.judges.image_reward import CHECKPOINT, VOCABULARY, ImageReward
from evals.metrics.judges.original.environments import ENVIRONMENTS
from evals.metrics.judges.original.process import OriginalProcess
from lactok.interface import Item
from lactok.state_dict import find_state_dict
from lactok.weights import load_state_dict, load_tensors, locate


class OriginalImageReward(ImageReward):
    """ImageReward by the package image-reward: its networks, its tokenizer's code, its preprocessing by Pillow."""

    def __init__(self, process: OriginalProcess) -> None:
        """process: of image-reward, loaded."""
        self.process = process

    @classmethod
    def start(cls, tensors: Mapping[str, Tensor], vocabulary: Path, device: torch.device) -> OriginalImageReward:
        """With the tensors of a file like `ImageReward.pt`, and bert-base-uncased's vocabulary.

        Raises lactok.weights.MissingWeights where the environment is not here, OriginalError.
        """
        process = OriginalProcess("image-reward", ENVIRONMENTS["image-reward"].require())
        process.load(tensors, device, vocabulary=str(vocabulary))
        return cls(process)

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> OriginalImageReward:
        """With the published files. Raises as `start`, and WeightsError."""
        return cls.start(find_state_dict(load_tensors(CHECKPOINT)), locate(VOCABULARY), device)

    def embed(self, images: Tensor, items: Sequence[Item]) -> Tensor:
        """The images themselves: the package takes image and prompt together."""
        return images

    def score(self, reference: Any, embedding: Tensor, items: Sequence[Item]) -> dict[str, Tensor]:
        """As ImageReward's. Raises OriginalError, ValueError for an item without a prompt."""
        answer = self.process.score(list(embedding), prompts=prompts_of(items))
        return {self.columns[0].name: answer["scores"]}


class OriginalDetector:
    """GenEval's detector by mmdetection, with its own preprocessing and post-processing: as `Detector` is called."""

    def __init__(self, process: OriginalProcess) -> None:
        """process: of mmdet, loaded."""
        self.process = process

    @classmethod
    def start(cls, tensors: Mapping[str, Tensor], device: torch.device) -> OriginalDetector:
        """With a checkpoint's tensors under mmdetection's names, of 2 or 3.

        Raises lactok.weights.MissingWeights where the environment is not here, OriginalError.
        """
        process = OriginalProcess("mmdet", ENVIRONMENTS["mmdet"].require())
        process.load(detector_weights.as_in_mmdet_3(tensors), device)
        return cls(process)

    @classmethod
    def build(cls, device: torch.device) -> OriginalDetector:
        """With the published file. Raises as `start`, and WeightsError."""
        state = load_state_dict(locate(detector_weights.SOURCE))
        return cls.start(find_state_dict(state, ("state_dict",)), device)

    def __call__(self, images: Tensor, above: float = -1.0) -> list[Instances]:
        """The instances of each image, those of a score above `above`, best first. images: uint8 (B, 3, H, W) RGB."""
        answer = self.process.score(list(images))
        found = []
        for place in range(len(images)):
            scores = answer[f"{place}.scores"].float()
            order = scores.argsort(descending=True, stable=True)
            order = order[scores[order] > above]
            parts = (answer[f"{place}.{name}"][order].to(images.device) for name in ("labels", "boxes", "masks"))
            labels, boxes, masks = parts
            found.append(Instances(labels, scores[order].to(images.device), boxes.float(), masks.bool()))
        return found
