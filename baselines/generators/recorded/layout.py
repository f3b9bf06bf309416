"""Which image files belong to which prompt: a folder in GenEval's layout, or a table of prompts and files.

GenEval's layout: NNNNN/metadata.jsonl, one JSON object with a `prompt`, and NNNNN/samples/ with an image a sample:
0000.png as its README has it, 00000.png as its script writes it; any format that is decoded will do. A table is a .csv
with the columns `prompt` and `file`, a .json with a list of objects of these two keys, or a .jsonl with one a line;
files are relative to the table's folder, and the images of one prompt are numbered in the table's order.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lactok.images.decode import has_image_ending
from lactok.weights import MissingWeights, WeightsError

MOST = 10_000
"""Images of a prompt: a name such as 20260131.png is no number of a sample."""
METADATA, SAMPLES = "metadata.jsonl", "samples"
EXPECTED = (
    f"expected a folder of GenEval's layout (NNNNN/{METADATA}, NNNNN/{SAMPLES}/0000.png), or a .csv, .json or .jsonl "
    "table with the columns prompt and file"
)


@dataclass
class Layout:
    """The files of each prompt.

    folder: what files are relative to; read: the files that say which images there are; images: prompt to the files of
    its images by seed index, whether or not they exist.
    """

    folder: Path
    read: list[Path] = field(default_factory=list)
    images: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """The most images of any prompt."""
        return max(map(len, self.images.values()), default=0)

    def files(self, prompt: str) -> list[Path]:
        """The files of a prompt by seed index, [] for an unknown one. White space around a prompt does not count."""
        return self.images.get(prompt.strip(), [])


def read_layout(root: Path) -> Layout:
    """The layout of a folder or a table.

    Raises MissingWeights where there is none, WeightsError with all entries that are bad.
    """
    if root.is_dir():
        return _geneval(root)
    if not root.is_file():
        raise MissingWeights(f"{root.absolute()} does not exist: {EXPECTED}")
    if root.suffix.lower() not in _READERS:
        raise WeightsError(f"{root}: {EXPECTED}")
    return _table(root)


def _geneval(root: Path) -> Layout:
    """Every folder has as many samples as the one with the most; those that lack have the name of GenEval's README."""
    layout, bad = Layout(root), []
    samples: list[tuple[str, Path, dict[int, Path]]] = []
    for metadata in sorted(root.glob(f"*/{METADATA}")):
        try:
            found = _numbered(metadata.parent / SAMPLES)
            samples.append(
                (_text(_object(json.loads(metadata.read_text("utf-8-sig"))), "prompt"), metadata.parent, found)
            )
            layout.read.append(metadata)
        except (OSError, ValueError) as error:
            bad.append(f"{metadata}: {error}")
    bad += [
        f"{folder.parent} has {SAMPLES} and no {METADATA}"
        for folder in sorted(root.glob(f"*/{SAMPLES}"))
        if not (folder.parent / METADATA).exists()
    ]
    _refuse(root, bad)
    if not samples:
        raise WeightsError(f"{root} holds no NNNNN/{METADATA}: {EXPECTED}")
    most = max(1, *(max(found, default=-1) + 1 for _, _, found in samples))
    for prompt, folder, found in samples:  # a prompt that is there twice has the samples of both folders
        files = [found.get(number, folder / SAMPLES / f"{number:04d}.png") for number in range(most)]
        layout.images.setdefault(prompt, []).extend(files)
    return layout


def _numbered(folder: Path) -> dict[int, Path]:
    """The image files of a folder by their number: that of their name, or their place where no name is one.

    Raises ValueError for a number that is there twice, and for names of which some are numbers and some are not: with
    places a gap among the numbers would be hidden.
    """
    files = sorted(path for path in folder.glob("*") if has_image_ending(path.name) and not path.name.startswith("."))
    named = [path.name for path in files if not (path.stem.isascii() and path.stem.isdigit())]
    if len(named) == len(files):
        return dict(enumerate(files))
    if named:
        raise ValueError(f"{folder} has numbered images and {', '.join(named[:5])}: expected numbers alone, or none")
    if large := [path.name for path in files if len(path.stem.lstrip("0")) > len(str(MOST)) or int(path.stem) >= MOST]:
        raise ValueError(f"{folder} has {', '.join(large[:5])}: expected numbers of samples, from 0 to {MOST - 1:,}")
    numbered = {int(path.stem): path for path in files}
    if len(numbered) < len(files):
        raise ValueError(f"two files of {folder} have one number")
    return numbered


def _table(path: Path) -> Layout:
    layout, bad = Layout(path.parent, [path]), []
    seen: set[tuple[str, Path]] = set()
    try:
        rows = list(_READERS[path.suffix.lower()](path.read_text("utf-8-sig")))
    except (OSError, ValueError, csv.Error) as error:
        raise WeightsError(f"{path} can't be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        try:
            fields = _object(row)
            prompt, file = _text(fields, "prompt"), path.parent / _text(fields, "file")
            if (prompt, file) in seen:
                raise ValueError(f"{file} is there twice for one prompt: expected an image for each of its outputs")
            seen.add((prompt, file))
            layout.images.setdefault(prompt, []).append(file)
        except ValueError as error:
            bad.append(f"entry {number}: {error}")
    _refuse(path, bad)
    if not layout.images:
        raise WeightsError(f"{path} names no images: {EXPECTED}")
    return layout


def _of_csv(text: str) -> Iterable[Any]:
    return csv.DictReader(io.StringIO(text, newline=""), strict=True)


def _of_json(text: str) -> Iterable[Any]:
    content = json.loads(text)
    if not isinstance(content, list):
        raise ValueError(f"it is {type(content).__name__}: expected a list of objects with prompt and file")
    return content


def _of_jsonl(text: str) -> Iterable[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


_READERS: dict[str, Callable[[str], Iterable[Any]]] = {".csv": _of_csv, ".json": _of_json, ".jsonl": _of_jsonl}


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"it is {type(value).__name__}: expected an object")
    return value


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip() or ("\0" in value and key == "file"):
        raise ValueError(f"{key} is {value!r}: expected text that is not empty")
    return value.strip() if key == "prompt" else value


def _refuse(root: Path, bad: list[str]) -> None:
    if bad:
        listed = "".join(f"\n  {line}" for line in bad)
        raise WeightsError(f"{root}: {len(bad):,} entries can't be used; mend them:{listed}")
