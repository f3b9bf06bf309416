"""The miniatures' checkpoints, which ship in checkpoints/: where one lies, and how it becomes a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from lactok.checkpoint_file import CheckpointMetadata, read_checkpoint
from lactok.state_dict import meta_skeleton
from lactok.weights import LocalWeights, WeightsError, WeightsSource, locate

Model = TypeVar("Model", bound=nn.Module)

LICENCE = "Apache-2.0; trained on ImageNet images (non-commercial research)"
"""Of the weights of every miniature."""


@dataclass(frozen=True)
class Miniature:
    """filename: in checkpoints/; sha256: of that file; command: makes such a file, with the bundled trainer."""

    filename: str
    sha256: str | None
    command: str

    def source(self, path: str | None = None) -> WeightsSource:
        """The shipped file, or the local one that the user names instead."""
        otherwise = f"name an existing checkpoint file; `{self.command}` makes one"
        if path is not None:
            return LocalWeights(path, otherwise=otherwise)
        return LocalWeights(self.filename, "lactok.tokenizers.checkpoints", self.sha256, otherwise)

    def load(
        self, build: Callable[[CheckpointMetadata], Model], path: str | None = None
    ) -> tuple[Model, CheckpointMetadata]:
        """The network that `build` makes from the file's header (on the meta device), with its weights, on the CPU.

        Raises MissingWeights naming the command, WeightsError when file and network don't belong together.
        """
        file = locate(self.source(path))
        state, metadata = read_checkpoint(file)
        try:
            model = meta_skeleton(build, metadata)
            model.load_state_dict(state, strict=True, assign=True)
        except (WeightsError, RuntimeError) as error:
            raise WeightsError(f"{file}: {' '.join(str(error).split())}") from error
        return model, metadata
