"""What GenEval's metrics share: how an item says what it asks for, the columns, and the summary by task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from evals.metrics.base import Column, ImageMetric
from evals.metrics.judges.geneval.logic import TASKS, Verdict
from evals.metrics.judges.geneval.summary import summarise
from lactok.interface import Item


def metadata_of(item: Item) -> dict[str, Any]:
    """GenEval's metadata of a prompt, from its tags: tag, include, exclude (dataset=prompts with a .jsonl file).

    Raises ValueError naming what is missing or of another form.
    """
    tags = item.tags
    include, exclude = _listed(tags.get("include")), _listed(tags.get("exclude", []))
    clauses = [*enumerate(include), *((0, clause) for clause in exclude)]
    if not ("include" in tags and all(_is_clause(clause, place) for place, clause in clauses)):
        raise ValueError(
            f"prompt {item.id} has no GenEval metadata (its tags: {', '.join(tags) or 'none'}): expected tag, include "
            "and exclude as in evaluation_metadata.jsonl; give that file, or one of its form, by dataset.root="
        )
    if tags.get("tag") not in TASKS:
        raise ValueError(f"prompt {item.id} has the tag {tags.get('tag')!r}: expected one of {', '.join(TASKS)}")
    return dict(tags)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _is_clause(clause: Any, place: int) -> bool:
    """Whether a clause has a class and a count, and a position, if any, of the form [relation, place of one before]."""
    if not isinstance(clause, dict) or not isinstance(clause.get("class"), str):
        return False
    if not isinstance(clause.get("count"), int):
        return False
    match clause.get("position"):
        case None:
            return True
        case [str(), int() as target]:
            return 0 <= target < place
    return False


def columns(prefix: str, what: str) -> tuple[Column, ...]:
    """Score, share of correct images, and a column a task. prefix: their first word; what: said in the legend."""
    return (
        Column(prefix, "higher", note=f"{what}: plain mean of the shares of correct images of the tasks", mean=False),
        Column(f"{prefix}-images", "higher", note="share of correct images of all tasks", shown=False),
        *(
            Column(f"{prefix}-{task}", "higher", note="share of correct images of this task", mean=False, shown=False)
            for task in TASKS
        ),
    )


class GenEvalScore(ImageMetric):
    """Each image is correct (1) or not (0); GenEval's summary is made of these. A subclass judges.

    prefix: of the names of the columns; the per-image value is `PREFIX-images`.
    """

    needs_reference = False
    prefix: ClassVar[str]

    @abstractmethod
    def verdicts(self, images: Tensor, metadata: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Whether each image is what its metadata ask for, and why not. images: uint8 (B, 3, H, W), of any size."""

    def embed(self, images: Tensor, items: Sequence[Item]) -> list[Verdict]:
        """The verdicts, one an image. Raises ValueError for items without metadata."""
        return self.verdicts(images, [metadata_of(item) for item in items])

    def score(self, reference: Any, embedding: Tensor, items: Sequence[Item]) -> dict[str, Tensor]:
        """1 for a correct image, else 0: float64 (B,)."""
        correct = [verdict.correct for verdict in embedding]
        return {f"{self.prefix}-images": torch.tensor(correct, dtype=torch.float64)}

    def reasons(self, embedding: Any) -> list[tuple[str, ...]]:
        """Why an image is not what its prompt asks for; () for a correct one."""
        return [verdict.reasons for verdict in embedding]

    @classmethod
    def summarise(cls, values: Mapping[str, np.ndarray], items: Sequence[Item]) -> dict[str, float]:
        """The score, and the share of each of the six tasks; NaN for a task without a prompt."""
        found = summarise([item.tags["tag"] for item in items], values[f"{cls.prefix}-images"])
        return {cls.prefix: found.overall} | {f"{cls.prefix}-{task}": found.tasks.get(task, np.nan) for task in TASKS}
