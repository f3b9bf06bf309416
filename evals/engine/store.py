"""What is on disk: a cache of artifacts keyed by what they depend on, and folders of runs that point into it.

`cache/<kind>/<key>/` holds one artifact: `data.safetensors` and `meta.json`. An entry is written to a temporary folder
beside it and renamed, so it is either whole or absent, whenever the process is killed. No torch here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from lactok import files
from lactok.files import WriteError as StoreError
from lactok.files import append_line, explained, write_atomically

_log = logging.getLogger("lactok")

DATA, META = "data.safetensors", "meta.json"
FILES = (DATA, META)

__all__ = ["Cache", "Entry", "StoreError", "append_line", "write_atomically"]


class Keyed(Protocol):
    """What names an entry: evals.engine.job.Artifact."""

    @property
    def kind(self) -> str: ...

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Entry:
    """One stored artifact: its arrays by name, what is worth knowing of it, and the process that made it."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    origin: dict[str, Any]


class Cache:
    """Artifacts below `root`. Many processes may share it: entries of one key are the same, the first one stays.

    origin: what is recorded of this process with everything that it writes (device, threads, versions).
    """

    def __init__(self, root: str | Path, origin: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        self.origin = dict(origin or {})
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink(missing_ok=True)  # another machine's process may have the same number
        _remove_left_over(self.root)

    def _folder(self, artifact: Keyed) -> Path:
        return self.root / artifact.kind / artifact.key

    def has(self, artifact: Keyed) -> bool:
        """Whether the entry is here; its content is checked when it is read."""
        return (self._folder(artifact) / META).is_file()

    def read(self, artifact: Keyed) -> Entry | None:
        """The entry, or None when it is absent or damaged (then what is left of it is removed, to be recomputed)."""
        folder = self._folder(artifact)
        for _ in range(2):
            try:
                return self._entry(folder)
            except FileNotFoundError:
                if not folder.is_dir():
                    return None
            except (ValueError, KeyError, safetensors.SafetensorError) as error:
                _log.warning("%s is damaged (%s): removed, to be recomputed", folder, error)
                shutil.rmtree(folder, ignore_errors=True)
                return None
        # no other process has placed it meanwhile: an entry is renamed whole
        _log.warning("%s lacks a file: removed, to be recomputed", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def _entry(self, folder: Path) -> Entry:
        """Raises FileNotFoundError, and what a damaged entry raises."""
        meta = json.loads((folder / META).read_bytes())
        data = (folder / DATA).read_bytes()
        if hashlib.sha256(data).hexdigest() != meta["sha256"]:
            raise ValueError("its sha256 is another")
        # the library gives arrays in any order
        return Entry(dict(sorted(load_arrays(data).items())), meta["meta"], meta["origin"])

    def write(self, artifact: Keyed, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Commit an entry by an atomic rename. Raises StoreError when the disk is full or can't be written."""
        folder = self._folder(artifact)
        temporary = folder.with_name(f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        data = save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        content = {"sha256": hashlib.sha256(data).hexdigest(), "meta": dict(meta), "origin": self.origin}
        try:
            with explained(folder):
                temporary.mkdir(parents=True)
                files.write_synced(temporary / DATA, data)
                files.write_synced(temporary / META, json.dumps(content, indent=1).encode())
                self._place(temporary, artifact)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _place(self, temporary: Path, artifact: Keyed) -> None:
        """Rename a written entry; one that is there already stays, unless a file of it is missing. Raises OSError."""
        folder = self._folder(artifact)
        for whole in (False, True):
            try:
                os.rename(temporary, folder)
                return
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                if whole or all((folder / name).is_file() for name in FILES):
                    return
                shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over(root: Path) -> None:
    """Remove the temporary folders of processes of this machine that no longer live."""
    name = re.compile(re.escape(f".tmp-{socket.gethostname()}-") + r"(\d+)-[0-9a-f]{8}")
    for folder in root.glob("*/.tmp-*"):
        if (ours := name.fullmatch(folder.name)) and not _alive(int(ours[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
