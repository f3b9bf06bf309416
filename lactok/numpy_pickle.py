"""Reads a pickle of numpy arrays in plain containers without running code: everything else in it is refused."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # what numpy's own pickles call; 1.x wrote its old module name

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
NUMBERS = "biuf"  # kinds of dtype: booleans, integers, floats


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}: only numpy arrays are read") from None


def read_numpy_pickle(path: str | os.PathLike) -> Any:
    """The file's content: dicts, lists, tuples, plain values, and arrays of numbers. Pickle protocols 3 and 4, which
    need three names of numpy; the others call more.

    Raises pickle.UnpicklingError for a name outside ALLOWED, before it is looked up, and for arrays of objects; what
    else a damaged file makes the reader raise (EOFError, ValueError, ...) passes.
    """
    with open(path, "rb") as file:
        content = _Reader(file).load()
    _require_numbers(content)
    return content


def _require_numbers(content: Any) -> None:
    if isinstance(content, dict):
        for value in content.values():
            _require_numbers(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            _require_numbers(value)
    elif isinstance(content, np.ndarray) and content.dtype.kind not in NUMBERS:
        raise pickle.UnpicklingError(f"it holds an array of dtype {content.dtype}: expected numbers")
