"""`python -m evals judges failures RUN`: the images that GenEval judged wrong, with its reasons, as one HTML page."""

from __future__ import annotations

import base64
import html
import io
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evals import record
from evals.cli.compare import NotComparable

if TYPE_CHECKING:
    import numpy as np

    from evals.engine.run import Finished

DESCRIPTION = """\
Judges a run's stored images once more and writes a page: each wrong image with its prompt and the reasons, task by
task, and in front the number of failures by task. RUN is the folder of a finished run with metrics=[geneval] or
[geneval-small], whose store (OUT/cache) is still there; nothing is generated. Exit status: 0 written, 2 it can't be.
"""
MOST = 60
"""Images of a row that a page shows by default."""
SHOWN_SIDE = 192
"""Pixels to which the longer side of an image is reduced on the page."""


@dataclass(frozen=True)
class Failure:
    """An image, uint8 (H, W, 3), that is not what its prompt asks for. number: of the prompt's images, from 0."""

    item: str
    number: int
    task: str
    prompt: str
    reasons: tuple[str, ...]
    image: np.ndarray


def reopened(folder: Path) -> Finished:
    """The run of a folder, from its store. Raises NotComparable where its images are no longer there."""
    from evals.config import compose_runs
    from evals.engine import run as engine

    found = record.read(folder / "run.json")
    command = shlex.split(found.command)
    if command[:3] != ["python", "-m", "evals.run"]:
        raise NotComparable(f"{folder}/run.json has no command of evals.run: run it again")
    configs = [config for config in compose_runs(command[3:]) if config.dataset.name == found.dataset]
    if not configs:
        raise NotComparable(f"{folder}: its command makes no run on {found.dataset}")
    finished = engine.run(configs[0], quiet=True)
    if finished.record.dataset_fingerprint != found.dataset_fingerprint:
        raise NotComparable(f"{folder}: {found.dataset} holds other items now: run its command again")
    return finished


def failures(finished: Finished, label: str) -> Iterator[Failure]:
    """A row's failures, in the order of items. Raises NotComparable for an unknown row or a run without GenEval."""
    import torch

    from evals.metrics.judges.geneval.score import GenEvalScore, metadata_of
    from evals.tasks.base import unpack_images

    job = finished.job
    judges = [plan for plan in job.metrics.image if issubclass(plan.cls, GenEvalScore)]
    if not judges:
        raise NotComparable("the run has no GenEval metric: metrics=[geneval] or [geneval-small]")
    run = next((one for one in job.runs if one.row.label == label), None)
    if run is None or run.status != "ok":
        known = ", ".join(one.row.label for one in job.runs if one.status == "ok")
        raise NotComparable(f"no row {label!r} with images; there are {known}")
    judge = judges[0].cls.build(job.device, judges[0].settings)
    assert isinstance(judge, GenEvalScore)
    for chunk in job.chunks:
        for number in range(job.seeds):
            entry = job.cache.read(job.task.images(run, chunk, number))
            if entry is None:
                raise NotComparable(f"{label}: images of {chunk.items[0].id} are no longer in the store: run it again")
            refused = {int(place) for place in entry.meta["refused"]}
            images = unpack_images(entry, job.device)
            for place, item in enumerate(chunk.items):
                if place in refused:
                    continue
                (verdict,) = judge.verdicts(torch.as_tensor(images[place])[None], [metadata_of(item)])
                if not verdict.correct:
                    pixels = images[place].permute(1, 2, 0).cpu().numpy()
                    yield Failure(item.id, number, str(item.tags["tag"]), item.payload, verdict.reasons, pixels)


def page(title: str, rows: dict[str, list[Failure]], most: int) -> str:
    """The page as HTML with its images inside. most: images of a row that are shown."""
    named = html.escape(title)
    parts = [f"<!doctype html><meta charset=utf-8><title>{named}</title>{_STYLE}<h1>{named}</h1>"]
    for label, found in rows.items():
        parts.append(f"<h2>{html.escape(label)}: {len(found):,} images fail</h2>{_counts(found)}<div class=grid>")
        parts += [_figure(one) for one in sorted(found, key=lambda one: (one.task, one.item, one.number))[:most]]
        parts.append("</div>" + (f"<p>and {len(found) - most:,} more (--most)</p>" if len(found) > most else ""))
    return "\n".join(parts)


_STYLE = """<style>body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#1f2328}
.grid{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:12.5em}img{width:12em;image-rendering:auto}
figcaption{font-size:13px}.why{color:#9a3412}td{padding:0 1em 0 0}</style>"""


def _counts(found: list[Failure]) -> str:
    """By task, how many fail."""
    counts: dict[str, int] = {}
    for one in found:
        counts[one.task] = counts.get(one.task, 0) + 1
    cells = "".join(f"<tr><td>{html.escape(task)}<td>{count:,}</tr>" for task, count in sorted(counts.items()))
    return f"<table>{cells}</table>"


def _figure(one: Failure) -> str:
    from PIL import Image

    image, content = Image.fromarray(one.image), io.BytesIO()
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    image.save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    why = "<br>".join(html.escape(reason) for reason in one.reasons)
    name = f"{html.escape(one.item)}, image {one.number}"
    return (
        f'<figure><img alt="{html.escape(one.prompt)}" src="data:image/png;base64,{data}"><figcaption>'
        f"<b>{html.escape(one.prompt)}</b><br>{name}<br><span class=why>{why}</span></figcaption></figure>"
    )


def write(folder: Path, labels: list[str] | None, out: Path | None, most: int) -> Path:
    """The page of a run; all its models' rows by default. Raises NotComparable, RecordError, WriteError."""
    from lactok.files import write_atomically

    if not (folder / "run.json").is_file():
        raise NotComparable(f"{folder} holds no run.json: expected the folder of a finished run (results/runs/...)")
    finished = reopened(folder)
    wanted = labels or [
        run.row.label
        for run in finished.job.runs
        if run.status == "ok" and run.row.cls is not None and run.row.cls.calibration is None
    ]
    rows = {label: list(failures(finished, label)) for label in wanted}
    target = out or folder / "failures.html"
    title = f"GenEval's failures: {folder.name}, {finished.record.items:,} prompts of {finished.record.dataset}"
    write_atomically(target, page(title, rows, most).encode())
    return target
