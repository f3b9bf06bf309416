"""What a training recipe is: the networks, the loss of one batch, and what is done after a step.

The loop (lactok/train/loop.py) owns everything else: data, optimizer, precision, accumulation, EMA, checkpoints, logs.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lactok.checkpoint_file import CheckpointMetadata, read_checkpoint, save_checkpoint
from lactok.interface import TrainingCompute
from lactok.train.config import TrainConfigError
from lactok.weights import WeightsSource, require_entries

if TYPE_CHECKING:
    from lactok.train.config import DataConfig, TrainConfig
    from lactok.train.data import TrainingData


@dataclass(frozen=True)
class Batch:
    """One micro-batch. images: float32 (B, 3, S, S), RGB in [0, 1]; step: optimizer step, from 0.

    seeds: one 63-bit integer a sample, a function of (seed, step, sample): a recipe draws sample i's noise from
    seeds[i] alone, so that micro-batches, ranks and a resumed run give the same numbers.
    """

    images: Tensor
    seeds: tuple[int, ...]
    step: int


@dataclass(frozen=True)
class Losses:
    """total: scalar to minimise, a mean over the batch's samples; parts: detached scalars for the log, by name."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """What an exported checkpoint says about its making."""

    recipe: str
    image_size: int
    training: TrainingCompute
    code_revision: str

    def with_losses(self, losses: tuple[str, ...]) -> Provenance:
        """The same of a training on these perceptual losses, as in TrainingCompute."""
        losses = tuple(sorted({*self.training.losses, *losses}))
        return dataclasses.replace(self, training=dataclasses.replace(self.training, losses=losses))


class Recipe(nn.Module, ABC):
    """A training objective. Subclass it, name the class under the entry-point group `lactok.recipes`.

    `Options` is a dataclass (nested ones allowed, every field with a default): the user's `options.key=value`.
    Parameters with requires_grad are trained, and they and the persistent buffers are checkpointed; a network that
    doesn't learn (a perceptual one, a frozen encoder) is a child of `self.frozen`: it is neither.
    """

    Options: ClassVar[type]
    path_options: ClassVar[tuple[str, ...]] = ()
    """Options that name files: a run belongs to what those hold (`sources`), not to where they lie."""
    sharded_by: ClassVar[str | None] = None
    """Path of the module list whose blocks `sharding=full` gathers one at a time; None for a recipe that it refuses."""
    rests: ClassVar[bool] = False
    """Whether a trained parameter has no part in the loss of some steps: several processes must be told."""

    @classmethod
    def with_inputs(cls, options: Any, runs: Path) -> Any:
        """`options` with files that earlier runs next to this one (folders in `runs`) left, where none are named."""
        return options

    @classmethod
    def sources(cls, options: Any) -> tuple[WeightsSource, ...]:
        """The checkpoints that it starts from; looked for before anything slow begins."""
        return ()

    @classmethod
    def open_data(cls, config: TrainConfig, check_held_out: bool = True) -> TrainingData:
        """What it trains on: by default the images below data.root. check_held_out: refuse those of the evaluation set.

        Raises DataError, WriteError.
        """
        from lactok.data.folder import DataError
        from lactok.train.data import ImageData

        for root in config.data.roots:
            if config.folder.resolve().is_relative_to(Path(root).expanduser().resolve()):
                raise DataError(
                    f"out={config.folder} lies inside data.root={root}: expected another place, as its sample images "
                    "would be trained on; name another out="
                )
        return ImageData.open(config, check_held_out)

    @classmethod
    def described_data(cls, data: DataConfig) -> Iterator[str]:
        """What a dry run says of the data. Raises DataError."""
        from lactok.train.dry_run import describe_data

        return describe_data(data)

    @classmethod
    def meta_batch(cls, options: Any, count: int, side: int, step: int) -> Any:
        """A micro-batch on the meta device, of `count` images of `side` pixels, for a dry run."""
        return Batch(torch.empty(count, 3, side, side, device="meta"), tuple(range(count)), step)

    def __init__(self, options: Any, total_steps: int, seed: int) -> None:
        """Build the networks on the CPU; random initialisation was seeded by the caller."""
        super().__init__()
        self.options, self.total_steps, self.seed = options, total_steps, seed
        self.frozen = nn.ModuleDict()

    def exported(self) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The network that `export` writes, and those of its tensors that it writes."""
        network = cast(nn.Module, self.model)
        return network, network.state_dict()

    def start_from(self, path: Path) -> None:
        """Begin with the weights of a checkpoint of this recipe. Raises WeightsError for one of another network."""
        state, _ = read_checkpoint(path)
        network, tensors = self.exported()
        require_entries(state, {name: tuple(t.shape) for name, t in tensors.items()}, f"this recipe's network ({path})")
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)

    @classmethod
    def missing_start(cls, options: Any) -> str | None:
        """Why it can't begin without init=, which is not given; None: it can."""
        return None

    def checkpoint_activations(self, function: Callable[..., Any] | None = None) -> None:
        """Keep fewer activations in every network that can compute them again in the backward pass (diffusers' can).

        function: does so for a block and its inputs; None for diffusers' own, torch.utils.checkpoint.
        """
        for module in self.modules():
            if getattr(module, "_supports_gradient_checkpointing", False):
                cast(Any, module).enable_gradient_checkpointing(function)

    def train(self, mode: bool = True) -> Recipe:
        """`self.frozen` stays in eval mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side in pixels of validation images, and of training images where `image_size_at` isn't overridden."""

    def image_size_at(self, step: int) -> int:
        """Side in pixels of the training images of a step: a function of the step (and of self.seed) alone."""
        return self.image_size

    @abstractmethod
    def forward(self, batch: Any) -> Losses:
        """The loss of one micro-batch: a `Batch`, or what its own `open_data` gives."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step, without gradients; anything random is a function of (self.seed, step)."""

    @abstractmethod
    def reconstruct(self, images: Any, seeds: Sequence[int]) -> Tensor:
        """Sample images: (B, 3, S, S) in [0, 1] to images of that shape, around [0, 1]."""

    def originals(self, images: Any) -> Tensor:
        """What the sample images are shown below, of their shape: by default what `reconstruct` is given."""
        return images

    def measure(self, images: Any, seeds: Sequence[int]) -> dict[str, float]:
        """What to log about validation images (N, 3, S, S) in [0, 1]."""
        return {}

    def note_data(self, data: TrainingData) -> None:  # most don't need to know
        """Called once, before the first step, with what it trains on."""

    def rates(self, images_per_second: float) -> dict[str, float]:
        """Further columns of log.csv that follow from the rate of all processes together."""
        return {}

    @abstractmethod
    def export(self, path: Path, provenance: Provenance) -> None:
        """Write the trained weights (the loop has put the averaged ones in place) as a safetensors file."""


def build_recipe(config: TrainConfig, recipe_class: type[Recipe]) -> Recipe:
    """The recipe of a run. Raises TrainConfigError for options that do not go together, WeightsError."""
    try:
        return recipe_class(config.options, config.steps, config.seed)
    except ValueError as error:
        raise TrainConfigError(f"recipe={config.recipe}: {error}") from error


def checkpoint_names(recipe: Recipe) -> list[str]:
    """Names in the state dict that a training checkpoint holds: trained parameters, and buffers outside `frozen`."""
    parameters = {name: p.requires_grad for name, p in recipe.named_parameters()}
    return [n for n in recipe.state_dict() if not n.startswith("frozen.") and parameters.get(n, True)]


def export_model(
    path: Path, model: nn.Module, config: Any, provenance: Provenance, made_with: Mapping[str, str] | None = None
) -> None:
    """Weights of `model`, which `config` (a dataclass of JSON values) describes, with what the run knows of itself.

    made_with: of frozen parts that no field of `config` names, see `CheckpointMetadata`.
    """
    export_state(path, model.state_dict(), config, provenance, made_with)


def export_state(
    path: Path,
    state: Mapping[str, Tensor],
    config: Any,
    provenance: Provenance,
    made_with: Mapping[str, str] | None = None,
) -> None:
    """As `export_model`, for tensors by name."""
    metadata = CheckpointMetadata(
        config=dataclasses.asdict(config),
        image_size=provenance.image_size,
        training=provenance.training,
        recipe=provenance.recipe,
        code_revision=provenance.code_revision,
        data=provenance.training.data or "",
        made_with=dict(made_with or {}),
    )
    save_checkpoint(path, state, metadata)
