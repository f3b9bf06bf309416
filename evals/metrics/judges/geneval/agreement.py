"""How GenEval's verdicts agree with people's, on the answers that GenEval's repository publishes.

Five people answered questions about each of about 400 images of a model: how many of the prompt's objects they see,
of what colours, and where one is, seen from the other. They were not asked whether the image is right. A person's
verdict is made of the answers here, by the prompt's metadata, and an image is right where most of its people say so.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.metrics.intervals import Interval, bootstrap
from evals.metrics.judges.geneval.logic import Detected, Options, colour_questions, judge, keep

PROMPT, INDEX = "Input.prompt_id", "Input.index"
LAST_TEXT = "Answer.task-objects"
"""The only free text among the answers; a line break in it is not quoted in every published file."""


class AnnotationError(ValueError):
    """A file of answers, or of detections, is not as expected; the message names it and the line."""


@dataclass(frozen=True)
class Person:
    """One person's verdict on one image. image: "PROMPT_NUMBER"; prompt: its line in evaluation_metadata.jsonl, from 0.

    right: None where an answer that the prompt needs is missing.
    """

    image: str
    prompt: int
    right: bool | None


def read_answers(path: Path) -> list[dict[str, str | None]]:
    """The answers of an annotations_MODEL.csv; a row that a line break cut in two is joined. Raises AnnotationError."""
    text = path.read_bytes().decode("utf-8-sig")
    rows: list[dict[str, str | None]] = []
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = list(reader.fieldnames or [])
    if lacking := {PROMPT, INDEX, LAST_TEXT} - set(columns):
        raise AnnotationError(f"{path} has no column {', '.join(sorted(lacking))}: expected an annotations_MODEL.csv")
    after = columns[columns.index(LAST_TEXT) + 1 :]
    for row in reader:
        if (row[PROMPT] or "").isdigit():
            rows.append(row)
            continue
        rest = [row[name] for name in columns[1 : 1 + len(after)]]
        if not rows or rows[-1][after[0]] is not None or None in rest:
            raise AnnotationError(f"{path}, line {reader.line_num}: {PROMPT} is {row[PROMPT]!r}: expected a number")
        rows[-1] |= dict(zip(after, rest))
    return rows


def verdict(answers: Mapping[str, str | None], metadata: Mapping[str, Any]) -> bool | None:
    """Whether a person's answers say that the image is what the metadata ask for; None where one is missing.

    The objects 0 and 1 of the questions are the first two clauses. A colour is right where it is among those ticked.
    The questions of place ask where object 1 is, seen from object 0, as prompts say it: for each model of the published
    files, answers equal the relation asked for more often than its opposite.
    """
    counts: dict[str, float] = {}
    for number, clause in enumerate(metadata["include"]):
        if not (answered := answers.get(f"Answer.task-count-{number}")):
            return None
        count = counts[clause["class"]] = float(answered)
        if count < clause["count"]:
            return False
        if "color" in clause and clause["color"] not in (answers.get(f"Answer.task-color-{number}") or "").split("|"):
            return False
        if "position" in clause:
            relation = clause["position"][0]
            axis = "x" if relation.endswith(" of") else "y"
            if not (place := answers.get(f"Answer.task-position-{axis}")):
                return None
            if place != relation.removesuffix(" of"):
                return False
    return not any(counts.get(one["class"], 0) >= one["count"] for one in metadata.get("exclude", ()))


def people(rows: Iterable[Mapping[str, str | None]], metadata: Sequence[Mapping[str, Any]]) -> list[Person]:
    """Everyone's verdict. metadata: lines of evaluation_metadata.jsonl. Raises AnnotationError for other prompts."""
    found = []
    for row in rows:
        prompt = int(row[PROMPT] or -1)
        if not 0 <= prompt < len(metadata) or row.get("Input.caption") not in (None, metadata[prompt]["prompt"]):
            raise AnnotationError(
                f"prompt {prompt} is {row.get('Input.caption')!r} for people, another in the metadata"
            )
        found.append(Person(str(row[INDEX]), prompt, verdict(row, metadata[prompt])))
    return found


def majority(verdicts: Iterable[bool | None]) -> bool | None:
    """What most say; None for a tie, or where nobody says anything."""
    said = [one for one in verdicts if one is not None]
    return None if 2 * sum(said) == len(said) else 2 * sum(said) > len(said)


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's kappa (1960) of two boolean (N,) raters; NaN where chance alone agrees wholly."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    observed = (a == b).mean()
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return float((observed - chance) / (1 - chance)) if chance < 1 else float("nan")


@dataclass(frozen=True)
class Agreement:
    """accuracy: share of equal verdicts; kappa: Cohen's; both with 95 % intervals that resample prompts."""

    count: int
    accuracy: float
    accuracy_interval: Interval
    kappa: float
    kappa_interval: Interval


def agreement(pairs: Sequence[tuple[int, bool, bool]]) -> Agreement | None:
    """Of (prompt, verdict, another verdict); None where there are none."""
    if not pairs:
        return None
    a, b = (np.array([pair[place] for pair in pairs], bool) for place in (1, 2))

    def figures(index: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((a[index] == b[index]).mean()), "kappa": kappa(a[index], b[index])}

    whole = figures(np.arange(len(pairs)))
    intervals = bootstrap(figures, list(whole), [str(pair[0]) for pair in pairs])
    return Agreement(len(pairs), whole["accuracy"], intervals["accuracy"], whole["kappa"], intervals["kappa"])


def of_images(persons: Iterable[Person]) -> dict[str, list[Person]]:
    """The people of each image."""
    found: dict[str, list[Person]] = {}
    for person in persons:
        found.setdefault(person.image, []).append(person)
    return found


def among_people(persons: Iterable[Person]) -> list[tuple[int, bool, bool]]:
    """(prompt, a person's verdict, what most of the others say of the image): the most that a judge can agree."""
    pairs = []
    for group in of_images(persons).values():
        for place, person in enumerate(group):
            others = majority(one.right for one in group[:place] + group[place + 1 :])
            if person.right is not None and others is not None:
                pairs.append((person.prompt, person.right, others))
    return pairs


def with_people(persons: Iterable[Person], verdicts: Mapping[str, bool]) -> list[tuple[int, bool, bool]]:
    """(prompt, the judge's verdict, what most people say). verdicts: by image."""
    groups = of_images(persons).items()
    said = [(group[0].prompt, verdicts.get(image), majority(one.right for one in group)) for image, group in groups]
    return [(prompt, judged, most) for prompt, judged, most in said if judged is not None and most is not None]


def judged(rows: Iterable[Mapping[str, Any]], metadata: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """The verdicts of stored rows, by image.

    A row names its image by `index` ("220_2": prompt, number) or `filename` (".../00220/samples/0002.png"), and has
    `detections` as a logic case has them, for the logic here, or a result's own `correct`. Raises AnnotationError.
    """
    found = {}
    for number, row in enumerate(rows, 1):
        try:
            image, prompt = _image_of(row)
            if "detections" in row:
                found[image] = _decided(row, metadata[prompt])
            else:
                found[image] = bool(row["correct"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise AnnotationError(
                f"row {number} needs index or filename, and detections or correct: {type(error).__name__}: {error}"
            ) from error
    return found


def _image_of(row: Mapping[str, Any]) -> tuple[str, int]:
    if "index" in row:
        return str(row["index"]), int(str(row["index"]).split("_")[0])
    parts = Path(row["filename"]).parts
    return f"{int(parts[-3])}_{int(Path(parts[-1]).stem)}", int(parts[-3])


def _decided(row: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    options = Options(**row.get("options", {}))
    detections = [Detected(one["class"], tuple(one["box"]), one["score"]) for one in row["detections"]]
    kept = keep(detections, metadata["tag"], options)
    questions = colour_questions(metadata, kept)
    answers = [[row["detections"][number]["color"] for number in question.detections] for question in questions]
    return judge(metadata, detections, kept, answers, options).correct


def by_task(
    pairs: Iterable[tuple[int, bool, bool]], metadata: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, list[tuple[int, bool, bool]]]]:
    """The pairs of each task, in the order of the metadata; then all of them, as "all"."""
    listed = list(pairs)
    for task in dict.fromkeys(one["tag"] for one in metadata):
        yield task, [pair for pair in listed if metadata[pair[0]]["tag"] == task]
    yield "all", listed
