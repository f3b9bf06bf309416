"""The state dict of a network that was pickled whole, read without importing or running anything of it.

Tensors are rebuilt by torch; `OrderedDict` and `set` are what they are. Any other name of a library that such a pickle
is made of becomes an inert stand-in, from whose recorded attributes the names of parameters and buffers are put
together as `Module.state_dict` does. A name of anything else is refused before it is looked up.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lactok.weights import WeightsError, require_finite

REBUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
STAND_IN_FOR = ("trainer", "transformers", "torch", "accelerate", "deepspeed", "hydra", "omegaconf", "numpy")
"""Top-level packages whose other names are replaced by stand-ins: modules, activations, configurations."""
BUILTIN_STAND_INS = ("object", "getattr", "slice", "frozenset", "bytes", "complex")
REAL = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
}


class StandIn:
    """In the place of an object whose class is not imported: keeps its attributes, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        made = object.__new__(cls)
        made.attributes = {}
        return made

    attributes: dict[str, Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.attributes.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> StandIn:
        return StandIn()

    def append(self, value: Any) -> None:
        """Of list-like objects."""

    def extend(self, values: Any) -> None:
        """Of list-like objects."""

    def add(self, value: Any) -> None:
        """Of set-like objects."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What the pickle means by a name. Raises UnpicklingError for one outside the lists above."""
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) in REAL:
            return REAL[module, name]
        if module == "torch._utils" and name in REBUILDERS:
            return getattr(torch._utils, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        top = module.partition(".")[0]
        if top in STAND_IN_FOR or (module == "builtins" and name in BUILTIN_STAND_INS):
            return type(name.rpartition(".")[2], (StandIn,), {})
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which no pickled network needs: refused")


def _load(file: Any, **more: Any) -> Any:
    return _Reader(file, **more).load()


def read_pickled_module(path: Path) -> dict[str, Tensor]:
    """What `state_dict()` of the module in a file that `torch.save(module, path)` wrote would give, on the CPU.

    Raises WeightsError for a file that is none, wants a name that is refused, or holds values that are not finite.
    """
    if _is_torchscript(path):  # torch.load would run its code, whatever reads the pickle
        raise WeightsError(f"{path} is a TorchScript archive, expected a network pickled whole by torch.save")
    reader = SimpleNamespace(__name__="pickled module", Unpickler=_Reader, load=_load)
    try:
        content = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file breaks the reader in many ways
        raise WeightsError(f"{path} can't be read as a pickled network: {' '.join(str(error).split())}") from error
    if not isinstance(content, StandIn) or "_modules" not in content.attributes:
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a network pickled whole")
    state = dict(_state(content, ""))
    require_finite(state, path)
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())


def _state(module: StandIn, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Names and values as `Module.state_dict` orders them; buffers marked as not persistent are left out."""
    found = module.attributes
    left_out = found.get("_non_persistent_buffers_set", set())
    for kind in ("_parameters", "_buffers"):
        for name, value in found.get(kind, {}).items():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in left_out):
                yield f"{prefix}{name}", value.detach()
    for name, child in found.get("_modules", {}).items():
        if isinstance(child, StandIn):
            yield from _state(child, f"{prefix}{name}.")
