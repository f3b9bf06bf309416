"""A finished run as files: its images, tokens and per-image figures. What is not stored is decoded again."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evals.cli.compare import load
from evals.config import RunConfig
from evals.engine.environment import code_revision, package_versions
from evals.engine.job import Chunk, Job
from evals.engine.load import load_ahead
from evals.engine.models import ModelRun, stop
from evals.engine.reopen import is_same, reopened
from evals.engine.store import Entry
from evals.record import RunRecord
from evals.report.symbols import folder_names
from evals.tasks.base import Images, Outputs, unpack_images
from lactok.files import check_new, explained, new_folder
from lactok.images.decode import has_image_ending
from lactok.items import Item
from lactok.progress import Meter

REFERENCES = "references"
MANIFEST, FIGURES, CLUSTERS, IDS, PROMPTS = "manifest.json", "per_image.csv", "clusters.csv", "ids.npz", "images.csv"
ASKED = "prompts.jsonl"
# Raise it when a file of an export changes its name or meaning.
EXPORT_SCHEMA = 1


class ExportError(Exception):
    """A run can't be exported; the message says why and the way out. Exit status 2."""


@dataclass
class Exported:
    """One row in the folder. folders: by seed index; images: how many files; stored: how many came from the store, the
    others were decoded again; differing: of those, how many are not equal to the stored image of the contact sheet, out
    of `compared`; refused: item to reason; tokens: whether ids.npz is there; why: why the row is not here, "" where it
    is."""

    label: str
    folders: list[str] = field(default_factory=list)
    images: int = 0
    stored: int = 0
    compared: int = 0
    differing: int = 0
    tokens: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    why: str = ""


def export(folder: Path, out: Path, wanted: Sequence[str] = ()) -> list[Exported]:
    """Write the run of `folder` to the new folder `out`, whole or not at all.

    wanted: labels of rows, () for all. Raises ExportError, NotComparable and RecordError (a folder that is no run's),
    WriteError (`out` is not empty, too), and what planning a run raises.
    """
    check_new(out)
    run = load(folder)
    _check_wanted(run.record, wanted)
    job = reopened(folder, run.record)
    with new_folder(out) as temporary:
        exporter = _Exporter(job, run.record, temporary)
        rows = exporter.write(wanted)
        with explained(out):
            figures = run.values[run.values["row"].isin([row.label for row in rows if not row.why])].copy()
            if len(figures):
                figures.insert(2, "image", exporter.paths(figures))
            figures.to_csv(temporary / FIGURES, index=False)
            manifest = _manifest(folder, run.record, rows, exporter)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return rows


def _check_wanted(found: RunRecord, wanted: Sequence[str]) -> None:
    ok = [row.label for row in found.rows if row.status == "ok"]
    if unknown := [label for label in wanted if label not in ok]:
        raise ExportError(f"rows={','.join(unknown)}: the run has no such row with figures; it has {', '.join(ok)}")
    if not ok:
        raise ExportError("the run has no row with figures")


class _Exporter:
    """names: a file below a row's folder for each item, in the dataset's order, which is the names' own."""

    def __init__(self, job: Job, found: RunRecord, root: Path) -> None:
        self.job, self.found, self.root = job, found, root
        self.names = file_names(job.dataset.items)
        self.place = {item.id: place for place, item in enumerate(job.dataset.items)}
        self.folders: dict[str, str] = {}

    def write(self, wanted: Sequence[str]) -> list[Exported]:
        rows = [row for row in self.found.rows if not wanted or row.label in wanted]
        runs = {run.row.label: run for run in self.job.runs}
        seeds = sum(row.seeds for row in rows if row.status == "ok")
        self.folders = folder_names([row.label for row in rows], (REFERENCES,))
        exported = []
        with Meter((seeds + self.job.task.has_references) * len(self.names), "exporting images") as meter:
            if self.job.task.has_references:
                self._write_references(meter)
            else:
                self._write_prompts()
            for row in rows:
                exported.append(Exported(row.label))
                run = runs.get(row.label)
                if row.status != "ok":
                    exported[-1].why = f"it has no figures ({row.status}): {row.error}"
                elif run is None or run.status != "ok" or not is_same(self.job, run, row):
                    reason = "it is no row of its command" if run is None else run.error or "its model, code or device"
                    exported[-1].why = f"it is not what was measured ({reason} changed since): run it again"
                else:
                    self._write_row(exported[-1], run, meter)
        return exported

    def _write_prompts(self) -> None:
        """All prompts with what is known of them, as dataset=prompts reads them."""
        lines = []
        for item in self.job.dataset.items:
            fields = {**item.tags, "id": item.id, "prompt": item.payload, "cluster": item.cluster}
            lines.append(json.dumps(fields, ensure_ascii=False))
        self._text(ASKED, lines)

    def _write_references(self, meter: Meter) -> None:
        for batch in load_ahead(self.job.task, self.job.chunks, torch.device("cpu")):
            assert batch.references is not None
            for place, image in enumerate(batch.references):
                self._save(image, REFERENCES, self.names[batch.chunk.start + place], meter)
        lines = [f"{_csv(n)},{_csv(item.cluster)}" for n, item in zip(self.names, self.job.dataset.items)]
        self._text(CLUSTERS, ["file,cluster", *lines])

    def _write_row(self, row: Exported, run: ModelRun, meter: Meter) -> None:
        try:
            for chunk, seed_index, images, refused, stored in self._images(run):
                row.refused |= {chunk.items[place].id: reason for place, reason in refused.items()}
                row.images += len(chunk) - len(refused)
                row.stored += (len(chunk) - len(refused)) * stored
                if not stored and seed_index == 0:
                    self._compare(row, run, chunk, images)
                for place in range(len(chunk)):
                    if place not in refused:
                        path = self._path(row.label, chunk.start + place, seed_index)
                        self._save(images[place], *path, meter)
            row.tokens = self._write_tokens(row, run)
        finally:
            stop([run])
        seeds = run.seed_indices(self.job.seeds)
        row.folders = list(dict.fromkeys(self._path(row.label, 0, seed_index)[0] for seed_index in seeds))
        if not self.job.task.has_references:
            self._write_table(row, seeds)

    def _images(self, run: ModelRun) -> Iterator[tuple[Chunk, int, Images, dict[int, str], bool]]:
        """(chunk, seed index, images, refused, whether they were stored). Raises ExportError."""
        job, absent = self.job, []
        for chunk in job.chunks:
            lacking = []
            for seed_index in run.seed_indices(job.seeds):
                entry: Entry | None = job.cache.read(job.task.images(run, chunk, seed_index))
                if entry is None:
                    lacking.append(seed_index)
                    continue
                refused = {int(place): reason for place, reason in entry.meta["refused"].items()}
                yield chunk, seed_index, unpack_images(entry, torch.device("cpu")), refused, True
            if lacking:
                absent.append((chunk, lacking))
        if absent and job.task.keeps_images:
            raise ExportError(
                f"{run.row.label}: images of {len(absent):,} of {len(job.chunks):,} chunks are no longer in the store: "
                f"run it again: {self.found.command}"
            )
        wanted = iter([lacking for _, lacking in absent])
        for batch in load_ahead(job.task, [chunk for chunk, _ in absent], job.device):
            lacking = next(wanted)
            outputs: Outputs
            for seed_index, outputs in zip(lacking, job.task.run(run, batch, lacking, job.cache), strict=True):
                yield batch.chunk, seed_index, outputs.images, dict(outputs.refused), False

    def _compare(self, row: Exported, run: ModelRun, chunk: Chunk, images: Images) -> None:
        """Of images that were decoded again those that the contact sheet shows must be those that were scored."""
        entry = self.job.cache.read(self.job.contact(run, chunk))
        if entry is None or not (shown := self.job.shown_in(chunk)):
            return
        kept = unpack_images(entry, torch.device("cpu"))
        row.compared += len(shown)
        row.differing += sum(not torch.equal(kept[n], images[place].cpu()) for n, place in enumerate(shown))

    def _write_tokens(self, row: Exported, run: ModelRun) -> bool:
        """ids.npz: ids (N, T) or (N, T, K), lengths (N,) where they vary, files (N,); without refused items.

        ids: int32, or int64 where a codebook has more than 2^31.
        """
        artifacts = [self.job.task.tokens(run, chunk) for chunk in self.job.chunks]
        if not artifacts or artifacts[0] is None:
            return False
        parts: dict[str, list[np.ndarray]] = {}
        files = []
        for chunk, artifact in zip(self.job.chunks, artifacts, strict=True):
            entry = None if artifact is None else self.job.cache.read(artifact)
            if entry is None:
                raise ExportError(f"{row.label}: its tokens are no longer in the store: {self.found.command}")
            kept = [place for place in range(len(chunk)) if str(place) not in entry.meta["refused"]]
            files += [self.names[chunk.start + place] for place in kept]
            for name, array in entry.arrays.items():
                if kept:
                    parts.setdefault(name, []).append(array[kept])
        arrays: dict[str, Any] = {name: np.concatenate(found) for name, found in parts.items()}
        path = self.root / self.folders[row.label] / IDS
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, files=np.array(files), **arrays)
        return True

    def _write_table(self, row: Exported, seeds: Sequence[int]) -> None:
        """The prompts of a row's images, as generators=folder reads them."""
        items = self.job.dataset.items
        lines = [
            f"{_csv(item.payload)},{_csv(self._path(row.label, place, seed_index)[1])}"
            for place, item in enumerate(items)
            for seed_index in seeds
            if item.id not in row.refused
        ]
        self._text(f"{self.folders[row.label]}/{PROMPTS}", ["prompt,file", *lines])

    def paths(self, figures: Any) -> list[str]:
        """The file of each line of per_image.parquet, below the export's folder."""
        found = zip(figures["row"], figures["item"], figures["seed_index"])
        return ["/".join(self._path(row, self.place[item], int(seed_index))) for row, item, seed_index in found]

    def _path(self, label: str, place: int, seed_index: int) -> tuple[str, str]:
        """(folder, file below it) of an image. Of several outputs, those of a prompt stand side by side; those of an
        image are in a folder each, so that each folder pairs with the references."""
        folder, name = self.folders[label], self.names[place]
        if not self.job.task.has_references and self.job.seeds > 1:
            return folder, f"{name.removesuffix('.png')}-{seed_index}.png"
        return (folder if seed_index == 0 else f"{folder}.seed{seed_index}"), name

    def _save(self, image: torch.Tensor, folder: str, name: str, meter: Meter) -> None:
        path = self.root / folder / name
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(path, "PNG", compress_level=1)
        meter.advance()

    def _text(self, name: str, lines: Sequence[str]) -> None:
        with explained(self.root / name):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text("\n".join(lines) + "\n", "utf-8")


def file_names(items: Sequence[Item]) -> list[str]:
    """A PNG file's path for each item, all different, in an order that is their sorted one.

    An item's id with its file's ending replaced; where ids are no such paths, would collide or sort otherwise, the
    item's number stands before them.
    """
    names = [(posixpath.splitext(item.id)[0] if has_image_ending(item.id) else item.id) + ".png" for item in items]
    parts = [part for name in names for part in name.split("/")]
    usable = not any(part in ("", "..") or part.startswith(".") or "\\" in part for part in parts)
    if usable and len(set(names)) == len(names) and names == sorted(names):
        return names
    width = len(str(len(items)))
    flat = [re.sub(r"[^\w.-]+", "_", name) for name in names]
    return [f"{number:0{width}d}-{name}" for number, name in enumerate(flat)]


def _csv(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def _manifest(folder: Path, found: RunRecord, rows: Sequence[Exported], exporter: _Exporter) -> dict[str, Any]:
    return {
        "what": "images, tokens and per-image figures of a run of lactok, written by `python -m evals export`",
        "schema": EXPORT_SCHEMA,
        "run": folder.absolute().name,
        "command": found.command,
        "suite": found.suite,
        "dataset": found.dataset,
        "dataset_fingerprint": found.dataset_fingerprint,
        "items": found.items,
        "protocol": found.protocol,
        "protocol_hash": found.protocol_hash,
        "measured_by": {"code_revision": found.code_revision, "versions": found.versions},
        "exported_by": {"code_revision": code_revision(), "versions": package_versions()},
        "score_in_this_folder": score_command(found, rows),
        "rows": [dataclasses.asdict(row) for row in rows],
        "files": {
            f"{REFERENCES}/": "the images that were compared with, as metrics saw them",
            "FOLDER/": "a row's images, as metrics saw them",
            f"FOLDER/{IDS}": "ids, lengths (where they vary) and files of the row's tokens",
            ASKED: "of generation: the prompts with their ids, sources and tags",
            FIGURES: "a line an item, row and seed index: all per-image metrics",
            CLUSTERS: "what intervals resample: dataset.cluster of `python -m evals score`",
        },
    }


def score_command(found: RunRecord, rows: Sequence[Exported]) -> str:
    """The command that scores the export, to be run in its folder; its figures are the run's."""
    config, words = found.config, ["python", "-m", "evals", "score"]
    base, _, changed = str(found.protocol["name"]).partition(" with ")
    folders = [folder for row in rows for folder in row.folders]
    if found.unit == "images":
        words += [f"references={REFERENCES}", *(f"images.{folder}={folder}" for folder in folders)]
        words += [f"dataset.cluster={CLUSTERS}"]
    else:
        words.append(f"prompts={ASKED}")
        words += [f"images.{folder}={folder}/{PROMPTS}" for folder in folders]
        words += [f"seeds={config['seeds']}"] if config["seeds"] > 1 else []
    words.append(f"protocol={base}")
    for name in [one.partition("=")[0] for one in re.split(", | with ", changed) if one]:  # FIELD=VALUE each
        value = "null" if found.protocol[name] is None else found.protocol[name]
        words.append(f"judges.backend={value}" if name == "judges" else f"protocol.{name}={value}")
    if most := max((len(row.refused) for row in rows), default=0):
        words += ["unpaired=skip", f"max_refused={most}"]
    words += [f"features={config['features']}"] if config["features"] != RunConfig.features else []
    metrics = config["metrics"]
    if metrics != RunConfig.metrics:
        words.append(f"metrics={metrics if isinstance(metrics, str) else '[' + ','.join(metrics) + ']'}")
    return shlex.join(words)
