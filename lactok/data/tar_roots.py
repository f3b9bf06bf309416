"""Which tars a data.root names: one, a brace pattern, a folder of them, or what `python -m lactok.data build` wrote."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lactok.data.folder import DataError
from lactok.images.folder import by_ending, list_folder, printable
from lactok.images.tars import ArchiveError, is_address, named_tars

BUILD = "build.json"
"""What a folder of built shards says of itself; written last."""
FORMAT, FORMAT_VERSION = "lactok shards", 1


@dataclass(frozen=True)
class BuiltShard:
    """What build.json says of a shard. index: the Parquet file beside it; size: bytes of the tar, with sha256 hex."""

    index: Path
    samples: int
    size: int
    sha256: str


@dataclass(frozen=True)
class TarRoot:
    """The tars of a root, in order. built: of shards of a build, one a tar, else (); digest: sha256 hex of build.json,
    "" where there is none."""

    root: str
    tars: tuple[Path, ...]
    built: tuple[BuiltShard, ...] = ()
    digest: str = ""


def find_tars(root: str | os.PathLike) -> TarRoot | None:
    """The tars that a root names; None for a folder of images, or one that is not there.

    Raises DataError for an address, files that are missing, an unfinished build, and a folder of tars and images.
    """
    named = os.fspath(root)
    if is_address(named):
        raise DataError(
            f"data.root={named} is an address: expected files of a file system, which are read at any place of them. "
            "Copy the tars here, or mount the bucket (rclone mount, s3fs, gcsfuse)"
        )
    try:
        tars = named_tars(named)
    except (ArchiveError, ValueError) as error:
        raise DataError(f"data.root: {error}") from error
    if tars is not None:
        return TarRoot(named, tuple(tars))
    folder = Path(named).expanduser()
    if folder.is_file():
        raise DataError(f"data.root={printable(folder)} is a file: expected a folder, or a WebDataset tar (.tar)")
    if (folder / BUILD).is_file():
        return _built(named, folder)
    return _folder_of_tars(named, folder)


def _folder_of_tars(root: str, folder: Path) -> TarRoot | None:
    if not folder.is_dir():
        return None
    if sorted(folder.glob("shard-*.tar")) and (sorted(folder.glob("shard-*.parquet")) or (folder / "work").is_dir()):
        raise DataError(
            f"data.root={printable(folder)} holds shards of an unfinished build (there is no {BUILD}): run its "
            "`python -m lactok.data build` command again, which goes on where it stopped"
        )
    found = list_folder(folder, lambda path: path.suffix.lower() == ".tar" or by_ending(path)).images
    tars = [path for path in found.values() if path.suffix.lower() == ".tar"]
    if not tars:
        return None
    if len(tars) < len(found):
        raise DataError(
            f"data.root={printable(folder)} holds {len(tars):,} tar(s) and {len(found) - len(tars):,} image file(s): "
            f"expected one or the other; name the tars alone ('{printable(folder)}/NAME-{{000..099}}.tar')"
        )
    return TarRoot(root, tuple(sorted(tars)))


def _built(root: str, folder: Path) -> TarRoot | None:
    """The shards that build.json names; None for a build.json that is another program's."""
    path = folder / BUILD
    try:
        text = path.read_bytes()
        said = json.loads(text)
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            return _folder_of_tars(root, folder)
        if said["version"] != FORMAT_VERSION:
            raise DataError(f"{path} is of version {said['version']}, expected {FORMAT_VERSION}: build the shards anew")
        shards = [(_inside(folder, shard["name"]), _shard(folder, shard)) for shard in said["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be understood ({error!r}): get it again") from error
    if not shards:
        raise DataError(f"{path} names no shards: nothing was kept in that build; see report.html beside it")
    if missing := [tar for tar, _ in shards if not tar.is_file()]:
        raise DataError(f"{missing[0]} is missing ({len(missing):,} of {len(shards):,} shards that {BUILD} names)")
    return TarRoot(root, tuple(tar for tar, _ in shards), tuple(one for _, one in shards), sha256(text).hexdigest())


def _shard(folder: Path, said: dict[str, Any]) -> BuiltShard:
    return BuiltShard(_inside(folder, said["index"]), int(said["samples"]), int(said["bytes"]), str(said["sha256"]))


def _inside(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name of a file in the folder")
    return folder / name
