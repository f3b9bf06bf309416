"""Published checkpoints' state dicts and the models here: `StateDictAdapter` maps the names and shapes both ways."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from lactok.weights import WeightsError, require_entries

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and trainers put in front of a network's own names."""

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
Arguments = ParamSpec("Arguments")
Shape = tuple[int, ...]
Rules = Sequence[tuple[str, str]]
"""(regular expression, replacement) pairs, applied in this order, each wherever it matches."""


def meta_skeleton(build: Callable[Arguments, Model], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Model:
    """`build(...)` on the meta device: names and shapes without memory, to be filled by `StateDictAdapter.load`."""
    with torch.device("meta"):
        return build(*args, **kwargs)


def rename(name: str, rules: Rules) -> str:
    """`name` after all `rules`."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


class StateDictAdapter(ABC, Generic[Model]):
    """Names and shapes of one model's `state_dict()` here <-> those of its published checkpoint.

    A subclass states the rules: `published_name`, and where they differ `published_shape`, `split` and `join`, or
    `is_unused`. Models may be on the meta device.

    model_name: what a CheckpointMismatch calls the model.
    """

    model_name: ClassVar[str]

    @abstractmethod
    def published_name(self, name: str) -> str:
        """The published name of our entry `name`."""

    def published_shape(self, name: str, shape: Shape) -> Shape:
        """The published shape of our entry `name` of `shape`."""
        return shape

    def is_unused(self, published_name: str, model: Model) -> bool:
        """Whether a checkpoint may hold this entry, which `model` does not take."""
        return False

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The published entries that our entry `name` becomes."""
        return {self.published_name(name): tensor.reshape(self.published_shape(name, tuple(tensor.shape)))}

    def join(self, name: str, shape: Shape, published: MutableMapping[str, Tensor]) -> Tensor:
        """Our entry `name` of `shape`, from the published ones; the inverse of `split`."""
        return published[self.published_name(name)].reshape(shape)

    def published_shapes(self, model: Model) -> dict[str, Shape]:
        """Names and shapes of the published entries that `model` needs."""
        entries = (self.split(name, tensor.to("meta")) for name, tensor in model.state_dict().items())
        return {name: tuple(tensor.shape) for split in entries for name, tensor in split.items()}

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A model's state dict under the published names and shapes."""
        return {name: part for ours, tensor in state.items() for name, part in self.split(ours, tensor).items()}

    def from_published(self, published: MutableMapping[str, Tensor], model: Model) -> dict[str, Tensor]:
        """A published state dict under the names and shapes of `model`, float32.

        Raises lactok.weights.CheckpointMismatch listing missing and unexpected keys, and those of another shape.
        """
        used = {name: tensor for name, tensor in published.items() if not self.is_unused(name, model)}
        require_entries(used, self.published_shapes(model), self.model_name)
        del used
        ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return {name: self.join(name, shape, published).float() for name, shape in ours.items()}

    def load(self, model: Model, published: MutableMapping[str, Tensor]) -> Model:
        """Load a published state dict into `model` (strictly) and return it, off the meta device.

        Raises lactok.weights.CheckpointMismatch as `from_published`.
        """
        model.load_state_dict(self.from_published(published, model), strict=True, assign=True)
        return model


def find_state_dict(checkpoint: Mapping[str, Any], keys: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: under the first of `keys` that it has, else the checkpoint itself.

    A key under which nothing stands (`ema: None`) counts as absent. A prefix of WRAPPERS that every name has is left
    out, with a note in the log. Raises WeightsError if what is found holds anything but tensors by name.
    """
    key = next((k for k in keys if checkpoint.get(k) is not None), None)
    state = checkpoint if key is None else checkpoint[key]
    where = "at the top level" if key is None else f"under {key!r}"
    if not isinstance(state, Mapping):
        raise WeightsError(f"{where}: {type(state).__name__}, expected a mapping of names to tensors")
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        more = ", ..." if len(other) > 3 else ""
        shown = ", ".join(map(repr, other[:3])) + more
        raise WeightsError(f"{where}: {shown} is not a tensor, expected a mapping of names to tensors")
    return _unwrapped(dict(state))


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found: list[str] = []
    while prefix := next((p for p in WRAPPERS if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        found.append(prefix)
    if found:
        logger.warning("the names of all %d tensors start with %r, which is left out", len(state), "".join(found))
    return state


@contextmanager
def errors_name(path: Path | str) -> Iterator[None]:
    """Put `path` in front of the message of a WeightsError raised inside the block; its type stays."""
    try:
        yield
    except WeightsError as error:
        raise type(error)(f"{path}: {error}") from error
