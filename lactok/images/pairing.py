"""Which image of one folder belongs to which reference of another: by name, by stem, or by a table. No torch here."""

from __future__ import annotations

import csv
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lactok.images.folder import list_folder, printable

NAME, STEM = "name", "stem"
_NAMED = re.compile(r"([^=/\\\[\],]+)=(.+)", re.DOTALL)


class PairingError(Exception):
    """The images can't be paired at all; the message says what was seen, what is expected and the way out."""


class Unpaired(Exception):
    """A reference has no image, or more than one; the message is the reason."""


def split_name(root: str) -> tuple[str | None, str]:
    """(name, path) of "NAME=PATH", or (None, path) of a plain path. One that exists as it stands is a path."""
    match = _NAMED.fullmatch(root)
    if match is None or os.path.exists(os.path.expanduser(root)):
        return None, root
    return match[1], match[2]


def stem(identifier: str) -> str:
    """A path below a folder without its file's ending: `sub/a.png` to `sub/a`."""
    return posixpath.splitext(identifier)[0]


@dataclass
class Pairing:
    """The images of a folder and how they are paired.

    how: "name" (the same path below both folders), "stem" (the same without the ending), or the path of a CSV with the
    columns reference and image, each a path below its folder. images: path below the folder to file. table: reference
    to image, of a CSV.
    """

    folder: Path
    how: str
    images: Mapping[str, Path]
    table: Mapping[str, str] = field(default_factory=dict)
    _by_stem: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of_folder(cls, root: str, how: str) -> Pairing:
        """Raises PairingError for a folder that is none or has no images, or a table that can't be used."""
        folder = Path(root).expanduser()
        if not folder.is_dir():
            found = "is a file: name the folder that holds it" if folder.exists() else "does not exist"
            raise PairingError(f"{printable(folder)} {found} (absolute: {printable(folder.absolute())})")
        listing = list_folder(folder)
        if listing.unlisted:
            raise PairingError("; ".join(f"{error.path}: {error.reason}" for error in listing.unlisted))
        if not listing.images:
            found = listing.aside_counts or "nothing"
            raise PairingError(f"{printable(folder.absolute())} holds no images; found {found}")
        table = {} if how in (NAME, STEM) else _read_table(how)
        made = cls(folder, how, listing.images, table)
        for identifier in listing.images:
            made._by_stem.setdefault(stem(identifier), []).append(identifier)
        return made

    def find(self, reference: str) -> str:
        """The path below the folder of a reference's image. Raises Unpaired."""
        if self.how == STEM:
            found = self._by_stem.get(stem(reference), [])
            if len(found) > 1:
                raise Unpaired(f"{len(found)} images have its stem: {', '.join(sorted(found))}")
            if not found:
                raise Unpaired(f"no image has the stem {stem(reference)}")
            return found[0]
        if self.how == NAME:
            wanted = reference
        elif reference in self.table:
            wanted = self.table[reference]
        else:
            raise Unpaired(f"{self.how} has no line for it")
        if wanted not in self.images:
            raise Unpaired(f"there is no image {wanted}")
        return wanted

    def several(self, references: Iterable[str]) -> list[str]:
        """The images that `find` can't choose between for one of the references, with pair=stem."""
        if self.how != STEM:
            return []
        found = (self._by_stem.get(stem(reference), []) for reference in references)
        return [image for images in found if len(images) > 1 for image in images]


def shared_stems(identifiers: Iterable[str]) -> list[str]:
    """The paths that have one stem, a text each stem: "a.jpg and a.png"."""
    by_stem: dict[str, list[str]] = {}
    for identifier in sorted(identifiers):
        by_stem.setdefault(stem(identifier), []).append(identifier)
    return [" and ".join(names) for names in by_stem.values() if len(names) > 1]


def _read_table(name: str) -> dict[str, str]:
    """The CSV's pairs. Raises PairingError with all lines that are bad."""
    path = Path(name).expanduser()
    expected = "expected name, stem, or a CSV file with the columns reference and image"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            lines = [(reader.line_num, line.get("reference"), line.get("image")) for line in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise PairingError(f"pair={name} can't be read ({error}): {expected}") from error
    if not {"reference", "image"} <= set(columns):
        raise PairingError(f"pair={name} has the columns {', '.join(columns) or 'none'}: {expected}")
    table: dict[str, str] = {}
    bad = []
    for number, reference, image in lines:
        if not reference or not image:
            bad.append(f"line {number}: reference {reference!r}, image {image!r}: expected a path each")
        elif table.setdefault(reference, image) != image:
            bad.append(f"line {number}: {reference} has the images {table[reference]} and {image}: expected one")
    if bad:
        raise PairingError(f"pair={name}: {len(bad):,} lines can't be used:" + "".join(f"\n  {line}" for line in bad))
    return table
