"""The sources of a build as one list of items, in work/listing: what each unit is made of, fixed before anything runs.

A listing file has a row an item and a row group a unit. Captions are stored in it; images stay where they are and are
read by place: a file, an offset in a tar, a row of a Parquet file. Nothing is ever unpacked from a tar.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lactok.data.construct.items import Unit, WorkItem
from lactok.data.construct.spec import Spec, SpecError
from lactok.data.folder import DataError
from lactok.data.tar_roots import BUILD, find_tars
from lactok.files import explained, write_synced
from lactok.images.decode import has_image_ending
from lactok.images.folder import by_ending, list_folder, printable

UNITS_A_FILE = 100
CAPTION_KEYS = ("caption", "TEXT", "text", "prompt")
IMAGE_KEYS = ("image", "jpg", "png", "webp", "bytes")
ID_KEYS = ("id", "key", "URL", "url", "SAMPLE_ID")
"""Columns and JSON keys that are looked for, in order."""

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("source", "source_id", "caption", "path", "reason", "detail")]
    + [("place", pa.int64()), ("size", pa.int64())]
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


@dataclass
class Entry:
    """One item of a source. path: of the file that holds its image, "" for a caption alone; place, size: bytes in a
    tar; row group and row in a Parquet file; -1 for a file that is the image."""

    source: str
    source_id: str
    caption: str = ""
    path: str = ""
    reason: str = ""
    detail: str = ""
    place: int = -1
    size: int = -1


@dataclass(frozen=True)
class Listing:
    """items, units: how many there are; sources: size and time of change (ns) of each file of a source, to notice that
    it is another one."""

    items: int
    units: int
    unit: int
    sources: dict[str, list[int]]


@dataclass(frozen=True)
class Unread:
    """A line that holds no caption, as it is told."""

    line: str


def cleaned(text: object, longest: int) -> tuple[str, str, str]:
    """(caption, reason, detail): white space to single spaces; the reason for which it can't be used, or ""."""
    if isinstance(text, bytes):
        if len(text) > 4 * longest:  # UTF-8 has four bytes for a character at most
            return "", "caption too long", f"{len(text):,} bytes, at most {longest:,} characters"
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            return "", "caption is not UTF-8", repr(text[:80])
    if not isinstance(text, str):
        return "", "caption is no text", (text.line if isinstance(text, Unread) else repr(text))[:80]
    if len(text) > longest:
        return "", "caption too long", f"{len(text):,} characters, at most {longest:,}"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "", "caption is no text", "it holds half of a surrogate pair"
    if found := _CONTROL.search(text):
        return "", "caption has control characters", f"U+{ord(found[0]):04X}"
    words = " ".join(text.split())
    return (words, "", "") if words else ("", "caption is empty", "")


def make(spec: Spec, out: Path, done: Callable[[int], None] = lambda _: None) -> Listing:
    """The build's listing, made where it does not stand. done: told how many items are listed.

    Raises SpecError for sources that hold nothing or changed since, DataError, WriteError.
    """
    target = out / "work" / "listing"
    sources = sources_of(spec)
    if (target / "listing.json").is_file():
        stored = Listing(**json.loads((target / "listing.json").read_bytes()))
        if stored.sources != sources:
            raise SpecError(
                f"the sources changed since {out} was begun: {_changes(stored.sources, sources)}; put them back as "
                "they were (with their time of change: cp -p), or name another folder by out=DIR"
            )
        return stored
    temporary = target.with_name(f".listing.{os.getpid()}.tmp")
    try:
        with explained(target):
            temporary.mkdir(parents=True)
            listing = _written(spec, temporary, sources, done)
            if not listing.items:
                raise SpecError(f"the sources hold no item: {', '.join([*spec.captions, *spec.images])}")
            write_synced(temporary / "listing.json", json.dumps(asdict(listing), indent=1).encode())
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return listing


def sources_of(spec: Spec) -> dict[str, list[int]]:
    """Every file of the sources with its size and time of change. Raises SpecError, DataError for one that can't be a
    source."""
    return {} if spec.recipe == "mini" else {str(path): _state(path) for path, _ in _files(spec)}


def _state(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere, which is listed and dropped
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def _changes(before: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> str:
    """The first files that differ, each with how."""
    told = []
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            if name in before and name in now:
                told.append(f"{name} ({before[name][0]:,} bytes before, {now[name][0]:,} now)")
            else:
                told.append(f"{name} ({'gone' if name in before else 'new'})")
    return ", ".join(told[:3]) + (f" and {len(told) - 3:,} more" if len(told) > 3 else "")


def _written(spec: Spec, folder: Path, sources: dict[str, list[int]], done: Callable[[int], None]) -> Listing:
    count, units, entries = 0, 0, iter(entries_of(spec))
    finished = False
    while not finished:
        with pq.ParquetWriter(folder / f"{units // UNITS_A_FILE:06d}.parquet", SCHEMA) as writer:
            for _ in range(UNITS_A_FILE):
                rows: list[dict[str, Any]] = []
                while len(rows) < spec.unit and not (spec.items and count + len(rows) >= spec.items):
                    if (entry := next(entries, None)) is None:
                        break
                    rows.append(asdict(entry))
                finished = len(rows) < spec.unit
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                    count, units = count + len(rows), units + 1
                    done(count)
                if finished:
                    break
    return Listing(count, units, spec.unit, sources)


def read_unit(out: Path, number: int, unit: int) -> Unit:
    """The items of a unit, with the bytes of their images; what can't be read is dropped with its reason."""
    path = out / "work" / "listing" / f"{number // UNITS_A_FILE:06d}.parquet"
    rows = pq.ParquetFile(path).read_row_group(number % UNITS_A_FILE).to_pylist()
    items = []
    for offset, row in enumerate(rows):
        entry = Entry(**row)
        item = WorkItem(number * unit + offset, entry.source, entry.source_id, entry.caption)
        if entry.reason:
            item.drop(entry.reason, entry.detail)
        elif entry.path:
            try:
                item.image = _bytes(entry)
            except (OSError, pa.ArrowException, SpecError, KeyError, IndexError, TypeError) as error:
                item.drop("image can't be read", f"{error}")
            else:
                if not item.image:
                    item.drop("image is empty", "0 bytes")
        items.append(item)
    return Unit(number, items)


def _bytes(entry: Entry) -> bytes:
    if entry.path.endswith(".parquet"):
        file = pq.ParquetFile(entry.path)
        column = _first(file.schema_arrow.names, IMAGE_KEYS)
        value = file.read_row_group(entry.place, columns=[column])[column][entry.size].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):  # a text is no path to open: who wrote it may not know what it would open
            raise TypeError(f"column {column} holds {type(value).__name__}, expected the bytes of an image file")
        return value
    with open(entry.path, "rb") as file_:
        if entry.place < 0:
            return file_.read()
        file_.seek(entry.place)
        return file_.read(entry.size)


# --- sources ---------------------------------------------------------------------------------------------------------


def entries_of(spec: Spec) -> Iterator[Entry]:
    """Every item of the sources, in the order of the settings, files of a folder by name."""
    if spec.recipe == "mini":
        from lactok.data.construct.miniature import scene_entries

        yield from scene_entries(spec)
        return
    for path, kind in _files(spec):
        if kind == "captions":
            yield from _captions(path, spec.longest_caption)
        elif path.suffix == ".tar":
            yield from _tar(path, spec.longest_caption)
        elif path.suffix == ".parquet":
            yield from _parquet_images(path, spec.longest_caption)
        else:
            yield _image_file(path, spec.longest_caption)


def _files(spec: Spec) -> Iterator[tuple[Path, str]]:
    """Every file of the sources, with the kind of its source. Raises SpecError."""
    for kind, names in (("captions", spec.captions), ("images", spec.images)):
        for name in names:
            path = Path(name).expanduser().absolute()
            if not path.exists():
                raise SpecError(f"{kind}={name}: no such file or folder")
            if path.is_file():
                if kind == "captions" and path.suffix not in (".txt", ".jsonl", ".parquet"):
                    raise SpecError(f"captions={name}: expected .txt (a caption a line), .jsonl or .parquet")
                if kind == "images" and path.suffix not in (".tar", ".parquet") and not has_image_ending(path.name):
                    raise SpecError(f"images={name}: expected a folder, .tar (not compressed), .parquet or an image")
                yield path, kind
                continue
            for file in _of_folder(path, kind, f"{kind}={name}"):
                yield file, kind


def _of_folder(folder: Path, kind: str, said: str) -> list[Path]:
    """The files of a folder that are sources, by name; of a build's, its shards. said: the setting, for messages.

    A .parquet beside a .tar of its stem is the tar's index, as img2dataset and a build write it, and no source.
    """
    built = find_tars(folder) if kind == "images" and (folder / BUILD).is_file() else None
    if built and built.built:
        return list(built.tars)
    if kind == "captions":
        found = list_folder(folder, lambda path: path.suffix in (".txt", ".jsonl", ".parquet"))
    else:
        found = list_folder(folder, lambda path: path.suffix in (".tar", ".parquet") or by_ending(path))
    if found.unlisted:
        raise DataError(str(found.unlisted[0]))
    if not found.images:
        raise SpecError(f"{said}: no file of this kind among {found.aside.total()} in it")
    files = [file for _, file in sorted(found.images.items(), key=lambda one: one[0].split("/"))]
    if kind == "captions":
        return files
    if (folder / "work").is_dir() and any(folder.glob("shard-*.tar")):
        raise SpecError(
            f"{said} holds shards of an unfinished build (there is no {BUILD}): run its `python -m lactok.data build` "
            "command again, which goes on where it stopped"
        )
    tars = {file for file in files if file.suffix == ".tar"}
    files = [file for file in files if file.suffix != ".parquet" or file.with_suffix(".tar") not in tars]
    loose = sum(by_ending(file) for file in files)
    if 0 < loose < len(files):
        raise SpecError(
            f"{said} holds {len(files) - loose:,} tar(s) or Parquet file(s) and {loose:,} image file(s): expected "
            "one or the other; name the packed files one by one, or a folder of one kind"
        )
    return files


def _captions(path: Path, longest: int) -> Iterator[Entry]:
    if path.suffix == ".parquet":
        file = _parquet(path)
        text = _first(file.schema_arrow.names, CAPTION_KEYS, path)
        own = [name for name in ID_KEYS if name in file.schema_arrow.names][:1]
        number = 0
        for batch in file.iter_batches(8192, columns=[text, *own]):
            values = batch.to_pydict()
            for place, value in enumerate(values[text]):
                given = str(values[own[0]][place]) if own else str(number)
                yield _captioned(path, given, value, longest)
                number += 1
        return
    with open(path, "rb") as lines:
        for number, line in enumerate(_lines(lines, max(_LINE, 8 * longest)), start=1):
            if not line.strip():
                continue
            yield _captioned(path, f"line {number}", _text_of(line, path.suffix == ".jsonl"), longest)


def _captioned(path: Path, identifier: str, value: object, longest: int) -> Entry:
    caption, reason, detail = cleaned(value, longest)
    return Entry(printable(Path(path.name)), identifier[:500], caption, "", reason, detail)


def _text_of(line: bytes, is_json: bool) -> object:
    """A line's caption, or what stands in its place."""
    if not is_json:
        return line
    try:
        fields = json.loads(line.decode("utf-8-sig"))
        return fields[_first(list(fields), CAPTION_KEYS)]
    except UnicodeDecodeError:
        return line
    except (ValueError, KeyError, TypeError, SpecError, RecursionError):
        return Unread(repr(line[:80]))


_LINE = 2**20
"""Bytes of a line that are read at least."""


def _lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    """A file's lines, of a longer one the beginning alone."""
    while line := file.readline(most):
        yield line
        while len(line) == most and not line.endswith(b"\n"):
            line = file.readline(most)


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise SpecError(f"{path} is no Parquet file that can be read: {error}") from error


def _first(names: Sequence[str], wanted: Sequence[str], path: Path | str = "") -> str:
    for name in wanted:
        if name in names:
            return name
    where = f"{path}: " if path else ""
    raise SpecError(f"{where}expected a column {' or '.join(wanted)}, it has {', '.join(map(str, names))[:200]}")


def _image_file(path: Path, longest: int) -> Entry:
    entry = Entry(printable(Path(path.parent.name)), printable(Path(path.name)), path=str(path))
    if not path.is_file():  # a pipe would never end, a link may lead to nothing
        entry.reason, entry.detail = "image can't be read", "it is no regular file"
        return entry
    text = path.with_suffix(".txt")
    if text.is_file():
        _say(entry, text.read_bytes()[: 4 * longest + 4], longest)
    return entry


def _say(entry: Entry, content: bytes, longest: int) -> None:
    """Give an image its own caption, which one that can't be used takes with it."""
    try:
        text: object = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = content[:40] if len(content) <= 4 * longest else "x" * (longest + 1)
        del error
    caption, reason, detail = cleaned(text, longest)
    if reason and reason != "caption is empty":
        entry.reason, entry.detail = reason, detail
    entry.caption = caption


def _parquet_images(path: Path, longest: int) -> Iterator[Entry]:
    file = _parquet(path)
    names = file.schema_arrow.names
    _first(names, IMAGE_KEYS, path)
    texts = [name for name in CAPTION_KEYS if name in names][:1]
    own = [name for name in ID_KEYS if name in names][:1]
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        values: dict[str, list[Any]] = file.read_row_group(group, columns=[*texts, *own]).to_pydict()
        for row in range(count):
            identifier = str(values[own[0]][row]) if own else f"row group {group}, row {row}"
            entry = Entry(printable(Path(path.name)), identifier[:500], path=str(path), place=group, size=row)
            if texts and values[texts[0]][row]:
                entry.caption, entry.reason, entry.detail = cleaned(values[texts[0]][row], longest)
            yield entry


def _tar(path: Path, longest: int) -> Iterator[Entry]:
    """The samples of a WebDataset tar, by key: a name up to the first dot of its last part."""
    source, damage = printable(Path(path.name)), ""
    keys: dict[str, list[tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if reason := _why_unsafe(member):
                    if has_image_ending(member.name) or member.name.startswith(("/", "..")) or ".." in member.name:
                        yield Entry(source, ascii(member.name)[:200], reason=reason, detail=ascii(member.name)[:80])
                elif member.isfile():
                    keys.setdefault(_key(member), []).append(member)
    except (tarfile.TarError, EOFError, OSError) as error:
        damage = f"{error}"
    if keys:
        yield from _samples(path, keys, longest)
    if damage:
        yield Entry(source, printable(Path(path.name)), reason="tar is damaged", detail=damage)


def _samples(path: Path, keys: Mapping[str, Sequence[tarfile.TarInfo]], longest: int) -> Iterator[Entry]:
    """The samples of a tar. keys: the members of each."""
    length = os.path.getsize(path)
    with open(path, "rb") as file:
        for key, members in keys.items():
            texts = {name: member for member in members if (name := _in_tar(member)).endswith(".txt")}
            for stem, images in _of_key(key, members):
                entry = Entry(printable(Path(path.name)), printable(Path(stem)), path=str(path))
                if text := texts.get(f"{stem}.txt"):
                    file.seek(text.offset_data)
                    _say(entry, file.read(min(text.size, 4 * longest + 4)), longest)
                if not images:
                    entry.reason = entry.reason or "sample without an image"
                elif len(images) > 1:
                    entry.reason = "two images of one key"
                    entry.detail = ascii(", ".join(image.name for image in images))[:80]
                else:
                    entry.place, entry.size = images[0].offset_data, images[0].size
                if any(member.offset_data + member.size > length for member in (*images, text) if member):
                    entry.caption, entry.reason, entry.detail = "", "tar is damaged", "it ends within this sample"
                yield entry


def _of_key(key: str, members: Sequence[tarfile.TarInfo]) -> list[tuple[str, list[tarfile.TarInfo]]]:
    """The samples of a key, each with the stem of its files and its images, of which there should be one. As trainers
    read a tar (`lactok.data.tar_index`): KEY.jpg before KEY.mask.png; where there are only such, each is a sample."""
    images = [member for member in members if has_image_ending(member.name)]
    if plain := [image for image in images if _stem(image) == key]:
        return [(key, plain)]
    named: dict[str, list[tarfile.TarInfo]] = {}
    for image in images:
        named.setdefault(_in_tar(image), []).append(image)
    found = [(_stem(same[0]), same) for same in named.values()]
    stems = {stem for stem, _ in found}
    texts = dict.fromkeys(_stem(member) for member in members if _in_tar(member).endswith(".txt"))
    return found + [(stem, []) for stem in texts if stem not in stems] or [(key, [])]


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, last = _in_tar(member).rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _stem(member: tarfile.TarInfo) -> str:
    return _in_tar(member).rpartition(".")[0]


def _in_tar(member: tarfile.TarInfo) -> str:
    """A member's name without "./" and the like."""
    return str(PurePosixPath(member.name))


def _why_unsafe(member: tarfile.TarInfo) -> str:
    """Why a member's name or kind is not taken; "" for a good one. Names only tell samples apart: nothing is written
    where they say, but a tar that has such names was made to do harm."""
    if member.name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", member.name):
        return "unsafe name in a tar"
    if ".." in re.split(r"[/\\]", member.name) or _CONTROL.search(member.name):
        return "unsafe name in a tar"
    return "link in a tar" if member.issym() or member.islnk() or member.isdev() else ""
