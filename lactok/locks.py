"""Locks of files that several processes write: the kernel's (flock), which end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, as its file names it."""

    pid: int
    host: str


class LockHeld(Exception):
    """Another process holds the lock. owner: which one, None where the file does not say."""

    def __init__(self, owner: Owner | None) -> None:
        super().__init__(str(owner))
        self.owner = owner


@contextlib.contextmanager
def sole_lock(path: Path) -> Iterator[None]:
    """Hold the lock on the file `path`, which names this process and is removed in the end.

    A file that a dead process of this machine left is taken over; one of another machine is taken for held, as the
    kernel's lock may not reach so far. Raises LockHeld, OSError.
    """
    handle = _opened(path)
    try:
        owner = _owner(handle)
        if owner and owner.host != socket.gethostname():
            raise LockHeld(owner)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(Owner(os.getpid(), socket.gethostname()))).encode(), 0)
        os.fsync(handle)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    """The file, locked by the kernel for as long as this process has it open. Raises LockHeld, OSError."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
            if _same(handle, path):
                return handle  # else its last owner has removed it: the next one locks another file
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockHeld(_owner(handle)) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
        owner = _owner(handle)  # a file system without locks: what the file says must do
        if owner and owner.host == socket.gethostname() and _alive(owner.pid):
            raise LockHeld(owner) from None


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(handle: int) -> Owner | None:
    try:
        return Owner(**json.loads(os.pread(handle, 4096, 0)))
    except (TypeError, ValueError):  # empty, or cut short
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock on the file `path`, which is made where it is missing, waiting until it is free. Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
