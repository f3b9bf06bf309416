"""Files are written whole or not at all, and an error of the file system says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class WriteError(Exception):
    """A file can't be written; the message names it, says why, and what becomes of the work. Exit status 2."""


RESUMES = "Finished work is kept; the same command resumes"


@contextlib.contextmanager
def explained(path: Path, then: str = RESUMES) -> Iterator[None]:
    """Turns the OSErrors of writing to `path` into a WriteError, whose message ends with `then`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full: free some space"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            reason = f"the folder can't be written ({error.strerror}): name another by out=DIR"
        else:
            reason = f"{error.strerror or error}"
        raise WriteError(f"can't write {path}: {reason}. {then}") from error


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes, then: str = RESUMES) -> None:
    """Write a file whole or not at all, its folder too where that is missing. Raises WriteError (see `explained`)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explained(path, then):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(temporary, content)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_new(folder: Path) -> None:
    """Raises WriteError unless `folder` does not exist yet or is empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise WriteError(f"out={str(folder)!r} {what}: name a folder that does not exist yet, or an empty one")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the block's end; after an exception nothing is left of it.

    Raises WriteError, where `folder` is not empty, too.
    """
    check_new(folder)
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    try:
        with explained(folder):
            temporary.mkdir(parents=True)
        yield temporary
        with explained(folder):
            if folder.exists():
                folder.rmdir()
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file; a process that is killed meanwhile leaves at most a part of it, without its end.

    Raises WriteError.
    """
    with explained(path), open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
