"""Runs the golden cases of GenEval: decision logic and summary (`.jsonl`), crops (`crops.safetensors`), detector.

Every expected field of a `.jsonl` case gives a line over all its rows; a difference is named by the row's id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from evals.metrics.judges.geneval.logic import Detected, Options, colour_questions, judge, keep
from evals.metrics.judges.geneval.summary import summarise
from lactok.conformance import (
    CaseError,
    CaseFolder,
    CheckLine,
    UnhandledCase,
    compare_floats,
    compare_ids,
    failure,
    is_rows,
    recorded,
)

_SHOWN = 5
_LOGIC_FIELDS = ("kept", "color_calls", "correct", "reason")
_SHARE_ATOL = 1e-12
"""Of shares, which are quotients of counts."""


def run(case: CaseFolder) -> Iterator[CheckLine]:
    """All lines of a `geneval` case, chosen by what it holds."""
    if is_rows(case.path):
        rows = list(case.rows())
        first = rows[0] if rows else {}
        if {"metadata", "detections"} <= set(first):
            yield from _logic_lines(rows)
        elif {"filename", "correct", "metadata"} <= set(first):
            yield from _summary_lines(case, rows)
        else:
            raise UnhandledCase("its rows state nothing to be checked")
    elif any(name.startswith("out.crop_") for name in case.names):
        yield from _crop_lines(case)
    else:
        yield from _detector_lines(case)


# --- Decision logic --------------------------------------------------------------------------------------------------


def _logic_lines(rows: Sequence[dict[str, Any]]) -> Iterator[CheckLine]:
    wrong: dict[str, list[str]] = {name: [] for name in _LOGIC_FIELDS if any(name in row for row in rows)}
    for place, row in enumerate(rows):
        found = _logic_of(row)
        for name in wrong:
            if name in row and found[name] != row[name]:
                wrong[name].append(str(row.get("id", place)))
    for name, ids in wrong.items():
        checked = sum(name in row for row in rows)
        yield _counted_line(name, ids, checked)


def _logic_of(row: dict[str, Any]) -> dict[str, Any]:
    """The four fields of a row as this logic has them; the row's colours answer for the classifier."""
    options = _options(row.get("options", {}))
    detections = [Detected(one["class"], tuple(one["box"]), one["score"]) for one in row["detections"]]
    kept = keep(detections, row["metadata"]["tag"], options)
    questions = colour_questions(row["metadata"], kept)
    answers = [[row["detections"][number]["color"] for number in question.detections] for question in questions]
    verdict = judge(row["metadata"], detections, kept, answers, options)
    return {
        "kept": kept,
        "color_calls": [{"class": one.class_name, "detections": list(one.detections)} for one in questions],
        "correct": verdict.correct,
        "reason": "\n".join(verdict.reasons),
    }


def _options(given: dict[str, Any]) -> Options:
    known = {field.name: field.type for field in fields(Options)}
    if strange := sorted(set(given) - set(known)):
        raise CaseError(f"options {', '.join(strange)}: expected {', '.join(known)}")
    values: dict[str, Any] = {name: int(v) if known[name] == "int" else float(v) for name, v in given.items()}
    return Options(**values)


def _counted_line(name: str, wrong: Sequence[str], checked: int) -> CheckLine:
    note = f"{checked} rows"
    if wrong:
        more = ", ..." if len(wrong) > _SHOWN else ""
        note = f"{len(wrong)} of {checked} rows differ: {', '.join(wrong[:_SHOWN])}{more}"
    return CheckLine(name, None, None, not wrong, not wrong, note)


# --- Summary ---------------------------------------------------------------------------------------------------------


def _summary_lines(case: CaseFolder, rows: Sequence[dict[str, Any]]) -> Iterator[CheckLine]:
    path = case.path.with_name(case.path.name.replace("rows", "expected")).with_suffix(".json")
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaseError(f"{path}, the figures of {case.path.name}, can't be read: {error}") from error
    tags, correct = [row["tag"] for row in rows], np.array([[row["correct"] for row in rows]], float)
    summary = summarise(tags, correct)
    by_prompt: dict[str, bool] = {}
    for row in rows:
        by_prompt[row["metadata"]] = by_prompt.get(row["metadata"], False) or row["correct"]
    prompts = sum(by_prompt.values()) / len(by_prompt)
    found = {
        "task_order": list(summary.tasks),
        "task_scores": summary.tasks,
        "overall": summary.overall,
        "image_accuracy": summary.images,
        "prompt_accuracy": prompts,
        "n_images": len(rows),
        "n_prompts": len(by_prompt),
        "printed": _printed(rows, summary.tasks, summary.overall, summary.images, len(by_prompt), prompts),
    }
    for name, want in expected.items():
        if name not in found:
            yield CheckLine(name, None, None, False, False, "stored, but no check knows what it is")
        else:
            same = _close(found[name], want)
            yield CheckLine(name, None, None, same, same, "" if same else f"{found[name]!r}, expected {want!r}")


def _close(found: Any, want: Any) -> bool:
    if isinstance(want, dict):
        return isinstance(found, dict) and found.keys() == want.keys() and all(_close(found[k], want[k]) for k in want)
    if isinstance(want, float):
        return abs(found - want) <= _SHARE_ATOL
    return found == want


def _printed(
    rows: Sequence[dict[str, Any]], tasks: dict[str, float], overall: float, images: float, prompts: int, any_of: float
) -> str:
    """The summary as the published program prints it."""
    lines = ["Summary", "=" * 7, f"Total images: {len(rows)}", f"Total prompts: {prompts}"]
    lines += [f"% correct images: {images:.2%}", f"% correct prompts: {any_of:.2%}", "", "Task breakdown", "=" * 14]
    for task, share in tasks.items():
        of_task = [row["correct"] for row in rows if row["tag"] == task]
        lines.append(f"{task:<16} = {share:.2%} ({sum(of_task)} / {len(of_task)})")
    return "\n".join([*lines, "", f"Overall score (avg. over tasks): {overall:.5f}", ""])


# --- Crops -----------------------------------------------------------------------------------------------------------


def _crop_lines(case: CaseFolder) -> Iterator[CheckLine]:
    from evals.metrics.judges.geneval.crops import crop

    entries: Any = case.config
    claimed = {"in.image"}
    image = case["in.image"].cpu()
    for entry in entries:
        number = entry["case"]
        options = dict(entry.get("options", {}))
        background, cropped = options.pop("bgcolor", None), options.pop("crop", "1")
        if options:
            raise CaseError(f"case {number}: options {', '.join(options)}: expected bgcolor, crop")
        mask = case[f"in.mask_{number}"].cpu() if entry["mask"] else None
        found = crop(
            case.get(f"in.image_{number}", image).cpu().permute(2, 0, 1),
            case[f"in.box_{number}"].tolist()[:4],
            None if mask is None else mask > 0,
            **({} if background is None else {"background": None if background == "original" else background}),
            to_box=str(cropped) == "1",
        )
        claimed |= {f"in.image_{number}", f"in.mask_{number}", f"in.box_{number}", f"out.crop_{number}"}
        yield compare_ids(f"out.crop_{number}", torch.from_numpy(np.array(found)), case[f"out.crop_{number}"])
    yield from _unclaimed(case, claimed)


# --- Detector --------------------------------------------------------------------------------------------------------

CLASS_ATOL = 1e-5
"""Of class logits, absolute: under seeded weights the queries differ by no more than some thousandths."""
MASK_ATOL = 2e-4
"""Of mask logits, whose standard deviation is about 4."""
_KNOWN = {"weights_seed", "batch_input_shape", "img_shape", "ori_shape", "mask_bits", "test_cfg"}


def _detector_lines(case: CaseFolder) -> Iterator[CheckLine]:
    from evals.metrics.judges.geneval.detector import Detector
    from evals.metrics.judges.geneval.detector_weights import build

    if strange := sorted(set(case.config) - _KNOWN):
        raise CaseError(f"{case.path / 'config.json'} has {', '.join(strange)}: expected {', '.join(sorted(_KNOWN))}")
    claimed = {name for name in case.names if name.startswith("post.")}
    if "in.pixel_values" in case:
        network = build(case.seeded_weights(), case.device)
        with recorded({"backbone": network.model.pixel_level_module.encoder}) as seen:
            class_logits, mask_logits = Detector(network).logits(case["in.pixel_values"])
        maps = dict(enumerate(seen["backbone"].feature_maps, start=1))
        found = {"out.class_logits": (class_logits, CLASS_ATOL), "out.mask_logits": (mask_logits, MASK_ATOL)}
        claimed.add("in.pixel_values")
        for name in case.names:
            if name in found:
                got, atol = found[name]
                yield compare_floats(name, got, case[name], 0.0, atol)
            elif (match := re.fullmatch(r"mid\.backbone_stage(\d)", name)) and int(match[1]) in maps:
                want = case[name]
                yield compare_floats(name, maps[int(match[1])][:, : want.shape[1]], want)
            else:
                continue
            claimed.add(name)
    if "post.in.class_logits" in case:
        yield from _instance_lines(case)
    yield from _unclaimed(case, claimed)


def _instance_lines(case: CaseFolder) -> Iterator[CheckLine]:
    """Post-processing of given logits. Equal scores, as those of empty masks, may stand in any order."""
    from evals.metrics.judges.geneval.instances import MAX_INSTANCES, instances

    settings = dict(case.config.get("test_cfg", {}))
    most = settings.pop("max_per_image", MAX_INSTANCES)
    if settings:
        raise CaseError(f"test_cfg has {', '.join(settings)}: expected max_per_image")
    padded, inside, original = (
        (int(size[0]), int(size[1]))
        for size in (case.setting("batch_input_shape"), case.setting("img_shape"), case.setting("ori_shape"))
    )
    found = instances(case["post.in.class_logits"], case["post.in.mask_logits_quarter"], padded, inside, original, most)
    bits = np.packbits(found.masks.cpu().numpy().reshape(len(found.masks), -1), axis=1)
    scores = case["post.out.scores_sorted"]
    yield compare_floats("post.out.scores_sorted", found.scores, scores, 0.0, CLASS_ATOL)
    if found.scores.shape != scores.shape:
        return
    # Ids and masks need agree where a score is its own alone.
    values = scores.cpu().double()
    steps = (values[1:] - values[:-1]).abs()
    far = torch.full((1,), torch.inf, dtype=torch.float64)
    gap = torch.minimum(torch.cat([far, steps]), torch.cat([steps, far]))
    gap[values == 0] = 0
    yield compare_ids("post.out.labels_sorted", found.labels, case["post.out.labels_sorted"], gap, GAP)
    boxes = case["post.out.bboxes_sorted"]
    yield compare_ids("post.out.bboxes_sorted", found.boxes, boxes, gap[:, None].expand(boxes.shape), GAP)
    packed = case["post.out.masks_sorted_packbits"]
    yield compare_ids(
        "post.out.masks_sorted_packbits", torch.from_numpy(bits), packed, gap[:, None].expand(packed.shape), GAP
    )


GAP = 1e-6
"""Instances whose scores are this near may stand in any order."""


def _unclaimed(case: CaseFolder, claimed: set[str]) -> Iterator[CheckLine]:
    for name in case.names:
        if name not in claimed:
            yield failure(name, CaseError("stored, but no check knows what it is"))
