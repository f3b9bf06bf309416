"""Fetches a published file over HTTP, with resume: what came is kept in FILE.part, and the same command resumes."""

from __future__ import annotations

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from evals.datasets.base import DataError, DatasetError
from lactok.files import WriteError
from lactok.progress import Meter

_log = logging.getLogger("lactok")
_BLOCK = 2**20  # bytes a read
_TIMEOUT = 60.0  # seconds without a byte
_TRIES = 5  # in a row that bring nothing


@dataclass(frozen=True)
class Download:
    """A published file. file: its name below the root; size: bytes; sha256: hex."""

    url: str
    file: str
    size: int
    sha256: str


class DownloadError(DatasetError):
    """A file can't be fetched; what came is kept. Exit status 2."""


def fetch(download: Download, root: Path, pause: float = 2.0) -> Path:
    """The file, fetched unless it is there whole; its size and sha256 are checked. pause: seconds before a new try.

    Raises DownloadError when the server can't be reached or answers otherwise, DataError when what came is another
    file (it is removed), WriteError when the folder can't be written.
    """
    target = root / download.file
    if target.is_file():
        _check(target, download, remove=False)
        return target
    part = target.with_name(target.name + ".part")
    try:
        root.mkdir(parents=True, exist_ok=True)
        part.touch()
        if part.stat().st_size > download.size:
            os.truncate(part, 0)
    except OSError as error:
        raise WriteError(f"can't write {part}: {error.strerror or error}; name another folder by root=DIR") from error
    with Meter(download.size, download.file, "byte", part.stat().st_size) as meter:
        _fetch_all(download, part, meter.at, pause)
    _check(part, download, remove=True)
    os.replace(part, target)
    return target


def _fetch_all(download: Download, part: Path, at: Callable[[int], None], pause: float) -> None:
    """Requests until the part has the published size; gives up after five in a row that brought nothing."""
    failed = 0
    while (had := part.stat().st_size) < download.size:
        reason = "the connection ended"
        try:
            _request(download, part, had, at)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):  # time-out, too many requests: worth another try
                raise _given_up(download, part, f"the server answers {error.code} {error.reason}") from error
            reason = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failed = failed + 1 if part.stat().st_size <= had else 0
        if failed == _TRIES:
            raise _given_up(download, part, reason)
        if part.stat().st_size < download.size:
            _log.warning("%s: %s; asked again from byte %d", download.url, reason, part.stat().st_size)
            time.sleep(pause)


def _request(download: Download, part: Path, had: int, at: Callable[[int], None]) -> None:
    """One request for what is missing. A server that ignores the range begins anew, and so does the part."""
    request = urllib.request.Request(download.url, headers={"Range": f"bytes={had}-"} if had else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        begins = had if answer.status == 206 else 0
        stated = answer.headers.get("Content-Range", "")
        if begins and not stated.startswith(f"bytes {had}-"):
            raise _given_up(download, part, f"asked for bytes from {had}, the server sends {stated or 'others'}")
        with open(part, "r+b") as file:
            file.truncate(begins)
            file.seek(begins)
            while block := answer.read(_BLOCK):
                if file.tell() + len(block) > download.size:
                    raise _given_up(download, part, f"it is larger than the published {download.size:,} bytes")
                try:
                    file.write(block)
                    file.flush()
                except OSError as error:
                    raise WriteError(
                        f"can't write {part}: {error.strerror or error}. What came is kept; the same command resumes"
                    ) from error
                at(file.tell())


def _given_up(download: Download, part: Path, reason: str) -> DownloadError:
    return DownloadError(
        f"{download.url} can't be fetched: {reason}. {part.stat().st_size:,} of {download.size:,} bytes are kept in "
        f"{part}; the same command resumes from there, or place the file at {part.with_suffix('')} yourself"
    )


def _check(path: Path, download: Download, remove: bool) -> None:
    size = path.stat().st_size
    seen = "not looked at"
    if size == download.size:
        with open(path, "rb") as file:
            digest = sha256()
            while block := file.read(_BLOCK):
                digest.update(block)
        seen = digest.hexdigest()
        if seen == download.sha256:
            return
    if remove:
        path.unlink()
    raise DataError(
        f"{path} is not {download.url}: {size:,} bytes, sha256 {seen}; expected {download.size:,} bytes, sha256 "
        f"{download.sha256}. {'It was removed' if remove else 'Remove it'}; then run the same command again"
    )
