"""Token ids of captioned images in shards: safetensors files, and an index that says what they hold.

index.json               `ShardIndex`
tokens-00000.safetensors ids (n, N) int32; names, captions: UTF-8 bytes end to end, uint8, with ends (n,) int64;
                         where features were extracted, states (sum of lengths, D) with ends (n,) int64
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lactok.data.folder import DataError
from lactok.files import write_atomically

INDEX = "index.json"
VERSION = 1
STORED = {"I32": np.int32, "U8": np.uint8}
"""safetensors' names of what ids and captions are stored as."""


@dataclass(frozen=True)
class ShardRecord:
    """A shard: its file, how many samples it holds, sha256 hex of the file."""

    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What the shards of a folder hold.

    tokenizer: identity of what made the ids ("llamagen-mini", and its weights); tokens: ids of an image, a square
    grid row by row; codebook_size: values of an id; vq: sha256 of the tensors of the encoder's file, "" where it is
    none of our trainers; text_encoder: identity of what made the states, "" where there are none; positions,
    caption_dim: their most positions and their width; left_out: images that could not be used, by reason.
    """

    tokenizer: str
    tokens: int
    codebook_size: int
    vq: str
    text_encoder: str
    positions: int
    caption_dim: int
    shards: tuple[ShardRecord, ...]
    left_out: Mapping[str, int]
    version: int = VERSION

    @property
    def count(self) -> int:
        """Samples of all shards."""
        return sum(shard.count for shard in self.shards)

    def write(self, folder: Path) -> None:
        """As `index.json`. Raises WriteError."""
        write_atomically(folder / INDEX, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> ShardIndex:
        """Raises DataError for a folder that has none, or one of another version."""
        path = folder / INDEX
        command = "`python -m lactok.train recipe=tokens data.root=IMAGES out=DIR` makes such a folder"
        try:
            fields = json.loads(path.read_bytes())
            if fields["version"] != VERSION:
                raise DataError(f"{path} is of version {fields['version']}, expected {VERSION}; {command}")
            shards = tuple(ShardRecord(**shard) for shard in fields.pop("shards"))
            return cls(shards=shards, **fields)
        except OSError as error:
            raise DataError(f"{folder} holds no token shards ({path.name}: {error.strerror}); {command}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} can't be understood ({error}); {command}") from error


@dataclass(frozen=True)
class TokenSample:
    """One image: ids int32 (N,), its caption, and the states of the caption (L, D) where they were extracted."""

    ids: Tensor
    caption: str
    states: Tensor | None


def pack_texts(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts as tensors of a shard: `name` and `name`_ends."""
    octets = [text.encode() for text in texts]
    joined = np.frombuffer(b"".join(octets), np.uint8).copy()
    ends = np.cumsum([len(text) for text in octets], dtype=np.int64)
    return {name: torch.from_numpy(joined), f"{name}_ends": torch.from_numpy(ends)}


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> ShardRecord:
    """A shard, written whole or not at all. Raises WriteError."""
    from safetensors.torch import save

    data = save(dict(tensors))
    write_atomically(path, data)
    return record_of(path, len(tensors["ids"]))


def record_of(path: Path, count: int | None = None) -> ShardRecord:
    """The record of a shard that is there. Raises DataError for one that can't be read."""
    try:
        return ShardRecord(path.name, _Shard(path).count if count is None else count, _digest(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}; delete it, then run again") from error


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _Shard:
    """One file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._path = path
        try:
            self._file = safe_open(str(path), "pt")
            self.count: int = self._file.get_slice("ids").get_shape()[0]
        except SafetensorError as error:
            raise ValueError(str(error)) from error

    @cached_property
    def _ends(self) -> dict[str, list[int]]:
        names = [name for name in self._file.keys() if name.endswith("_ends")]  # noqa: SIM118  # no mapping
        return {name.removesuffix("_ends"): [0, *self._file.get_tensor(name).tolist()] for name in names}

    @cached_property
    def _ids(self) -> Tensor:
        return self._mapped("ids")

    @cached_property
    def _captions(self) -> np.ndarray:
        return self._mapped("captions").numpy()

    def _mapped(self, name: str) -> Tensor:
        """A tensor as a view of the file, for rows: a slice by safe_open costs more than all else of a sample."""
        with self._path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            start, end = json.loads(file.read(size))[name]["data_offsets"]
        kind, shape = self._file.get_slice(name).get_dtype(), self._file.get_slice(name).get_shape()
        data = np.memmap(self._path, np.uint8, "c", offset=8 + size + start, shape=(end - start,))
        return torch.from_numpy(data.view(STORED[kind]).reshape(shape))

    def __getitem__(self, row: int) -> TokenSample:
        states = self._part("states", row) if "states" in self._ends else None
        ends = self._ends["captions"]
        text = self._captions[ends[row] : ends[row + 1]].tobytes().decode()
        return TokenSample(self._ids[row], text, states)

    def _part(self, name: str, row: int) -> Tensor:
        ends = self._ends[name]
        return self._file.get_slice(name)[ends[row] : ends[row + 1]]


class TokenShards:
    """The samples of a folder's shards: `shards[i]`, each file memory-mapped when it is first asked for."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """Raises DataError where there are none, or a shard is not as the index says."""
        self.folder = Path(folder).expanduser()
        self.index = ShardIndex.read(self.folder)
        self._ends = np.cumsum([shard.count for shard in self.index.shards])
        self._open: dict[int, _Shard] = {}
        for shard in self.index.shards:
            path = self.folder / shard.file
            if not path.is_file():
                raise DataError(f"{path} is missing: the index counts {shard.count:,} samples in it")

    def __len__(self) -> int:
        return self.index.count

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}

    def __getitem__(self, i: int) -> TokenSample:
        place = int(np.searchsorted(self._ends, i, side="right"))
        if place not in self._open:
            path = self.folder / self.index.shards[place].file
            try:
                shard = _Shard(path)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} can't be read: {error}") from error
            if shard.count != self.index.shards[place].count:
                raise DataError(f"{path} holds {shard.count} samples, the index says {self.index.shards[place].count}")
            self._open[place] = shard
        start = int(self._ends[place - 1]) if place else 0
        return self._open[place][i - start]
