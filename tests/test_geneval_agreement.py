"""People's verdicts from their answers, and how a judge agrees with them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from evals.__main__ import main
from evals.metrics.judges.geneval.agreement import (
    AnnotationError,
    Person,
    among_people,
    judged,
    kappa,
    majority,
    read_answers,
    verdict,
    with_people,
)

METADATA = [
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]},
    {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]},
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    },
]
METADATA = [one | {"prompt": f"prompt {number}"} for number, one in enumerate(METADATA)]
COLUMNS = [
    "HITId", "Input.index", "Input.prompt_id", "Input.caption", "Answer.task-color-0", "Answer.task-count-0",
    "Answer.task-count-1", "Answer.task-objects", "Answer.task-position-x", "Answer.task-position-y",
]  # fmt: skip


def answers(count: str = "1", other: str = "", colours: str = "", x: str = "", y: str = "") -> dict[str, str]:
    return {
        "Answer.task-count-0": count, "Answer.task-count-1": other, "Answer.task-color-0": colours,
        "Answer.task-position-x": x, "Answer.task-position-y": y,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "said", "right"),
    [
        (0, answers("2"), True),
        (0, answers("1"), False),
        (0, answers("3"), False),
        (0, answers(""), None),
        (1, answers(colours="black|red"), True),
        (1, answers(colours="black"), False),
        (2, answers("1", "1.0", x="left", y="neither_y"), True),
        (2, answers("1", "1.0", x="right", y="neither_y"), False),
        (2, answers("1", "1.0"), None),
        (2, answers("1", "0.0"), False),
    ],
)
def test_a_verdict_by_the_prompts_metadata(prompt: int, said: dict[str, str], right: bool | None):
    assert verdict(said, METADATA[prompt]) is right


def test_majorities():
    assert majority([True, True, False, None]) is True
    assert majority([True, False]) is None
    assert majority([None]) is None


def test_kappa_is_cohens():
    """Cohen's own kind of table: 20 and 15 agree, 5 and 10 do not."""
    a = np.repeat([True, True, False, False], [20, 5, 10, 15])
    b = np.repeat([True, False, True, False], [20, 5, 10, 15])
    assert kappa(a, b) == pytest.approx(0.4)
    assert kappa(a, a) == 1
    assert np.isnan(kappa(np.ones(3), np.ones(3)))


def test_each_person_is_held_against_the_others():
    persons = [Person("0_0", 0, right) for right in (True, True, False, None)]
    assert among_people(persons) == [(0, False, True)]  # the others of the first two disagree
    assert with_people(persons, {"0_0": False, "9_9": True}) == [(0, False, True)]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for prompt, good in ((0, answers("2")), (1, answers(colours="red")), (2, answers("1", "1.0", x="left", y="above"))):
        for image in range(4):
            for person in range(5):
                said = good if image < 2 or (image == 2 and person < 3) else answers("0", "0.0")
                rows.append(
                    {"Input.index": f"{prompt}_{image}", "Input.prompt_id": str(prompt),
                     "Input.caption": f"prompt {prompt}", "Answer.task-objects": "a, b"} | said
                )  # fmt: skip
    write(tmp_path / "annotations_toy.csv", rows)
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in METADATA))
    return tmp_path


def cat(score: float = 0.95, colour: str = "red", left: float = 100.0) -> dict:
    return {"class": "cat", "score": score, "box": [left, 100.0, left + 20, 120.0], "color": colour}


def test_the_judge_is_compared_where_detections_are(folder: Path, capsys):
    dog = cat(left=20.0) | {"class": "dog"}
    right = {0: [cat(), cat(left=200.0)], 1: [cat()], 2: [cat(), dog]}
    rows = [
        {"index": f"{prompt}_{image}", "detections": found if image < 2 else []}
        for prompt, found in right.items()
        for image in range(4)
    ]
    (folder / "detections_toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["judges", "agreement", str(folder)]) == 0
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if " all " in line and " judge " in line]
    assert line.split()[3:5] == ["12", "0.750"]  # the third image of each prompt is right by three people of five
    assert "toy: 12 images, 60 answers, 0 without a verdict" in output


def test_results_of_the_published_program_do_too(folder: Path, capsys):
    rows = [
        {"filename": f"images/{prompt:05}/samples/{image:05}.png", "correct": image < 3}
        for prompt in range(3)
        for image in range(4)
    ]
    stored = folder / "results.jsonl"
    stored.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["judges", "agreement", str(folder), "--detections", f"toy={stored}"]) == 0
    assert "1.000" in next(
        line for line in capsys.readouterr().out.splitlines() if " all " in line and " judge " in line
    )


def test_without_detections_people_alone_are_compared_and_what_is_missing_is_said(folder: Path, capsys):
    assert main(["judges", "agreement", str(folder)]) == 1
    output = capsys.readouterr().out
    assert " people " in output
    assert "no judge was compared for toy" in output
    assert "djghosh/aigen-images" in output


def test_a_row_cut_in_two_by_a_line_break_is_joined(tmp_path: Path):
    head = ",".join(COLUMNS)
    path = tmp_path / "annotations_toy.csv"
    path.write_bytes(
        f"{head}\nA,2_1,2,prompt 2,,1,2.0,1.sink\r2.Keyboard,left,below\nB,2_1,2,prompt 2,,1,1.0,x,,\n".encode()
    )
    first, second = read_answers(path)
    assert (first["Answer.task-position-x"], first["Answer.task-position-y"]) == ("left", "below")
    assert second["HITId"] == "B"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--detections", "toy"], "expected MODEL=FILE"),
        (["--detections", "other=x"], "people's answers are there for toy"),
        (["--detections", "toy=nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_wrong_arguments_are_told(folder: Path, capsys, arguments: list[str], said: str):
    assert main(["judges", "agreement", str(folder), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_row_is_told_by_its_number():
    with pytest.raises(AnnotationError, match="row 1 needs index or filename, and detections or correct: KeyError"):
        judged([{"index": "0_1"}], METADATA)
