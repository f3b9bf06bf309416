"""`python -m evals judges agreement FOLDER`: how a judge's verdicts agree with people's. See `evals.cli.judges`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.metrics.judges.geneval.agreement import Agreement

DESCRIPTION = """\
Compares GenEval's verdicts with those of people, by accuracy and Cohen's kappa, with 95 % intervals by prompt.

FOLDER holds, as GenEval's repository has them, annotations_MODEL.csv (people's answers) and evaluation_metadata.jsonl.
The judge's side is detections_MODEL.jsonl, there or named by --detections: a row an image, with `index` ("220_2": the
prompt's line and the image's number) or `filename` (".../00220/samples/0002.png"), and `detections` as in a case of the
decision logic (class, score, box, color), or `correct` as the published program writes it.

Each person is also compared with most of the others, which is the most that a judge can be asked for. Exit status: 0 a
judge was compared, 1 there are no detections, so that only people were, 2 a file can't be used. Kappa is – where all
say the same.
"""
METADATA = "evaluation_metadata.jsonl"


def _named(given: list[str]) -> dict[str, Path]:
    from evals.metrics.judges.geneval.agreement import AnnotationError

    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, pair in zip(given, pairs) if not all(pair)]:
        raise AnnotationError(f"--detections {wrong[0]}: expected MODEL=FILE")
    return {name: Path(file) for name, _, file in pairs}


def report(folder: Path, detections: list[str]) -> int:
    """Print the comparison; returns the exit status. Raises AnnotationError, OSError."""
    named = _named(detections)
    return _agreement(folder, named)


def _agreement(folder: Path, named: dict[str, Path]) -> int:
    from evals.metrics.judges.geneval.agreement import (
        AnnotationError,
        among_people,
        by_task,
        judged,
        majority,
        of_images,
        people,
        read_answers,
        with_people,
    )  # fmt: skip

    files = {path.stem.removeprefix("annotations_"): path for path in sorted(folder.glob("annotations_*.csv"))}
    if not files:
        raise AnnotationError(f"no annotations_MODEL.csv in {folder.absolute()}")
    if strange := sorted(set(named) - set(files)):
        raise AnnotationError(f"--detections {strange[0]}: people's answers are there for {', '.join(files)}")
    metadata = _rows(folder / METADATA)
    compared = False
    print(f"{'model':<10} {'task':<14} {'of':<8} {'N':>5}  {'accuracy':<24} kappa")
    missing = []
    for model, path in files.items():
        persons = people(read_answers(path), metadata)
        for task, pairs in by_task(among_people(persons), metadata):
            _show(model, task, "people", pairs)
        stored = named.get(model, folder / f"detections_{model}.jsonl")
        if stored.is_file():
            compared = True
            for task, pairs in by_task(with_people(persons, judged(_rows(stored), metadata)), metadata):
                _show(model, task, "judge", pairs)
        elif model in named:
            raise AnnotationError(f"{stored} does not exist")
        else:
            missing.append(model)
        groups = list(of_images(persons).values())
        said = [majority(one.right for one in group) for group in groups]
        undecided = sum(person.right is None for person in persons)
        shares = [
            f"{task} {sum(decided) / len(decided):.2f}"
            for task in dict.fromkeys(one["tag"] for one in metadata)
            if (decided := [s for s, g in zip(said, groups) if s is not None and metadata[g[0].prompt]["tag"] == task])
        ]
        print(
            f"{model}: {len(groups)} images, {len(persons)} answers, {undecided} without a verdict; "
            f"right by most people: {', '.join(shares)}"
        )
    if missing:
        print(
            f"no judge was compared for {', '.join(missing)}: people's answers are on images, and neither these nor "
            "detections on them are there. Missing: the images (hub dataset djghosh/aigen-images, images/MODEL/PROMPT/"
            "samples/NUMBER.png), and detections with colours on them as detections_MODEL.jsonl or results of the "
            "published program; give either by --detections MODEL=FILE",
        )
    return 0 if compared else 1


def _rows(path: Path) -> list[dict[str, Any]]:
    from evals.metrics.judges.geneval.agreement import AnnotationError

    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except ValueError as error:
        raise AnnotationError(f"{path} is no file of JSON lines: {error}") from error


def _show(model: str, task: str, of: str, pairs: list[tuple[int, bool, bool]]) -> None:
    from evals.metrics.judges.geneval.agreement import agreement

    found: Agreement | None = agreement(pairs)
    if found is not None:
        accuracy, agreed = _figure(found.accuracy, found.accuracy_interval), _figure(found.kappa, found.kappa_interval)
        print(f"{model:<10} {task:<14} {of:<8} {found.count:>5}  {accuracy:<24} {agreed}")


def _figure(value: float, interval: tuple[float, float] | tuple[None, None]) -> str:
    low, high = interval
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
