"""What is on disk: a cache of work keyed by content, and folders of runs that point into it.

`cache/<kind>/<key>/` holds one finished piece of work: `data.safetensors` and `meta.json`. A piece is written to a
temporary folder beside it and renamed, so it is either whole or absent, whenever the process is killed. No torch here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from lactok import files
from lactok.files import WriteError as StoreError
from lactok.files import append_line, explained, write_atomically

__all__ = ["Cache", "Piece", "StoreError", "append_line", "key_of", "write_atomically"]


@dataclass(frozen=True)
class Piece:
    """One finished piece of work: its arrays by name, and what is worth knowing of how it was made."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def key_of(**parts: Any) -> str:
    """The key of a piece of work: 32 hex digits of the sha256 of all that determines its content, as sorted JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Cache:
    """Pieces of work below `root`. Many processes may share it: pieces of one key are the same, the first one stays."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink(missing_ok=True)  # another machine's process may have the same number
        _remove_left_over(self.root)

    def has(self, kind: str, key: str) -> bool:
        """Whether the piece is here; its content is checked when it is read."""
        return (self.root / kind / key / "meta.json").is_file()

    def read(self, kind: str, key: str) -> Piece | None:
        """The piece, or None when it is absent or damaged (a damaged one is removed, so that it is made again)."""
        folder = self.root / kind / key
        try:
            meta = json.loads((folder / "meta.json").read_bytes())
            data = (folder / "data.safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != meta["sha256"]:
                raise ValueError("its sha256 is another")
            return Piece(dict(sorted(load_arrays(data).items())), meta["meta"])  # the library gives them in any order
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, safetensors.SafetensorError):
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def write(self, kind: str, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Commit a piece by an atomic rename. Raises StoreError when the disk is full or can't be written."""
        folder = self.root / kind / key
        temporary = self.root / kind / f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        data = save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        text = json.dumps({"sha256": hashlib.sha256(data).hexdigest(), "meta": dict(meta)}, indent=1)
        try:
            with explained(folder):
                temporary.mkdir(parents=True)
                files.write_synced(temporary / "data.safetensors", data)
                files.write_synced(temporary / "meta.json", text.encode())
                try:
                    os.rename(temporary, folder)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _remove_left_over(root: Path) -> None:
    """Remove the temporary folders of processes of this machine that no longer live."""
    prefix = f".tmp-{socket.gethostname()}-"
    for folder in root.glob(f"*/{prefix}*"):
        if not _alive(int(folder.name.removeprefix(prefix).split("-")[0])):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
