"""The images of a run's page: thumbnails inside it or beside it, and whole images where the run kept them."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evals.engine.job import Chunk, Job
from evals.engine.models import ModelRun
from evals.engine.run import Finished
from evals.engine.store import write_atomically
from evals.report.html_data import script_json
from evals.tasks.base import pack_thumbnails, unpack_files, unpack_images

# Images of a row up to which their thumbnails are inside the page; those of more lie beside it.
MOST_EMBEDDED = 300
FOLDER = "report_images"
# The line of the references among the rows of images.
REFERENCE = "reference"


def item_thumbnails(finished: Finished) -> Iterator[tuple[int, dict[str, list[str | None]]]]:
    """(index of an item, its thumbnails) in the dataset's order, of the items that have any.

    The thumbnails are base64 of JPEG files, one a seed index, by row: its number in the table, or "reference".
    """
    job = finished.job
    number = {row.label: str(place) for place, row in enumerate(finished.record.rows)}
    runs = [run for run in job.runs if run.status == "ok" and run.row.label in number]
    for chunk in job.chunks:
        found: dict[str, list[list[bytes] | None]] = {}
        if (entry := job.cache.read(job.thumbnails(chunk))) is not None:
            found[REFERENCE] = [unpack_files(entry, "jpeg")]
        for run in runs:
            outputs = [_of_chunk(job, run, chunk, seed) for seed in run.seed_indices(job.seeds)]
            if any(outputs):
                found[number[run.row.label]] = outputs
        for place in range(len(chunk)) if found else ():
            yield (
                chunk.start + place,
                {
                    row: [None if files is None else base64.b64encode(files[place]).decode() for files in outputs]
                    for row, outputs in found.items()
                },
            )


def _of_chunk(job: Job, run: ModelRun, chunk: Chunk, seed_index: int) -> list[bytes] | None:
    """A row's thumbnails of a chunk; made of its stored images where those alone are there, None where neither is."""
    if (entry := job.cache.read(job.thumbnails(chunk, run, seed_index))) is not None:
        return unpack_files(entry, "jpeg")
    if not job.viewed(chunk) or (entry := job.cache.read(job.task.images(run, chunk, seed_index))) is None:
        return None
    arrays = pack_thumbnails(unpack_images(entry, torch.device("cpu")))
    return unpack_files(type(entry)(arrays, {}, {}), "jpeg")


def place_images(finished: Finished) -> tuple[dict[str, Any], dict[int, Any]]:
    """Put the images where the page finds them.

    Returns what the page is told of them, and the thumbnails that go into it ({} where they lie beside it). Up to
    MOST_EMBEDDED images of a row are inside; those of more are in report_images/, a script an item, since a page that
    was opened from a disk may load scripts and no data. Whole images of a run with save_images=true lie there too, as
    PNG files. An earlier report's folder is replaced. Raises StoreError.
    """
    folder, job = finished.folder / FOLDER, finished.job
    shutil.rmtree(folder, ignore_errors=True)
    embedded: dict[int, Any] = {}
    inside, shown = len(job.dataset.items) * job.seeds <= MOST_EMBEDDED, []
    for index, thumbnails in item_thumbnails(finished):
        shown.append(index)
        if inside:
            embedded[index] = thumbnails
        else:
            text = f"lactokImages({index},{script_json(thumbnails)})\n"
            write_atomically(folder / f"{index:06}.js", text.encode())
    whole = _write_whole(finished, folder) if job.save_images else {}
    told = {"inside": inside, "folder": FOLDER, "shown": len(shown), "whole": whole}
    if len(shown) < len(job.dataset.items):
        told["indices"] = shown
    return told, embedded


def _write_whole(finished: Finished, folder: Path) -> dict[str, list[int]]:
    """Write the stored images of every row, and the references, as FOLDER/ROW/INDEX-SEED.png; returns by row the seed
    indices that were written for all items."""
    job, written = finished.job, {}
    number = {row.label: str(place) for place, row in enumerate(finished.record.rows)}
    for run in job.runs:
        if run.status != "ok" or run.row.label not in number:
            continue
        row, seeds = number[run.row.label], []
        for seed in run.seed_indices(job.seeds):
            entries = ((chunk, job.cache.read(job.task.images(run, chunk, seed))) for chunk in job.chunks)
            here = True
            for chunk, entry in entries:
                here = here and entry is not None
                for place, content in enumerate(unpack_files(entry, "png") if entry is not None else ()):
                    write_atomically(folder / row / f"{chunk.start + place:06}-{seed}.png", content)
            if here:
                seeds.append(seed)
        written[row] = seeds
    if job.task.has_references:
        for chunk in job.chunks:
            loaded = job.task.load(chunk).references
            assert loaded is not None
            for place, image in enumerate(loaded):
                path = folder / REFERENCE / f"{chunk.start + place:06}-0.png"
                write_atomically(path, _png(image.permute(1, 2, 0).cpu().numpy()))
        written[REFERENCE] = [0]
    return written


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
