"""Parquet shards with a column `image` of struct{bytes, path}, as the Hugging Face hub writes image datasets."""

from __future__ import annotations

import threading
from collections import OrderedDict
from itertools import count
from pathlib import Path
from typing import Any

from evals.datasets.base import BadImage, DataError
from evals.datasets.images.sources.base import MAX_MEMBER, ImageSource, damaged, file_stamp, safe_name

# Row groups whose bytes are held. The hub writes about 100 images in one, some 11 MB for ImageNet.
_HELD = 4
# Bytes of one row group, and rows that are expanded at a time: dictionaries can make a small file a huge column.
_MAX_GROUP = 4 * 2**30
_ROWS = 16


class NameMissing(DataError):
    """An image has no path, or another's."""


class ParquetSource(ImageSource):
    """Images in shards, by `image.path`; where `unnamed` allows it, those of which a path is missing or there twice go
    by shard and row, all of them. Raises DataError for a shard that is cut off or has other columns."""

    def __init__(self, shards: list[Path], where: Path, unnamed: bool = False) -> None:
        self.where = where
        self.unlisted: list[BadImage] = []
        self._places: dict[str, tuple[Path, int, int]] = {}
        try:
            for shard in shards:
                self._list(shard)
        except NameMissing:
            if not unnamed:
                raise
            self._places = {}
            for shard in shards:
                self._number(shard)
        self.members = list(self._places)
        self._fresh()

    def read(self, name: str) -> bytes:
        shard, group, row = self._places[name]
        with self._lock:
            data = self._group(shard, group)[row]
        if data is None:
            raise DataError(f"{self.label(name)} has no image.bytes: get the shard again")
        return data

    def stamp(self, name: str) -> tuple[int, ...]:
        return file_stamp(self._places[name][0])

    def label(self, name: str) -> str:
        return f"{self._places[name][0]}: {name}"

    def _list(self, shard: Path) -> None:
        with _explained(shard):
            file = _open(shard)
            for group in range(file.metadata.num_row_groups):
                paths = file.read_row_group(group, columns=["image.path"]).column("image").combine_chunks()
                for row, path in enumerate(paths.field("path").to_pylist()):
                    if not path:
                        raise NameMissing(f"{shard}: row {row} of row group {group} has no image.path to name it by")
                    name = safe_name(path, shard)
                    if name in self._places:
                        raise NameMissing(
                            f"{shard}: {name!r} is in {self._places[name][0]} too: keep one set of shards"
                        )
                    self._places[name] = (shard, group, row)

    def _number(self, shard: Path) -> None:
        with _explained(shard):
            file = _open(shard)
            numbers = count()
            for group in range(file.metadata.num_row_groups):
                for row in range(file.metadata.row_group(group).num_rows):
                    name = f"{shard.stem}/{next(numbers):08d}"
                    if name in self._places:
                        raise DataError(f"{shard} and {self._places[name][0]} have one name: keep one set of shards")
                    self._places[name] = (shard, group, row)

    def _group(self, shard: Path, group: int) -> list[bytes | None]:
        """The bytes of a row group's images; under the lock."""
        key = (shard, group)
        if key not in self._groups:
            while len(self._groups) >= _HELD:
                self._groups.popitem(last=False)
            with _explained(shard):
                if shard not in self._files:
                    self._files[shard] = _open(shard)
                self._groups[key] = _read_group(self._files[shard], shard, group)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[Path, Any] = {}
        self._groups: OrderedDict[tuple[Path, int], list[bytes | None]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_files", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()


def _open(shard: Path) -> Any:
    """The open shard, its schema checked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(shard)
    schema = file.schema_arrow
    image = schema.field("image").type if "image" in schema.names else None
    fields = {f.name: f.type for f in image} if image is not None and pa.types.is_struct(image) else {}
    if fields.get("bytes") not in (pa.binary(), pa.large_binary()) or fields.get("path") not in (
        pa.string(),
        pa.large_string(),
    ):
        found = ", ".join(f"{f.name}: {f.type}" for f in schema)
        raise DataError(f"{shard} has the columns {found}; expected image: struct<bytes: binary, path: string>")
    return file


def _read_group(file: Any, shard: Path, group: int) -> list[bytes | None]:
    images: list[bytes | None] = []
    total = 0
    for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=["image.bytes"], use_threads=False):
        values = batch.column(0).field("bytes").to_pylist()
        sizes = [len(value or b"") for value in values]
        total += sum(sizes)
        if max(sizes, default=0) > MAX_MEMBER or total > _MAX_GROUP:
            raise DataError(
                f"{shard} is refused: row group {group} holds an image of {max(sizes):,} bytes, {total:,} in all; "
                f"at most {MAX_MEMBER:,} and {_MAX_GROUP:,} are read"
            )
        images += values
    expected = file.metadata.row_group(group).num_rows
    if len(images) != expected:
        raise damaged(shard, f"row group {group} has {len(images)} rows and declares {expected}")
    return images


class _explained:
    """Turns pyarrow's errors on a shard into a DataError."""

    def __init__(self, shard: Path) -> None:
        self.shard = shard

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException | OSError | EOFError):
            raise damaged(self.shard, str(error).splitlines()[0]) from error
