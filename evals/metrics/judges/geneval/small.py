"""GenEval in small: the same decision logic and summary on scenes, whose objects are read from the pixels exactly.

Prompts are those of `python -m lactok.data.scenes`; no network and no weights are needed. It says whether a generator
that was trained on scenes follows its prompts, and nothing of photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from evals.metrics.judges.geneval.logic import Detected, Options, Verdict, colour_questions, judge, keep
from evals.metrics.judges.geneval.score import GenEvalScore, columns
from lactok.data.scene_check import detect

LEAST_OVERLAP = 0.5
"""Soft IoU of an object with its silhouette's template from which it counts: the default of `scene_check.detect`.

It measures a shape, not a confidence, so the same value holds in the counting task, where GenEval asks its network for
more (0.9).
"""

OPTIONS = Options(threshold=LEAST_OVERLAP, counting_threshold=LEAST_OVERLAP)


def verdict(image: np.ndarray, metadata: Mapping[str, Any]) -> Verdict:
    """Whether a scene, uint8 (H, W, 3) RGB, is what GenEval's metadata ask for, and why not."""
    height, width = image.shape[:2]
    found = detect(image, LEAST_OVERLAP)
    scale = (width, height, width, height)
    detections = [
        Detected(one.class_name, tuple(v * side for v, side in zip(one.box, scale)), one.score) for one in found
    ]
    kept = keep(detections, metadata["tag"], OPTIONS)
    questions = colour_questions(metadata, kept)
    answers = [[found[number].colour for number in question.detections] for question in questions]
    return judge(metadata, detections, kept, answers, OPTIONS)


class GenEvalSmall(GenEvalScore):
    """GenEval's score of scenes."""

    name = "geneval-small"
    summary = "GenEval on scenes of coloured shapes, detected exactly (prompts of lactok.data.scenes)"
    prefix = "GenEval-small"
    columns = columns(prefix, "GenEval's rules on scenes of shapes")

    def verdicts(self, images: Tensor, metadata: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """By the detections of `lactok.data.scene_check`, image by image on the CPU."""
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        return [verdict(image, one) for image, one in zip(pixels, metadata, strict=True)]
