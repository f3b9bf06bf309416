"""Deterministic weights made from nothing but a checkpoint's names and shapes.

Golden cases hold what a published implementation gave with these weights; a port that loads the same weights under
the official names must give the same. The streams are numpy's legacy `RandomState`, which NEP 19 freezes, so the
numbers are the same on every platform.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

SEED_STRIDE = 1_000_003
"""Distance in the stream number between two seeds (part of the rule)."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype ("float32") of one entry of a state dict."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith(("float", "bfloat"))


Manifest = Mapping[str, TensorSpec]
"""Entry name to its spec."""


def manifest_of(module: nn.Module) -> dict[str, TensorSpec]:
    """The specs of a module's state dict; the module may live on the meta device."""
    return {
        name: TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in module.state_dict().items()
    }


def seeded_tensor(name: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """The float32 values of one float entry, standard normal scaled by what the entry is.

    Matrices and kernels by 1 / sqrt(fan in); a norm's scale (a vector called `weight`) 1 +- 0.1; running statistics
    near 0 and 1; other vectors and scalars by 0.05.
    """
    stream = np.random.RandomState((zlib.crc32(name.encode()) + SEED_STRIDE * seed) % 2**32)
    values: np.ndarray = stream.standard_normal(math.prod(shape)).astype(np.float32).reshape(tuple(shape))
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        values = np.abs(values) * 0.2 + 0.9
    elif leaf == "running_mean":
        values = 0.1 * values
    elif len(shape) >= 2:
        values = values / np.sqrt(math.prod(shape[1:]))
    elif leaf == "weight":
        values = 1.0 + 0.1 * values
    else:
        values = 0.05 * values
    return torch.from_numpy(np.array(values, dtype=np.float32))


def seeded_state_dict(manifest: Manifest, seed: int = 0) -> dict[str, Tensor]:
    """float32 values for every float entry; integer buffers are left out and keep the module's own values."""
    return {name: seeded_tensor(name, spec.shape, seed) for name, spec in manifest.items() if spec.is_float}
