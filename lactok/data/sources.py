"""The image files of a data.root, in a folder or in tars: numbered, named, and each read by itself."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, overload

import numpy as np

from lactok.data.folder import DataError, list_images, name_rank, unreadable
from lactok.data.tar_index import PROBED, TarIndex, open_tar_index
from lactok.data.tar_roots import TarRoot, find_tars
from lactok.images.decode import ImageError, read_bytes
from lactok.images.folder import printable
from lactok.images.tars import TarMember

_OPEN = 64
"""Tars that a process keeps open."""


class ImageFiles(ABC):
    """The images of one root. Can be sent to another process. trusted: whether all of them were decoded by what made
    them."""

    trusted = False

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 hex over names, sizes in bytes, and some of the content: that of 64 images or, of a build's shards,
        the sha256 of each as the build noted it. Raises DataError."""

    @property
    @abstractmethod
    def ranks(self) -> np.ndarray:
        """uint64 (N,), see `name_rank`."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Below the root."""

    @abstractmethod
    def label(self, i: int) -> str:
        """For a message: a path, or "TAR: MEMBER"."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The file. Safe to call from threads. Raises ImageError; DataError for an archive that is another one now."""

    @abstractmethod
    def stamps(self) -> Iterator[str]:
        """A line an image: its name, and what tells that the file is unchanged. Raises DataError."""


class FolderFiles(ImageFiles):
    """The images of a folder, as `list_images` lists them."""

    def __init__(self, root: str | os.PathLike) -> None:
        """Raises DataError."""
        listed = list_images(root)
        self._names, self._paths = list(listed), list(listed.values())

    def __len__(self) -> int:
        return len(self._names)

    @property
    def ranks(self) -> np.ndarray:
        return np.array([name_rank(name) for name in self._names], np.uint64)

    def name(self, i: int) -> str:
        return self._names[i]

    def label(self, i: int) -> str:
        return printable(self._paths[i])

    def read(self, i: int) -> bytes:
        return read_bytes(self._paths[i])

    def stamps(self) -> Iterator[str]:
        bad = []
        for name, path in zip(self._names, self._paths):
            try:
                stat = path.stat()
                yield f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}\t{stat.st_ctime_ns}"
            except OSError as error:
                bad.append(ImageError(printable(path), f"can't be read: {error.strerror or error}"))
        if bad:
            raise unreadable(bad)

    @property
    def fingerprint(self) -> str:
        try:
            sizes = [path.stat().st_size for path in self._paths]
            digest = sha256(json.dumps([self._names, sizes]).encode())
            for i in sorted({k * (len(self) - 1) // (PROBED - 1) for k in range(PROBED)}):
                digest.update(self.read(i))
        except (OSError, ImageError) as error:
            raise DataError(f"an image of data.root can't be read: {error}") from error
        return digest.hexdigest()


class TarFiles(ImageFiles):
    """The images of tars, read at their offsets."""

    def __init__(self, root: TarRoot, index: TarIndex) -> None:
        self.root, self.index = root, index
        self.trusted = bool(root.built)
        self._fresh()

    def _fresh(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ranks(self) -> np.ndarray:
        return self.index.ranks

    def name(self, i: int) -> str:
        return self.index.name(i)

    def label(self, i: int) -> str:
        tar, _ = self.index.place(i)
        return f"{printable(self.index.tars[tar])}: {self.index.name(i)}"

    def read(self, i: int) -> bytes:
        place = self.index[i]
        return self.member(place.tar, place.image)

    def member(self, tar: int, member: TarMember) -> bytes:
        """A member's bytes. Raises ImageError, DataError."""
        path = self.index.tars[tar]
        label = f"{printable(path)}: {member.name}"
        try:
            data = os.pread(self._opened(tar).handle, member.size, member.offset)
        except OSError as error:
            raise ImageError(label, f"can't be read: {error.strerror or error}") from error
        if len(data) != member.size:
            raise ImageError(label, f"has {len(data):,} of its {member.size:,} bytes from byte {member.offset:,} on")
        return data

    def _opened(self, tar: int) -> _OpenFile:
        with self._lock:
            if tar not in self._open:
                while len(self._open) >= _OPEN:
                    self._open.popitem(last=False)  # closed when nobody reads it any more
                path, stamp = self.index.tars[tar], self.index.about.stamps[tar]
                opened = _OpenFile(path)
                seen = os.fstat(opened.handle)
                if [seen.st_size, seen.st_mtime_ns] != stamp[1:3]:
                    raise DataError(
                        f"{printable(path)} has changed since it was indexed: leave it alone, and run again"
                    )
                self._open[tar] = opened
            self._open.move_to_end(tar)
            return self._open[tar]

    def stamps(self) -> Iterator[str]:
        for tar, stamp in enumerate(self.index.about.stamps):
            yield f"{self.index.tars[tar].name}\t{stamp[1:]}"

    @property
    def fingerprint(self) -> str:
        return self.index.about.fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._fresh()


class _OpenFile:
    """A file descriptor that is closed with its last user."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


@overload
def image_files(root: str | os.PathLike, folder: Path | None, found: TarRoot) -> TarFiles: ...


@overload
def image_files(root: str | os.PathLike, folder: Path | None = None, found: None = None) -> ImageFiles: ...


def image_files(root: str | os.PathLike, folder: Path | None = None, found: TarRoot | None = None) -> ImageFiles:
    """The images that a root names. folder: where an index of tars is kept; found: what `find_tars` said of the root.

    Raises DataError, WriteError.
    """
    found = found or find_tars(root)
    return TarFiles(found, open_tar_index(found, folder)) if found else FolderFiles(root)


def all_files(roots: Sequence[str | os.PathLike], folder: Path | None = None) -> list[ImageFiles]:
    """`image_files` of each; of several roots, each index has a folder of its own in `folder`."""
    several = len(roots) > 1
    return [
        image_files(root, folder and (folder / f"tars-{place}" if several else folder))
        for place, root in enumerate(roots)
    ]
