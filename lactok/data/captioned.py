"""Images with captions: a folder with captions.jsonl or metadata.jsonl, or a text file beside each image; tars."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lactok.data.folder import DataError, list_images
from lactok.images.decode import read_bytes
from lactok.images.folder import printable

TABLES = {"captions.jsonl": ("file", "caption"), "metadata.jsonl": ("file_name", "text")}
"""Files of a line an image, and the keys of its path in the folder and of its caption: those that
`python -m lactok.data.scenes` writes, and those of Hugging Face's ImageFolder."""

NO_TEXT = "no NAME.txt beside it"
"""Why an image of a folder without a table is left out."""
_SHOWN = 10
"""Bad entries that a message shows."""


@dataclass(frozen=True)
class CaptionedImage(ABC):
    """name: of the image below its folder; caption: text that is not empty; problem: why it can't be used, else ""."""

    name: str
    caption: str
    problem: str

    @abstractmethod
    def read(self) -> bytes:
        """The image's file. Raises ImageError."""


@dataclass(frozen=True)
class CaptionedFile(CaptionedImage):
    """An image of a folder."""

    path: Path

    def read(self) -> bytes:
        return read_bytes(self.path)


class CaptionedImages(ABC):
    """A numbered set of them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> CaptionedImage: ...

    @property
    @abstractmethod
    def identity(self) -> str:
        """sha256 hex that says whether it is the same data. Raises DataError."""


class CaptionedFolder(CaptionedImages):
    """What `list_captioned` lists, and between them, with a problem, the images beside which no text lies."""

    def __init__(self, root: str | os.PathLike) -> None:
        """Raises DataError."""
        self.images = _listed(root)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> CaptionedImage:
        return self.images[i]

    @property
    def identity(self) -> str:
        return sha256(json.dumps(names_and_captions(self.images), ensure_ascii=True).encode()).hexdigest()


def captioned_images(root: str | os.PathLike, folder: Path | None = None) -> CaptionedImages:
    """The captioned images of a folder or of tars. folder: where an index of tars is kept.

    Raises DataError, WriteError.
    """
    from lactok.data.sources import image_files
    from lactok.data.tar_captions import TarCaptions
    from lactok.data.tar_roots import find_tars

    if found := find_tars(root):
        files = image_files(root, folder, found)
        return TarCaptions(files)
    return CaptionedFolder(root)


def list_captioned(root: str | os.PathLike) -> list[CaptionedFile]:
    """The images of a folder that have captions, in the table's order, or by name where texts lie beside them.

    Raises DataError for a folder of another kind, and one that lists the bad entries: no JSON, a key that is missing,
    an empty caption, a path that leaves the folder, a file that does not exist.
    """
    return [image for image in _listed(root) if not image.problem]


def _listed(root: str | os.PathLike) -> list[CaptionedFile]:
    """As `CaptionedFolder` has them. Raises DataError, see `list_captioned`."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.root={root}: no such folder; name a folder of images with captions")
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"{printable(folder)} has {' and '.join(t.name for t in tables)}: expected one of them")
    bad: list[str] = []
    made = list(_of_table(folder, tables[0], bad) if tables else _of_texts(folder, bad))
    if bad:
        more = f"\n  and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        lines = "\n".join(f"  {line}" for line in bad[:_SHOWN])
        raise DataError(
            f"{len(bad):,} entries of {printable(folder)} can't be used:\n{lines}{more}\nMend or remove them"
        )
    if all(image.problem for image in made):
        kinds = ", ".join(TABLES)
        raise DataError(
            f"data.root={printable(folder)}: no captions; expected one of {kinds}, or NAME.txt beside NAME.jpg"
        )
    return made


def _of_table(folder: Path, table: Path, bad: list[str]) -> Iterator[CaptionedFile]:
    file_key, text_key = TABLES[table.name]
    try:
        lines = table.read_bytes().decode("utf-8-sig").split("\n")  # JSON may hold other ends of lines, as U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} can't be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            name, caption = fields[file_key], fields[text_key]
        except (ValueError, KeyError, TypeError, RecursionError):
            bad.append(f"{table.name}, line {number}: expected JSON with {file_key} and {text_key}")
            continue
        if reason := _why_not(folder, name, caption):
            bad.append(f"{table.name}, line {number}: {reason}")
        else:
            yield CaptionedFile(name, caption, "", folder / name)


def _of_texts(folder: Path, bad: list[str]) -> Iterator[CaptionedFile]:
    for name, path in list_images(folder).items():
        text = path.with_suffix(".txt")
        if not text.is_file():
            yield CaptionedFile(name, "", NO_TEXT, path)
            continue
        try:
            caption = text.read_bytes().decode("utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            bad.append(f"{printable(text)} can't be read: {error}")
            continue
        if reason := _why_not(folder, name, caption, path):
            bad.append(f"{printable(text)}: {reason}")
        else:
            yield CaptionedFile(name, caption, "", path)


def _why_not(folder: Path, name: object, caption: object, path: Path | None = None) -> str:
    """What is wrong with an entry; "" for one that is good. path: of a file that is known to be there."""
    if reason := why_no_caption(caption):
        return reason
    if path is not None:
        return ""
    if not isinstance(name, str) or not name or os.path.isabs(name) or ".." in Path(name).parts:
        return f"the file is {str(name)[:80]!r}: expected a path inside the folder"
    if _has_surrogate(name):
        return f"the file is {name[:80]!r}: half of a surrogate pair is no text"
    return "" if os.path.isfile(folder / name) else f"there is no file {name[:80]!r}"


def why_no_caption(caption: object) -> str:
    """What is wrong with a caption; "" for one that is good."""
    if not isinstance(caption, str) or not caption.strip():
        return f"the caption is {str(caption)[:40]!r}: expected text"
    return "the caption holds half of a surrogate pair, which is no text" if _has_surrogate(caption) else ""


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def names_and_captions(images: Sequence[CaptionedFile]) -> list[tuple[str, str, int]]:
    """What says whether it is the same data: name, caption and size in bytes of each. Raises DataError."""
    try:
        return [(image.name, image.caption, image.path.stat().st_size) for image in images]
    except OSError as error:
        raise DataError(f"{error.filename} can't be read: {error.strerror or error}") from error
