"""A unit's result: one Parquet file, written whole or not at all, with every item of the unit, kept or dropped."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lactok.data.construct.items import Unit, Work, WorkItem
from lactok.files import write_atomically

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("source", pa.string()),
        ("source_id", pa.string()),
        ("raw_caption", pa.string()),
        ("image", pa.large_binary()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixels_sha256", pa.string()),
        ("seed", pa.int64()),
        ("caption", pa.string()),
        ("scores", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("signature", pa.binary()),
        ("thumbnail", pa.binary()),
        ("preview", pa.binary()),
        ("planted", pa.string()),
    ]
)
WITHOUT_IMAGES = [name for name in SCHEMA.names if name not in ("image", "thumbnail", "preview")]


def folder(out: Path) -> Path:
    """Where a build's units lie."""
    return out / "work" / "units"


def path_of(out: Path, number: int) -> Path:
    """A unit's file."""
    return folder(out) / f"{number:06d}.parquet"


def write(out: Path, unit: Unit) -> None:
    """Store a unit. Dropped items leave their pixels behind. Raises WriteError."""
    rows = []
    for item in unit.items:
        row = asdict(item)
        row["scores"] = json.dumps(item.scores, sort_keys=True)
        if item.reason:
            row.update(image=b"", thumbnail=b"", signature=b"")
        rows.append(row)
    works = json.dumps([asdict(work) for work in unit.works])
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"works": works, "unit": str(unit.number)}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path_of(out, unit.number), buffer.getvalue())


def finished(out: Path, total: int) -> set[int]:
    """The numbers of the units that are done. A file that can't be opened is set aside as damaged-*."""
    done = set()
    for path in sorted(folder(out).glob("*.parquet")):
        if not re.fullmatch(r"\d{6,}", path.stem):
            continue
        try:
            pq.read_metadata(path)
        except (pa.ArrowInvalid, OSError):
            path.replace(path.with_name(f"damaged-{path.name}.old"))
            continue
        done.add(int(path.stem))
    return {number for number in done if number < total}


def works_of(path: Path) -> list[Work]:
    """What the stages did on a unit."""
    stored = pq.read_schema(path).metadata or {}
    return [Work(**work) for work in json.loads(stored.get(b"works", b"[]"))]


def rows(out: Path, numbers: Iterable[int], columns: Sequence[str] = WITHOUT_IMAGES) -> Iterator[pa.Table]:
    """The stored tables of units, one after the other."""
    for number in numbers:
        yield pq.read_table(path_of(out, number), columns=list(columns))


def item_of(row: dict[str, Any]) -> WorkItem:
    """A stored row as an item."""
    values = {name.name: row[name.name] for name in fields(WorkItem) if name.name in row}
    return WorkItem(**{**values, "scores": json.loads(values.get("scores") or "{}")})
