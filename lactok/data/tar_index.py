"""Where the samples of WebDataset tars lie: member offsets, so that a sample is one read at its place.

A sample is the members of one key, the name up to the first dot of its last part: an image, and where there is one a
KEY.txt and a KEY.json. The index has a record batch a tar, in the order of the tars and of their members. Kept in a
file, it is mapped, not read into memory: about 70 bytes a sample.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lactok.data.folder import DataError, name_rank
from lactok.data.tar_roots import BuiltShard, TarRoot
from lactok.files import explained, write_atomically
from lactok.images.decode import has_image_ending
from lactok.images.folder import counted_endings, ending, identifier
from lactok.images.tars import MAX_MEMBER, ArchiveError, TarMember, tar_members
from lactok.locks import waiting_lock
from lactok.progress import Meter

INDEX_VERSION = 1
DATA, ABOUT = "tars.arrow", "tars.json"
"""An index's files; the second is written last."""
PROBED = 64
"""Samples of a set, spread over it, whose bytes are part of its fingerprint."""

_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int32()),
        ("text_offset", pa.int64()),
        ("text_size", pa.int32()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int32()),
        ("rank", pa.uint64()),
    ]
)
"""name: of the image, as `lactok.images.folder.identifier` gives it; offsets and sizes in bytes, 0 where there is no
such member; rank: `name_rank` of the name."""


@dataclass(frozen=True)
class Place:
    """One sample: its tar's number, the image's name, and where its members lie (None: not there)."""

    tar: int
    name: str
    image: TarMember
    text: TarMember | None
    json: TarMember | None


@dataclass(frozen=True)
class AboutIndex:
    """What is known of an index. stamps: of the tars, by which it is told to be of the same files; fingerprint: sha256
    hex over names, sizes and what was probed of the content; counts: samples of each tar; aside: members that belong
    to no sample, by ending."""

    version: int
    stamps: list[list[Any]]
    fingerprint: str
    counts: list[int]
    aside: dict[str, int] = field(default_factory=dict)


class TarIndex:
    """The samples of several tars, one after the other: `index[i]` is a `Place`."""

    def __init__(self, tars: Sequence[Path], about: AboutIndex, batches: Sequence[pa.RecordBatch], file: Path | None):
        self.tars, self.about, self._batches, self._file = list(tars), about, list(batches), file
        self._ends = np.cumsum(about.counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that gets it maps the file itself."""
        if self._file is None:
            return TarIndex, (self.tars, self.about, self._batches, None)
        return _mapped, (self.tars, self.about, self._file)

    @cached_property
    def ranks(self) -> np.ndarray:
        """uint64 (N,), see `name_rank`."""
        return np.concatenate([np.zeros(0, np.uint64), *(batch.column("rank").to_numpy() for batch in self._batches)])

    def place(self, i: int) -> tuple[int, int]:
        """The tar's number and the sample's row in it."""
        tar = int(np.searchsorted(self._ends, i, side="right"))
        return tar, i - (int(self._ends[tar - 1]) if tar else 0)

    def name(self, i: int) -> str:
        """Of the image in its tar."""
        tar, row = self.place(i)
        return self._batches[tar].column("name")[row].as_py()

    def __getitem__(self, i: int) -> Place:
        tar, row = self.place(i)
        values = {name: self._batches[tar].column(name)[row].as_py() for name in _SCHEMA.names}

        def member(kind: str) -> TarMember | None:
            offset = values[f"{kind}_offset"]
            return TarMember(values["name"], offset, values[f"{kind}_size"]) if offset else None

        image = TarMember(values["name"], values["image_offset"], values["image_size"])
        return Place(tar, values["name"], image, member("text"), member("json"))


def open_tar_index(root: TarRoot, folder: Path | None) -> TarIndex:
    """The index of the tars of a root, made where `folder` holds none of these very files; with None nothing is kept.

    Raises DataError for tars that can't be used or hold no image, WriteError.
    """
    try:
        stamps = [_stamp(path) for path in root.tars]
    except OSError as error:
        raise DataError(f"{error.filename} can't be read: {error.strerror or error}") from error
    if folder is None:
        batches: list[pa.RecordBatch] = []
        about = _write(root, stamps, batches.append)
        return TarIndex(root.tars, about, batches, None)
    if stored := _stored(root, folder, stamps):
        return stored
    with explained(folder / DATA):
        folder.mkdir(parents=True, exist_ok=True)
        with waiting_lock(folder / ".tars.lock"):  # of processes that share an index, one writes
            return _stored(root, folder, stamps) or _made(root, folder, stamps)


def _stamp(path: Path) -> list[Any]:
    stat = path.stat()
    return [
        os.path.realpath(path).encode("utf-8", "surrogateescape").hex(),
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ctime_ns,
    ]


def _stored(root: TarRoot, folder: Path, stamps: list[list[Any]]) -> TarIndex | None:
    try:
        about = AboutIndex(**json.loads((folder / ABOUT).read_bytes()))
        if (about.version, about.stamps) != (INDEX_VERSION, [[*stamp, root.digest] for stamp in stamps]):
            return None
        return _mapped(root.tars, about, folder / DATA)
    except (OSError, TypeError, ValueError, pa.ArrowException):  # missing, cut short, or another version's
        return None


def _mapped(tars: Sequence[Path], about: AboutIndex, file: Path) -> TarIndex:
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    if [batch.num_rows for batch in batches] != about.counts or reader.schema != _SCHEMA:
        raise ValueError(f"{file} is another index")
    return TarIndex(tars, about, batches, file)


def _made(root: TarRoot, folder: Path, stamps: list[list[Any]]) -> TarIndex:
    partial = folder / f".{DATA}.tmp"
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            about = _write(root, stamps, writer.write_batch)
        (folder / ABOUT).unlink(missing_ok=True)  # from here on the old index is none
        os.replace(partial, folder / DATA)
    finally:
        partial.unlink(missing_ok=True)
    write_atomically(folder / ABOUT, json.dumps(asdict(about)).encode())
    return _mapped(root.tars, about, folder / DATA)


def _write(root: TarRoot, stamps: list[list[Any]], keep: Any) -> AboutIndex:
    """Every tar's batch to `keep`. Raises DataError."""
    counts: list[int] = []
    aside: Counter[str] = Counter()
    digest = sha256()
    probe = _Probe(len(root.tars))
    with Meter(len(root.tars), "indexing tars", unit="archive") as meter:
        for number, path in enumerate(root.tars):
            built = root.built[number] if root.built else None
            try:
                batch = _built(path, built) if built else _walked(path, aside)
            except ArchiveError as error:
                raise DataError(str(error)) from error
            keep(batch)
            counts.append(batch.num_rows)
            if built:
                digest.update(f"{built.sha256}\n".encode())
            else:
                for name in ("name", "image_offset", "image_size", "text_size", "json_size"):
                    digest.update(json.dumps(batch.column(name).to_pylist()).encode())
                probe.look(path, batch, digest)
            meter.advance()
    if not sum(counts):
        found = f"other members: {counted_endings(aside)}" if aside else "no members at all"
        raise DataError(
            f"data.root={root.root}: no image among the members of {len(counts):,} tar(s) ({found}); expected "
            "KEY.jpg, KEY.png or another image's ending"
        )
    return AboutIndex(
        INDEX_VERSION, [[*stamp, root.digest] for stamp in stamps], digest.hexdigest(), counts, dict(aside)
    )


class _Probe:
    """Adds the bytes of some samples to a digest: tars of other pixels and equal sizes are likely told."""

    def __init__(self, tars: int) -> None:
        self._every, self._each = max(1, tars // PROBED), max(1, PROBED // max(1, tars))
        self._number = -1

    def look(self, path: Path, batch: pa.RecordBatch, digest: Any) -> None:
        self._number += 1
        if self._number % self._every or not batch.num_rows:
            return
        rows = sorted({row * (batch.num_rows - 1) // max(1, self._each - 1) for row in range(self._each)})
        with open(path, "rb") as file:
            for row in rows:
                for kind in ("image", "text", "json"):
                    file.seek(batch.column(f"{kind}_offset")[row].as_py())
                    digest.update(file.read(batch.column(f"{kind}_size")[row].as_py()))


def _walked(path: Path, aside: Counter[str]) -> pa.RecordBatch:
    samples = list(_samples(path, aside))
    names = [identifier(Path(image.name)) for image, _, _ in samples]
    columns: list[Sequence[Any]] = [names]
    for part in zip(*samples) if samples else ((), (), ()):
        columns.append([member.offset if member else 0 for member in part])
        columns.append([member.size if member else 0 for member in part])
    return _batch([*columns, [name_rank(name) for name in names]])


def _samples(path: Path, aside: Counter[str]) -> Iterator[tuple[TarMember, TarMember | None, TarMember | None]]:
    """(image, text, metadata) of each sample, in the order of the images. Raises ArchiveError."""
    members = {member.name: member for member in tar_members(path)}
    images: dict[str, list[TarMember]] = {}
    for member in members.values():
        if has_image_ending(member.name) and not _hidden(member.name):
            images.setdefault(_key(member.name), []).append(member)
    used = set()
    chosen = sorted(((stem, m) for key, of in images.items() for stem, m in _of_key(path, key, of)), key=_offset)
    for stem, image in chosen:
        text, data = members.get(f"{stem}.txt"), members.get(f"{stem}.json")
        used |= {member.name for member in (image, text, data) if member}
        yield image, text, data
    aside.update(ending(name) for name in members if name not in used)


def _offset(chosen: tuple[str, TarMember]) -> int:
    return chosen[1].offset


def _of_key(path: Path, key: str, images: Sequence[TarMember]) -> Iterable[tuple[str, TarMember]]:
    """The images of a key that are samples, each with the stem of what lies beside it.

    KEY.jpg before KEY.mask.png; where there are only such, they are images of a folder whose names have dots.
    """
    plain = [image for image in images if image.name.rpartition(".")[0] == key]
    if len(plain) > 1:
        raise ArchiveError(
            f"{path}: the key {key!r} has two images, {plain[0].name!r} and {plain[1].name!r} (at bytes "
            f"{plain[0].offset:,} and {plain[1].offset:,}): expected one of a key"
        )
    return [(key, plain[0])] if plain else [(image.name.rpartition(".")[0], image) for image in images]


def _key(name: str) -> str:
    """WebDataset's: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _hidden(name: str) -> bool:
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"


def _batch(columns: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _built(path: Path, shard: BuiltShard) -> pa.RecordBatch:
    """From the Parquet index beside a built shard. Raises ArchiveError where it does not fit the tar."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(shard.index, columns=["image_name", "image_offset", "image_size"]).combine_chunks()
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ArchiveError(f"{shard.index} can't be read ({str(error).splitlines()[0]}): get it again") from error
    names, offsets, sizes = (table.column(name).to_pylist() for name in table.column_names)
    length = path.stat().st_size
    if (len(names), length) != (shard.samples, shard.size):
        raise ArchiveError(
            f"{path} has {length:,} bytes and its index {len(names):,} samples; build.json says {shard.size:,} and "
            f"{shard.samples:,}: get both again"
        )
    for name, offset, size in zip(names, offsets, sizes):
        good = isinstance(name, str) and offset is not None and size is not None
        if not good or not (0 < offset <= length and 0 < size <= min(MAX_MEMBER, length - offset)):
            raise ArchiveError(
                f"{shard.index}: {name!r} at byte {offset} with {size} bytes does not lie in {path.name} of {length:,} "
                "bytes: get both again"
            )
    nothing = [0] * len(names)
    return _batch([names, offsets, sizes, *[nothing] * 4, [name_rank(name) for name in names]])
