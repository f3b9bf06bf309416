"""`python -m evals judges failures RUN`: the images that GenEval judged wrong, with its reasons, as one HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evals import record
from evals.cli.compare import NotComparable

if TYPE_CHECKING:
    from PIL import Image

    from evals.engine.job import Chunk, Job
    from evals.engine.models import ModelRun
    from evals.record import RowRecord

DESCRIPTION = """\
Writes a page of a run's wrong images: each with its prompt and the judge's reasons, task by task, and in front the
number of failures by task. Where a row has more than N, some of each task are shown. RUN is the folder of a finished
run with metrics=[geneval] or [geneval-small], whose store (beside it: OUT/cache) is still there; images and reasons are
read from it, and nothing is generated or judged. Exit status: 0 written, 2 it can't be.

    python -m evals judges failures RUN
    python -m evals judges failures RUN row=llamagen-t2i-mini most=200 out=failures.html
"""
MOST = 60
"""Images of a row that a page shows by default."""
SHOWN_SIDE = 192
"""Pixels to which the longer side of an image is reduced on the page."""


@dataclass(frozen=True)
class Failure:
    """An image that is not what its prompt asks for. place: of its prompt in the chunk; number: of the prompt's images,
    from 0."""

    chunk: Chunk
    place: int
    number: int
    reasons: tuple[str, ...]

    @property
    def task(self) -> str:
        return str(self.chunk.items[self.place].tags["tag"])

    @property
    def order(self) -> tuple[str, str, int]:
        return self.task, self.chunk.items[self.place].id, self.number


def failures(job: Job, row: RowRecord) -> tuple[ModelRun, list[Failure]]:
    """A row in its job, and its failures in the order of tasks. Raises NotComparable where the store lacks them."""
    from evals.engine.reopen import is_same
    from evals.metrics.judges.geneval.score import GenEvalScore

    plans = [plan for plan in job.metrics.image if issubclass(plan.cls, GenEvalScore)]
    if not plans:
        raise NotComparable("the run has no GenEval metric: metrics=[geneval] or [geneval-small]")
    plan, cls = plans[0], plans[0].cls
    assert issubclass(cls, GenEvalScore)
    run = next((one for one in job.runs if one.row.label == row.label), None)
    if run is None or run.status != "ok" or not is_same(job, run, row):
        why = f": {run.error}" if run is not None and run.error else ""
        raise NotComparable(f"{row.label} is not what was measured, its model, code or device changed since{why}")
    found = []
    for chunk in job.chunks:
        for number in run.seed_indices(job.seeds):
            scores = job.cache.read(job.scores(run, chunk, number, plan))
            if scores is None:
                raise NotComparable(f"{row.label}: verdicts on {chunk.items[0].id} are no longer in the store")
            refused, reasons = scores.meta["refused"], scores.meta.get("reasons", {})
            for place, value in enumerate(scores.arrays[f"{cls.prefix}-images"].tolist()):
                if value == 0 and str(place) not in refused:
                    found.append(Failure(chunk, place, number, tuple(reasons.get(str(place), ()))))
    return run, sorted(found, key=lambda one: one.order)


def shown(found: Sequence[Failure], most: int) -> list[Failure]:
    """At most `most` of them, in their order: of each task equally many, as far as it has them."""
    ranked: Counter[str] = Counter()
    places = []
    for place, one in enumerate(found):
        places.append((ranked[one.task], place))
        ranked[one.task] += 1
    return [found[place] for place in sorted(place for _, place in sorted(places)[:most])]


def picture(job: Job, run: ModelRun, one: Failure) -> Image.Image:
    """The image of a failure. Raises NotComparable where the store lacks it."""
    from PIL import Image

    from evals.tasks.base import unpack_files

    entry = job.cache.read(job.task.images(run, one.chunk, one.number))
    if entry is None:
        name = one.chunk.items[one.place].id
        raise NotComparable(f"{run.row.label}: the images of {name} are no longer in the store: run it again")
    return Image.open(io.BytesIO(unpack_files(entry, "png")[one.place])).convert("RGB")


def page(job: Job, title: str, rows: Sequence[RowRecord], most: int) -> str:
    """The page as HTML with its images inside. most: images of a row that are shown. Raises NotComparable."""
    named = html.escape(title)
    parts = [f"<!doctype html><meta charset=utf-8><title>{named}</title>{_STYLE}<h1>{named}</h1>"]
    for row in rows:
        run, found = failures(job, row)
        parts.append(f"<h2>{html.escape(row.label)}: {len(found):,} images fail</h2>{_counts(found)}")
        if row.refused:
            names = html.escape(", ".join(list(row.refused)[:10]) + (", ..." if len(row.refused) > 10 else ""))
            parts.append(f"<p>{len(row.refused):,} prompts without an image, which are not judged: {names}</p>")
        of_page = shown(found, most)
        parts += ["<div class=grid>", *(_figure(one, picture(job, run, one)) for one in of_page), "</div>"]
        if len(of_page) < len(found):
            parts.append(f"<p>and {len(found) - len(of_page):,} more (most=N shows N of them)</p>")
    return "\n".join(parts)


_STYLE = """<style>body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#1f2328}
.grid{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:12.5em}img{width:12em;image-rendering:auto}
figcaption{font-size:13px}.why{color:#9a3412}td{padding:0 1em 0 0}</style>"""


def _counts(found: Sequence[Failure]) -> str:
    """By task, how many fail."""
    counts = Counter(one.task for one in found)
    cells = "".join(f"<tr><td>{html.escape(task)}<td>{count:,}</tr>" for task, count in sorted(counts.items()))
    return f"<table>{cells}</table>"


def _figure(one: Failure, image: Image.Image) -> str:
    content, item = io.BytesIO(), one.chunk.items[one.place]
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    image.save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    why = "<br>".join(html.escape(reason) for reason in one.reasons)
    name = f"{html.escape(item.id)}, image {one.number}"
    prompt = html.escape(item.payload)
    return (
        f'<figure><img alt="{prompt}" src="data:image/png;base64,{data}"><figcaption>'
        f"<b>{prompt}</b><br>{name}<br><span class=why>{why}</span></figcaption></figure>"
    )


def write(folder: Path, labels: list[str] | None, out: Path | None, most: int) -> Path:
    """The page of a run; all its models' rows by default. Raises NotComparable, RecordError, NotReopened, WriteError,
    and what planning a run raises."""
    from evals.engine.reopen import reopened
    from lactok.files import write_atomically

    if not (folder / "run.json").is_file():
        raise NotComparable(f"{folder} holds no run.json: expected the folder of a finished run (results/runs/...)")
    found = record.read(folder / "run.json")
    measured = {row.label: row for row in found.rows if row.status == "ok"}
    if unknown := [label for label in labels or () if label not in measured]:
        raise NotComparable(f"no row {unknown[0]!r} with images; there are {', '.join(measured)}")
    wanted = labels or [label for label, row in measured.items() if row.calibration is None]
    if not wanted:
        raise NotComparable(f"{folder}: no model has figures; name calibration rows by row=NAME: {', '.join(measured)}")
    job = reopened(folder, found)
    target = out or folder / "failures.html"
    title = f"GenEval's failures: {folder.name}, {found.items:,} prompts of {found.dataset}"
    write_atomically(target, page(job, title, [measured[label] for label in wanted], most).encode())
    return target
