"""GenEval's decision logic: which detections count, and whether they are what a prompt's metadata ask for.

An image is judged in three steps. `keep` chooses detections, `colour_questions` lists those whose colour the metadata
ask for, and `judge` decides, given the answers. Questions do not depend on answers, so that a caller can ask those of
many images at once. Scores, boxes and thresholds are compared in float32, as published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's ten colour words, in its order, which is also the order in which a reason lists the colours found."""

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The values of `tag` in GenEval's metadata, in its order."""

COUNTING = "counting"
"""The task with a threshold of its own."""

NEAR = np.float32(1e-3)
"""Offsets of centres below this, in pixels on both axes after shrinking, are no relation (GenEval's constant)."""

ALONG = np.float32(0.5)
"""An axis counts where it makes up more than this of the offset (GenEval's constant; so two relations may hold)."""


@dataclass(frozen=True)
class Options:
    """The settings that GenEval takes on its command line, with its defaults.

    threshold: scores must be above it; counting_threshold: the same in the task `counting`. max_objects: most
    detections a class, the best. max_overlap: of two detections of a class whose IoU is this or more the worse one is
    left out; 1 or more: none is. position_threshold: share of both objects' widths (heights) by which an offset of
    their centres shrinks.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


DEFAULTS = Options()


@dataclass(frozen=True)
class Detected:
    """One detection. box: x0, y0, x1, y1 in pixels; score: the detector's confidence in [0, 1]."""

    class_name: str
    box: tuple[float, float, float, float]
    score: float


Kept = Mapping[str, Sequence[int]]
"""Class name to the numbers of its surviving detections, best first; no class without one."""


@dataclass(frozen=True)
class Question:
    """What the colour classifier is asked: the colours of these detections, which are of this class."""

    class_name: str
    detections: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """reasons: one line a failure, in GenEval's words; "" joined by line breaks where there is none."""

    correct: bool
    reasons: tuple[str, ...]


def keep(detections: Sequence[Detected], tag: str, options: Options = DEFAULTS) -> dict[str, list[int]]:
    """The detections that count, by class. tag: the metadata's task.

    Equal scores, whose order GenEval leaves open, keep the order in which they are given.
    """
    least = np.float32(options.counting_threshold if tag == COUNTING else options.threshold)
    scores = np.array([found.score for found in detections], np.float32)
    boxes = np.array([found.box for found in detections], np.float32).reshape(-1, 4)
    by_class: dict[str, list[int]] = {}
    for number in np.argsort(-scores, kind="stable").tolist():
        if scores[number] > least:
            by_class.setdefault(detections[number].class_name, []).append(number)
    return {name: _apart(numbers[: options.max_objects], boxes, options) for name, numbers in by_class.items()}


def _apart(numbers: list[int], boxes: np.ndarray, options: Options) -> list[int]:
    """Those that overlap no better one too much. numbers: best first."""
    if options.max_overlap >= 1:
        return numbers
    chosen: list[int] = []
    for number in numbers:
        if all(_iou(boxes[better], boxes[number]) < options.max_overlap for better in chosen):
            chosen.append(number)
    return chosen


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) whose last pixels count too: a side is x1 - x0 + 1."""

    def area(x0: Any, y0: Any, x1: Any, y1: Any) -> float:
        return max(x1 - x0 + 1, 0) * max(y1 - y0 + 1, 0)

    shared = area(*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:]))
    union = area(*a) + area(*b) - shared
    return shared / union if union else 0.0


def colour_questions(metadata: Mapping[str, Any], kept: Kept) -> list[Question]:
    """What `judge` must know of colours, in its order: the best detections of each clause that asks for a colour."""
    questions = []
    for clause in metadata.get("include", ()):
        found = kept.get(clause["class"], ())[: clause["count"]]
        if "color" in clause and len(found) >= clause["count"]:
            questions.append(Question(clause["class"], tuple(found)))
    return questions


def judge(
    metadata: Mapping[str, Any],
    detections: Sequence[Detected],
    kept: Kept,
    answers: Sequence[Sequence[str]],
    options: Options = DEFAULTS,
) -> Verdict:
    """Whether an image is what the metadata ask for. metadata: a line of GenEval's evaluation_metadata.jsonl.

    kept: of `keep`. answers: to each of `colour_questions`, in their order, a colour a detection; one colour too many
    or too few raises ValueError.
    """
    questions = colour_questions(metadata, kept)
    if [len(answer) for answer in answers] != [len(question.detections) for question in questions]:
        raise ValueError(f"{len(answers)} answers for {len(questions)} questions, or of other lengths")
    remaining = iter(answers)
    boxes = [np.array(found.box, np.float32) for found in detections]
    reasons: list[str] = []
    matched: list[Sequence[int] | None] = []  # a clause's detections, None where it failed
    for clause in metadata.get("include", ()):
        found = kept.get(clause["class"], ())[: clause["count"]]
        colours = next(remaining) if "color" in clause and len(found) >= clause["count"] else None
        reason = _missed(clause, len(found), colours) or _misplaced(clause, found, matched, boxes, options)
        matched.append(None if reason else found)
        reasons += [reason] * bool(reason)
    for clause in metadata.get("exclude", ()):
        name, count = clause["class"], clause["count"]
        if len(kept.get(name, ())) >= count:
            reasons.append(f"expected {name}<{count}, found {len(kept.get(name, ()))}")
    return Verdict(not reasons, tuple(reasons))


def _missed(clause: Mapping[str, Any], found: int, colours: Sequence[str] | None) -> str:
    """Why a clause's number or colour is not met; "" where both are."""
    name, count = clause["class"], clause["count"]
    if found < count:
        return f"expected {name}>={count}, found {found}"
    if colours is None:
        return ""
    right = sum(colour == clause["color"] for colour in colours)
    if right >= count:
        return ""
    others = ", ".join(f"{list(colours).count(colour)} {colour}" for colour in COLOURS if colour in colours)
    return f"expected {clause['color']} {name}>={count}, found {right} {clause['color']}; and {others}"


def _misplaced(
    clause: Mapping[str, Any],
    found: Sequence[int],
    matched: Sequence[Sequence[int] | None],
    boxes: Sequence[np.ndarray],
    options: Options,
) -> str:
    """Why a clause's place is not met: the first pair without the relation; "" where all have it, or none is asked."""
    if "position" not in clause:
        return ""
    relation, target = clause["position"]
    others = matched[target]
    if others is None:
        return f"no target for {clause['class']} to be {relation}"
    for number in found:
        for other in others:
            true = relations(boxes[number], boxes[other], options.position_threshold)
            if relation not in true:
                return f"expected {clause['class']} {relation} target, found {' and '.join(true)} target"
    return ""


def relations(box: np.ndarray, seen_from: np.ndarray, threshold: float = DEFAULTS.position_threshold) -> list[str]:
    """Where `box` stands, seen from another one: up to two of "above", "below", "left of", "right of", sorted.

    Boxes are float32 (4,), pixels. The offset of the centres shrinks by `threshold` times the sum of both sides of its
    axis, and is divided by the length that it had before.
    """
    a, b = box.reshape(2, 2), seen_from.reshape(2, 2)
    offset = a.mean(axis=0) - b.mean(axis=0)
    sides = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    shrunk = np.maximum(np.abs(offset) - np.float32(threshold) * sides, 0) * np.sign(offset)
    if (np.abs(shrunk) < NEAR).all():
        return []
    x, y = shrunk / np.linalg.norm(offset)
    holds = {"above": y < -ALONG, "below": y > ALONG, "left of": x < -ALONG, "right of": x > ALONG}
    return [name for name, so in holds.items() if so]
