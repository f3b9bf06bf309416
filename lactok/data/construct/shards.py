"""Shards: WebDataset tars of images, captions and metadata, each with a Parquet index; build.json last of all.

The bytes of a shard depend on its samples alone. A shard counts when its index stands: the tar is on disk before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lactok.files import explained, write_atomically


@dataclass
class Sample:
    """What goes into a shard. key: the name of its files; format: of the image's file; facts: the rest of its metadata,
    plain JSON, the same keys in every sample of a build."""

    key: str
    image: bytes
    format: str
    caption: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """A written shard, as build.json lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


def name_of(number: int) -> str:
    """A shard's file."""
    return f"shard-{number:05d}.tar"


def write_shard(folder: Path, number: int, samples: Iterator[Sample], schema: pa.Schema) -> Shard:
    """Write a shard and its index. schema: of the index's rows. Raises WriteError, and leaves nothing half-written."""
    path = folder / name_of(number)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows: list[dict[str, Any]] = []
    try:
        with explained(path):
            folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    rows.extend(_added(tar, sample, path.name) for sample in samples)
                file.flush()
                os.fsync(file.fileno())
            digest, size = _digest(temporary), temporary.stat().st_size
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    about = {"tar_sha256": digest, "tar_bytes": str(size)}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema.with_metadata(about)), buffer, compression="zstd")
    index = path.with_suffix(".parquet")
    write_atomically(index, buffer.getvalue())
    return Shard(path.name, len(rows), size, digest, index.name, hashlib.sha256(buffer.getvalue()).hexdigest())


def _added(tar: tarfile.TarFile, sample: Sample, shard: str) -> dict[str, Any]:
    """Add a sample's files; its row of the index."""
    facts = {**sample.facts, "key": sample.key, "caption": sample.caption}
    metadata = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
    offset = tar.offset + tarfile.BLOCKSIZE
    image = f"{sample.key}.{sample.format}"
    for name, content in (
        (image, sample.image),
        (f"{sample.key}.txt", sample.caption.encode()),
        (f"{sample.key}.json", metadata),
    ):
        member = tarfile.TarInfo(name)  # mtime, uid and gid 0, mode 0644
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    place = {"shard": shard, "image_name": image, "image_offset": offset, "image_size": len(sample.image)}
    return {**facts, **place}


def index_schema(judges: Sequence[str]) -> pa.Schema:
    """Of an index: what docs/data-construction.md lists, a column of scores a judge."""
    text, whole = pa.string(), pa.int64()
    columns = [("key", text), ("shard", text), ("image_name", text), ("image_offset", whole), ("image_size", whole)]
    columns += [("caption", text), ("raw_caption", text), ("width", pa.int32()), ("height", pa.int32())]
    columns += [("pixels_sha256", text), ("source", text), ("source_id", text), ("source_index", whole)]
    columns += [("seed", whole), ("synthesiser", text), ("captioner", text), ("judges", text)]
    return pa.schema(columns + [(f"score_{name}", pa.float64()) for name in judges])


def standing(folder: Path, number: int) -> Shard | None:
    """The shard if it is written whole; its tar is compared by size."""
    path = folder / name_of(number)
    index = path.with_suffix(".parquet")
    try:
        content = index.read_bytes()
        stored = pq.ParquetFile(io.BytesIO(content))
        about = stored.schema_arrow.metadata or {}
        size = path.stat().st_size
        if size != int(about[b"tar_bytes"]):
            return None
        digest = about[b"tar_sha256"].decode()
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    rows = stored.metadata.num_rows
    return Shard(path.name, rows, size, digest, index.name, hashlib.sha256(content).hexdigest())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
