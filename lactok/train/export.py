"""Writing what a recipe trained as the checkpoint file of lactok/checkpoint_file.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lactok.checkpoint_file import CheckpointMetadata, save_checkpoint
from lactok.train.recipe import Provenance


def export_model(path: Path, model: nn.Module, config: Any, provenance: Provenance) -> None:
    """Weights of `model`, which `config` (a dataclass of JSON values) describes, with what the run knows of itself."""
    export_state(path, model.state_dict(), config, provenance)


def export_state(path: Path, state: Mapping[str, Tensor], config: Any, provenance: Provenance) -> None:
    """As `export_model`, for tensors by name."""
    metadata = CheckpointMetadata(
        config=dataclasses.asdict(config),
        image_size=provenance.image_size,
        training=provenance.training,
        recipe=provenance.recipe,
        code_revision=provenance.code_revision,
        data=provenance.training.data or "",
    )
    save_checkpoint(path, state, metadata)
