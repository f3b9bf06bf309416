"""What is known of a dataset's items beside their content, from a CSV: for models that ask for it."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from evals.datasets.base import DatasetError
from lactok.items import Item

# Columns that name the item: ours, and that of the hub's image folders.
NAMES = ("file", "file_name")


def with_metadata(items: Sequence[Item], path: str) -> list[Item]:
    """The items with a line of a CSV each as their metadata, by column, as texts; what a dataset knows already is kept.

    The column file (or file_name) is an item's id: of dataset=folder the path below the root, with forward slashes.
    Lines of other items are left aside. Raises DatasetError for a file that can't be read, an item that has no line or
    two, or a line with too few or too many fields.
    """
    found = _lines(path)
    if absent := [item.id for item in items if item.id not in found]:
        raise DatasetError(
            f"dataset.metadata={path} has no line for {len(absent):,} of {len(items):,} items, the first: "
            f"{absent[0]!r}; its {len(found):,} lines begin with {next(iter(found), 'nothing')!r}. Column file "
            "holds an image's path below dataset.root, with forward slashes"
        )
    return [dataclasses.replace(item, metadata={**item.metadata, **found[item.id]}) for item in items]


def _lines(path: str) -> dict[str, dict[str, str]]:
    """By item, the other columns of its line."""
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            lines, columns = list(table), list(table.fieldnames or ())
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"dataset.metadata={path} can't be read ({error}): expected a CSV with a header") from error
    key = next((name for name in NAMES if name in columns), None)
    if key is None:
        raise DatasetError(
            f"dataset.metadata={path} has the columns {', '.join(columns) or '(none)'}: expected file, and one a fact"
        )
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise DatasetError(f"dataset.metadata={path}: entry {number} has not {len(columns)} fields, as its header")
        if line[key] in found:
            raise DatasetError(f"dataset.metadata={path} has two lines for {line[key]!r}: expected one")
        found[line[key]] = {name: value for name, value in line.items() if name != key}
    return found
