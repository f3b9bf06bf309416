"""Prompts of a file: a .txt with one a line, or a .csv, .jsonl or .parquet with a column `prompt`; a tar's KEY.txt.

The columns `id` (default: the prompt's number, from 0) and `cluster` (default: the id) are an item's; all others become
its tags: text in a .csv, any JSON value in a .jsonl. An item's content hash is the sha256 of its prompt alone, so that
the same prompt is the same work in every file. No line is skipped: all that are bad are told together.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from evals.datasets.base import DatasetError, DatasetNeeds, DatasetRequest, MissingData, PromptDataset, spread
from evals.datasets.prompts.packed import of_parquet, of_tar
from lactok.items import Item, prompt_hash

# Bad lines that a message shows.
_SHOWN = 10


class Prompts(PromptDataset):
    """The prompts of a .txt, .csv, .jsonl or .parquet file, or the texts of a tar."""

    name = "prompts"

    def __init__(self, items: list[Item], notes: list[str]) -> None:
        self.items = items
        self.left_out = []
        self.notes = notes

    @classmethod
    def open(cls, request: DatasetRequest) -> Prompts:
        """The prompts of the file that is the root. Raises DatasetError with all bad lines."""
        if request.root is None:
            raise DatasetError("dataset=prompts needs a file: write dataset=prompts dataset.root=FILE")
        path = Path(request.root).expanduser()
        if not path.is_file():
            found = "is a folder: name a file in it" if path.exists() else "does not exist"
            raise MissingData(f"dataset.root={path} {found} (absolute: {path.absolute()}); {_EXPECTED}")
        items = {item.id: item for item in read_prompts(path)}
        repeated = sum(count for count in Counter(item.payload for item in items.values()).values() if count > 1)
        notes = [f"{repeated:,} prompts are there more than once: the same work serves them"] * bool(repeated)
        return cls([items[i] for i in spread(list(items), request.limit)], notes)

    @classmethod
    def needs(cls) -> DatasetNeeds:
        return DatasetNeeds("prompts of a .txt, .csv or .jsonl file: dataset=prompts dataset.root=FILE", None)


class BadLine(ValueError):
    """What is wrong with one line."""


def read_prompts(path: Path) -> list[Item]:
    """The items of a file, in its order. Raises DatasetError with all bad lines, or for a file of another kind."""
    items: dict[str, Item] = {}
    bad: list[str] = []
    for line, make in _lines(path):
        try:
            item = _item(make(), len(items) + len(bad))
            if item.id in items:
                raise BadLine(f"the id {item.id!r} is there twice; every id must be another")
            items[item.id] = item
        except BadLine as error:
            bad.append(f"  line {line}: {error}")
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DatasetError(f"{len(bad)} bad line(s) in {path}:\n" + "\n".join(bad[:_SHOWN]) + f"{more}\nMend the file")
    if not items:
        raise DatasetError(f"{path} holds no prompts; {_EXPECTED}")
    return list(items.values())


def _lines(path: Path) -> _Lines:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return of_parquet(path)
    if kind == ".tar":
        return of_tar(path, BadLine)
    if kind not in _READERS:
        raise DatasetError(f"dataset.root={path}: {_EXPECTED}")
    text = read_text(path)
    if not text.strip():
        raise DatasetError(f"{path} holds no prompts; {_EXPECTED}")
    return _READERS[kind](text, path)


def read_text(path: Path) -> str:
    """A file's text, with or without a byte order mark. Raises DatasetError when it is not UTF-8 or can't be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 (byte {error.start:,}): save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror or error}") from error


def _item(fields: Mapping[str, Any], number: int) -> Item:
    """An item of a line's columns. number: of the prompt in the file, from 0."""
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadLine(f"prompt is {prompt!r}: expected text that is not empty")
    try:
        content = prompt_hash(prompt)
    except UnicodeEncodeError as error:
        raise BadLine(f"prompt is {prompt!r}: half of a surrogate pair is no text") from error
    name = _name(fields, "id", f"{number:05d}")
    tags = {key: value for key, value in fields.items() if key not in ("prompt", "id", "cluster")}
    return Item(name, _name(fields, "cluster", name), content, prompt, tags)


def _name(fields: Mapping[str, Any], key: str, default: str) -> str:
    """An id or a cluster: text or a whole number; the default where there is no such column."""
    value = fields.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise BadLine(f"{key} is {value!r}: expected text of one line that is not empty, or a whole number")
    return value


# Each line's number, from 1, and what makes its columns (raises BadLine).
_Lines = Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]


def _of_text(text: str, path: Path) -> _Lines:
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        yield number, partial(dict, prompt=line.strip())


def _of_csv(text: str, path: Path) -> _Lines:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = list(rows.fieldnames or [])
        if "prompt" not in columns or len(set(columns)) < len(columns):
            raise DatasetError(
                f"{path} has the columns {', '.join(columns) or 'none'}: expected `prompt`, each one once"
            )
        for row in rows:
            yield rows.line_num, partial(_of_row, row, columns)
    except csv.Error as error:
        raise DatasetError(f"{path} is no CSV file: line {rows.line_num}: {error}") from error


def _of_row(row: Mapping[Any, Any], columns: list[str]) -> Mapping[str, Any]:
    if None in row or None in row.values():
        found = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None) or ())
        raise BadLine(f"{found} values for the {len(columns)} columns {', '.join(columns)}")
    return row


def _of_jsonl(text: str, path: Path) -> _Lines:
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield number, partial(_of_object, line)


def _of_object(line: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(line, parse_constant=_no_number)
    except ValueError as error:
        raise BadLine(f"it is no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise BadLine(f"it is {type(fields).__name__}: expected an object with a `prompt`")
    return fields


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


_READERS: dict[str, Callable[[str, Path], _Lines]] = {".txt": _of_text, ".csv": _of_csv, ".jsonl": _of_jsonl}
_EXPECTED = "expected a .txt file with a prompt a line, or a .csv or .jsonl file with a column `prompt`"
