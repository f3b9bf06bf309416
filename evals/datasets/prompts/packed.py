"""Prompts of the hub's parquet and of WebDataset tars, each row or sample as the columns of a .jsonl's line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from evals.datasets.base import DataError, DatasetError
from lactok.images.tars import ArchiveError, TarMember, tar_members

# Columns that are the prompt where there is no `prompt`, the first that is there.
TEXTS = ("text", "caption")
# Bytes of a prompt's member.
_MAX_TEXT = 2**20
_ROWS = 1000


def of_parquet(path: Path) -> Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """Each row's number, from 1, and its columns; those of bytes (images) are left aside. Raises DatasetError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = [field.name for field in file.schema_arrow if _is_plain(field.type)]
        text = next((name for name in ("prompt", *TEXTS) if name in names), None)
        if text is None:
            found = ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow)
            raise DatasetError(f"{path} has the columns {found}: expected `prompt`, `text` or `caption` of text")
        number = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=names, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                prompt = row.pop(text)
                yield (
                    number,
                    partial(dict, {key: value for key, value in row.items() if value is not None}, prompt=prompt),
                )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is cut off or damaged ({str(error).splitlines()[0]}): get it again") from error


def _is_plain(kind: Any) -> bool:
    """Whether JSON has such values."""
    import pyarrow as pa

    checks = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
    )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    return any(check(kind) for check in checks)


def of_tar(path: Path, bad: type[ValueError]) -> Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """Each KEY.txt's number, from 1, and its prompt, with KEY as id. bad: raised for a text that is none.

    Raises DatasetError.
    """
    try:
        texts = [member for member in tar_members(path) if member.name.endswith(".txt")]
    except ArchiveError as error:
        raise DataError(str(error)) from error
    if not texts:
        raise DatasetError(f"{path} holds no prompts: expected members KEY.txt")
    for number, member in enumerate(texts, start=1):
        yield number, partial(_of_member, path, member, bad)


def _of_member(path: Path, member: TarMember, bad: type[ValueError]) -> Mapping[str, Any]:
    if member.size > _MAX_TEXT:
        raise bad(f"{member.name!r} has {member.size:,} bytes: expected a prompt of at most {_MAX_TEXT:,}")
    with open(path, "rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    try:
        return {"prompt": data.decode("utf-8-sig").strip(), "id": member.name.removesuffix(".txt")}
    except UnicodeDecodeError as error:
        raise bad(f"{member.name!r} is not UTF-8 (byte {error.start:,})") from error
