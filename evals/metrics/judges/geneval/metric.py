"""GenEval as published: detector, colour classifier, decision logic, summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evals.metrics.judges.base import CLIP_VOCABULARY, original
from evals.metrics.judges.geneval import colours, detector_weights
from evals.metrics.judges.geneval.colours import ColourClassifier
from evals.metrics.judges.geneval.crops import crop
from evals.metrics.judges.geneval.detector import CLASSES, Detector
from evals.metrics.judges.geneval.instances import Instances
from evals.metrics.judges.geneval.logic import DEFAULTS, Detected, Verdict, colour_questions, judge, keep
from evals.metrics.judges.geneval.score import GenEvalScore, columns
from lactok.weights import WeightsSource, locate_all

if TYPE_CHECKING:
    from evals.metrics.judges.original.judges import OriginalDetector

MARGIN = 1e-3
"""Masks are made of pairs whose probability is above the lowest threshold less this, far more than rounding moves."""


class GenEval(GenEvalScore):
    """GenEval's score. Images are judged as they are, at their own size (GenEval's own are 512 to 1024 pixels).

    GenEval runs its networks under CUDA's autocast where it has a GPU; here they are float32 on every device.
    """

    name = "geneval"
    summary = "GenEval: objects, counts, colours and places that a prompt asks for (Ghosh et al. 2023)"
    prefix = "GenEval"
    protocol_fields = ("judges",)
    columns = columns(prefix, "Ghosh et al. 2023, Mask2Former Swin-S and CLIP ViT-L/14")

    def __init__(self, detector: Detector | OriginalDetector, classifier: ColourClassifier) -> None:
        self.detector = detector
        self.classifier = classifier

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        return detector_weights.SOURCE, CLIP_VOCABULARY, colours.SOURCE

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> GenEval:
        """With the published networks; the detector is mmdetection's own where settings["judges"] is "original".

        Raises one MissingWeights that names every file or package that is not here.
        """
        locate_all(cls.weights())
        if settings.get("judges") == "original":
            from evals.metrics.judges.original.judges import OriginalDetector

            return cls(OriginalDetector.build(device), ColourClassifier(colours.load(device)))
        return cls(Detector(detector_weights.load(device)), ColourClassifier(colours.load(device)))

    @classmethod
    def backend(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return original("mmdet", settings)

    @torch.no_grad()
    def verdicts(self, images: Tensor, metadata: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """The verdict on each image, with its reasons. All crops of a batch pass the classifier at once.

        images: uint8 (B, 3, H, W) RGB; metadata: one an image.
        """
        least = min(DEFAULTS.threshold, DEFAULTS.counting_threshold)
        found = self.detector(images, above=least - MARGIN)
        detections = [_detections(one) for one in found]
        kept = [keep(seen, one["tag"]) for seen, one in zip(detections, metadata, strict=True)]
        questions = [colour_questions(one, chosen) for one, chosen in zip(metadata, kept)]
        names, crops = [], []
        for place, asked in enumerate(questions):
            for question in asked:
                for number in question.detections:
                    names.append(question.class_name)
                    box = detections[place][number].box
                    crops.append(crop(images[place], box, found[place].masks[number]))
        answers = iter(self.classifier.answer(names, crops))
        return [
            judge(one, seen, chosen, [[next(answers) for _ in question.detections] for question in asked])
            for one, seen, chosen, asked in zip(metadata, detections, kept, questions)
        ]


def _detections(found: Instances) -> list[Detected]:
    rows = zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist())
    return [Detected(CLASSES[label], (box[0], box[1], box[2], box[3]), score) for label, box, score in rows]
