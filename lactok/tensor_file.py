"""Tensors in files that others wrote: safetensors, pickles without running their code, and folders of shards.

A pickle is read by torch's restricted unpickler. Where that refuses a settings object that trainers save with the
tensors (numpy scalars, OmegaConf, mmcv's settings, argparse.Namespace...), the file is read again with inert stand-ins
in the place of those classes, none of which is imported, and its tensors alone are kept.
"""

from __future__ import annotations

import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_INDEX = re.compile(r".+\.index(?:\.\w+)?\.json")
"""Name of the file that lists the shards of a checkpoint, of a variant too (transformers, diffusers)."""

_HARMLESS = re.compile(
    r"(?:numpy|omegaconf|easydict|yacs|ml_collections|addict|mmcv|mmengine|pathlib|typing|enum|datetime)(?:\..+)?"
    r"|argparse\.Namespace|types\.SimpleNamespace|collections\.defaultdict|_codecs\.encode|copyreg\._reconstructor"
    r"|(?:__builtin__|builtins)\.(?:dict|list|tuple|set|frozenset|int|float|complex|str|bytes|bool|object|unicode|long)"
)
"""Names of classes that settings are made of; a stand-in takes the place of each."""

_TORCH = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


class UnreadableFile(Exception):
    """A file is no checkpoint, or can't be read safely; the message says what it is."""


def read_tensors(path: Path) -> Any:
    """What `path` holds, on the CPU; of an index, the tensors of all its shards. Raises UnreadableFile, OSError."""
    if _INDEX.fullmatch(path.name):
        return _read_shards(path)
    if what := not_a_checkpoint(path):
        raise UnreadableFile(what)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # safetensors' own error
            raise UnreadableFile(_plain(error)) from error
    return _read_pickle(path)


def not_a_checkpoint(path: Path) -> str:
    """What stands in the place of a checkpoint: a Git LFS pointer, or an HTML page; "" for anything else."""
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "it is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or download the file"
        )
    if re.match(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head)", head, re.IGNORECASE):
        return (
            "it is an HTML page, not a checkpoint: a page of login or of an error was saved in its place; download the "
            "file itself (on the hub the address has /resolve/, not /blob/)"
        )
    return ""


def shards_of(index: Path) -> list[Path]:
    """The shards that an index names, which lie next to it. Raises UnreadableFile for something else than an index."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableFile("it is no index of shards (a JSON object with weight_map)") from error
    if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise UnreadableFile(f"its shard {strange[0]!r} is no name of a file next to it")
    return [index.with_name(name) for name in names]


def _read_shards(index: Path) -> dict[str, Any]:
    shards = shards_of(index)
    if absent := [shard.name for shard in shards if not shard.is_file()]:
        raise UnreadableFile(f"{len(absent)} of its {len(shards)} shards are not next to it: {', '.join(absent[:3])}")
    state: dict[str, Any] = {}
    for shard in shards:
        try:
            state |= read_tensors(shard)
        except UnreadableFile as error:
            raise UnreadableFile(f"shard {shard.name}: {error}") from error
    return state


def _read_pickle(path: Path) -> Any:
    import argparse

    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file breaks the reader in many ways (KeyError, EOFError, ...)
        name = _refused(error)
        if name is None:
            raise UnreadableFile(_plain(error)) from error
        if not _HARMLESS.fullmatch(name):
            raise UnreadableFile(_forbidden(name)) from error
    try:
        unpickler = SimpleNamespace(__name__="tensors alone", Unpickler=_TensorsAlone, load=_load)
        return _tensors_of(torch.load(path, map_location="cpu", pickle_module=unpickler, weights_only=False))
    except (OSError, MemoryError, UnreadableFile):
        raise
    except Exception as error:
        raise UnreadableFile(_plain(error)) from error


def _forbidden(name: str) -> str:
    return (
        f"it holds a {name}, which could run code when it is loaded, so it is refused; where you trust the file, load "
        "it yourself and save its tensors alone (torch.save(state_dict) or safetensors)"
    )


def _refused(error: BaseException) -> str | None:
    """The name that torch's restricted unpickler refused; None for another error."""
    text = _ESCAPES.sub("", str(error))
    found = _REFUSED.search(text) or re.search(r"(?:unsupported|disallowed) \w+ ([\w.]+)", text, re.IGNORECASE)
    return found[1] if found else None


def _plain(error: BaseException) -> str:
    """The whole text of an error on one line, without the terminal's escape codes."""
    return " ".join(_ESCAPES.sub("", str(error)).split()) or type(error).__name__


class _StandIn:
    """In the place of an object of a class that is not imported: takes everything, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _StandIn:
        return self

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _TensorsAlone(pickle.Unpickler):
    """Knows torch's tensors and OrderedDict; harmless names become stand-ins, and any other is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle means by a name. Raises UnreadableFile for one that could run code."""
        import torch

        if module == "torch._utils" and name in _TORCH:
            return getattr(torch._utils, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) in (("torch", "Size"), ("torch", "device")):
            return getattr(torch, name)
        if (module, name) == ("torch.nn.parameter", "Parameter"):
            return torch.nn.Parameter
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if _HARMLESS.fullmatch(f"{module}.{name}"):
            return _StandIn
        raise UnreadableFile(_forbidden(f"{module}.{name}"))


def _load(file: Any, **more: Any) -> Any:
    return _TensorsAlone(file, **more).load()


def _tensors_of(content: Any) -> Any:
    """The tensors by name, in the mappings that hold them; everything else is left out."""
    import torch

    if not isinstance(content, Mapping):
        return content
    inner = {k: _tensors_of(v) if isinstance(v, Mapping) else v for k, v in content.items() if isinstance(k, str)}
    return {k: v for k, v in inner.items() if isinstance(v, torch.Tensor) or (isinstance(v, Mapping) and v)}
