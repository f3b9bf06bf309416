"""GenEval's score: the plain mean of its tasks' shares of correct images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Shares in [0, 1]. tasks: by task in order of appearance; overall: their plain mean; images: of all images."""

    tasks: dict[str, float]
    overall: float
    images: float


def summarise(tags: Sequence[str], correct: np.ndarray) -> Summary:
    """tags: the task of each of N prompts; correct: 0 or 1, float64 (S, N), S images of each prompt.

    Raises ValueError for no prompt at all, or another shape.
    """
    correct = np.asarray(correct, np.float64)
    if correct.ndim != 2 or not correct.size or correct.shape[1] != len(tags):
        raise ValueError(f"correct is of shape {correct.shape} for {len(tags)} prompts: expected (images, prompts)")
    numbers = {tag: place for place, tag in enumerate(dict.fromkeys(tags))}
    labels = np.array([numbers[tag] for tag in tags])
    shares = np.bincount(labels, weights=correct.mean(axis=0)) / np.bincount(labels)
    return Summary(dict(zip(numbers, shares.tolist())), float(shares.mean()), float(correct.mean()))
