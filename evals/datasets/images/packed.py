"""Images of dataset=folder that lie in archives in place of a folder: tars (WebDataset's too), zips, the hub's parquet.

An item's id is the member's name, as the file's path is in a folder made from the archive, so both give one table.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from evals.datasets.base import DataError, DatasetError
from evals.datasets.images.preflight import Checked, check_source
from evals.datasets.images.sources.base import ImageSource
from evals.datasets.images.sources.shards import ParquetSource
from evals.datasets.images.sources.tarred import TarSource, expand
from evals.datasets.images.sources.zipped import ZipSource
from lactok.images.decode import Decoding, has_image_ending
from lactok.images.folder import ending, identifier, list_folder, printable
from lactok.images.tars import ArchiveError, is_address, pattern_files

_TAR_GZ = (".tar.gz", ".tgz")
ENDINGS = (".tar", *_TAR_GZ, ".zip", ".parquet")
"""Of the files that are read in place of a folder."""


class PackedImages:
    """The images of one archive, or of several one after the other.

    where: what messages name; ids: sorted; aside: members that are no images by their names, by ending.
    """

    def __init__(self, sources: list[ImageSource], where: Path) -> None:
        self.where = where
        self.sources = sources
        self.aside: Counter[str] = Counter()
        self._members = self._listed()
        self.ids = sorted(self._members)

    def _listed(self) -> dict[str, tuple[int, str]]:
        """By id, which source and member. Names that several archives have begin with that of their archive."""
        names = [(place, name) for place, source in enumerate(self.sources) for name in source.members]
        several = len({name for _, name in names}) < len(names)
        members: dict[str, tuple[int, str]] = {}
        for place, name in names:
            parquet = isinstance(self.sources[place], ParquetSource)
            parts = name.split("/")
            if any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX":
                self.aside["hidden"] += 1
            elif not parquet and not has_image_ending(name):
                self.aside[ending(name)] += 1
            else:
                prefix = f"{self.sources[place].where.name.partition('.')[0]}/" if several else ""
                key = identifier(Path(f"{prefix}{name}"))
                if key in members:
                    one, other = (self.sources[i].where for i in (members[key][0], place))
                    raise DataError(f"{one} and {other} both hold {key!r}: measure them one at a time")
                members[key] = (place, name)
        return members

    def label(self, key: str) -> str:
        """For a message."""
        place, name = self._members[key]
        return self.sources[place].label(name)

    def read(self, key: str) -> bytes:
        """The image's file. Raises DataError."""
        place, name = self._members[key]
        return self.sources[place].read(name)

    def check(self, ids: list[str], index: Path, how: Decoding) -> tuple[dict[str, Checked], str]:
        """See `check_source`; one index serves all archives."""
        return check_source(_Together(self), {key: key for key in ids}, index, how)

    def stamp(self, key: str) -> tuple[int, ...]:
        """See `ImageSource.stamp`."""
        place, name = self._members[key]
        return self.sources[place].stamp(name)


class _Together(ImageSource):
    """The images by their ids."""

    def __init__(self, images: PackedImages) -> None:
        self.members, self.where, self.unlisted = images.ids, images.where, []
        self._images = images

    def read(self, name: str) -> bytes:
        return self._images.read(name)

    def stamp(self, name: str) -> tuple[int, ...]:
        return self._images.stamp(name)

    def label(self, name: str) -> str:
        return self._images.label(name)


def find_packed(root: str, cache_dir: Path) -> PackedImages | None:
    """The archives that a root names, a file or a brace pattern; None for a folder, or what is not there.

    cache_dir: where a gzipped tar is expanded. Raises DatasetError.
    """
    if is_address(root):
        raise DatasetError(f"dataset.root={root} is an address: copy the files here, or mount the bucket")
    try:
        files = pattern_files(root)
    except (ArchiveError, ValueError) as error:
        raise DatasetError(f"dataset.root: {error}") from error
    place = Path(root).expanduser()
    if files is None and place.is_file():
        files = [place]
    return _of_files(files, place, cache_dir) if files else None


def _of_files(files: list[Path], place: Path, cache_dir: Path) -> PackedImages:
    if bad := [path for path in files if not path.name.lower().endswith(ENDINGS)]:
        raise DatasetError(
            f"dataset.root={printable(bad[0])} is a file: name the folder that holds it, or a file that ends in "
            f"{', '.join(ENDINGS)}"
        )
    shards = [path for path in files if path.suffix.lower() == ".parquet"]
    if shards and len(shards) < len(files):
        raise DatasetError(f"dataset.root={printable(place)} names parquet shards and archives: expected one kind")
    if shards:
        return PackedImages([ParquetSource(shards, place, unnamed=True)], place)
    return PackedImages([_opened(path, cache_dir) for path in files], place)


def packed_in(folder: Path, aside: Counter[str], cache_dir: Path) -> PackedImages | None:
    """The tars of a folder without images, else its parquet shards; a build's tars have an index of that kind.

    aside: the folder's files by ending; None where it has neither. Raises DatasetError.
    """
    for kind in (".tar", ".parquet"):
        if aside[kind]:
            found = list_folder(folder, partial(_ends_in, kind)).images
            return _of_files([found[name] for name in sorted(found)], folder, cache_dir)
    return None


def _ends_in(kind: str, path: Path) -> bool:
    return path.suffix.lower() == kind


def _opened(path: Path, cache_dir: Path) -> ImageSource:
    name = path.name.lower()
    if name.endswith(".zip"):
        return ZipSource(path)
    return TarSource(expand(path, cache_dir), path) if name.endswith(_TAR_GZ) else TarSource(path)
