"""Parts of a pipeline in diffusers' folder layout (a folder a part), each loaded strictly and without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lactok.weights import CheckpointMismatch, WeightsError, saved_network

_RECOMPUTED = "text_model.embeddings.position_ids"
"""A buffer that older files hold, which follows from the configuration."""

_SHOWN = 5  # names of each kind in an error


def load_scheduler(folder: Path) -> Any:
    """The scheduler that a folder's scheduler_config.json names, any of diffusers'. Raises WeightsError."""
    import diffusers

    name = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8")).get("_class_name")
    cls = getattr(diffusers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise WeightsError(f"{folder}: _class_name is {name!r}, expected one of diffusers' schedulers")
    scheduler: Any = cls
    return scheduler.from_pretrained(folder, local_files_only=True)


def load_network(cls: Any, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network of transformers or diffusers with all its tensors from `folder`, on the CPU.

    Any form that `save_pretrained` writes is read: safetensors or .bin, shards, a variant where there is nothing else.
    Raises CheckpointMismatch naming the tensors that do not fit.
    """
    library = cls.__module__.partition(".")[0]
    of_dtype = "dtype" if library == "transformers" else "torch_dtype"
    stem, (first, *_) = saved_network(folder, library)
    variant = first.name.removeprefix(f"{stem}.").replace(".index", "").removesuffix(".json")
    variant = variant.replace("safetensors", "").replace("bin", "").strip(".")
    network, info = cls.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=".bin" not in first.name,
        variant=variant or None,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that all are listed, below
        **{of_dtype: dtype},
    )
    _refuse(folder, info)
    return network.eval().requires_grad_(False)


def _refuse(folder: Path, info: Mapping[str, Sequence[Any]]) -> None:
    kinds = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(set(info["unexpected_keys"]) - {_RECOMPUTED}),
        "of another shape": [f"{name} is {tuple(a)}, expected {tuple(b)}" for name, a, b in info["mismatched_keys"]],
    }
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if parts:
        raise CheckpointMismatch(f"{folder}: the tensors are not those of its config.json: {'; '.join(parts)}")
