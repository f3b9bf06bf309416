"""`dry_run=true`: what a run would need, from networks without memory. Nothing is trained, fetched or written."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lactok.data.folder import decoded, unreadable
from lactok.data.sources import image_files
from lactok.images.decode import ImageError
from lactok.train.config import DataConfig, TrainConfig
from lactok.train.optimizer import muon_matrices
from lactok.train.precision import resolve
from lactok.train.recipe import Recipe, build_recipe
from lactok.train.simulate import StepCost, recomputed_as_on_cuda, step_cost
from lactok.weights import WeightsSource, missing_weights

DECODED = 8
"""Images of data.root that are opened, spread over the folder."""
FLOAT = 4
"""Bytes of a number in weights, gradients, optimizer and average, which are all float32."""
GIB = 2**30
PROCESSES = (2, 4, 8)
"""What a dry run divides the memory by under sharding=full."""
HOW = """\
  activations: the most bytes of tensors that are alive at once while a micro-batch goes forward and back on the
  meta device, with fused attention{autocast}{checkpointing}, beyond all gradients, whose room
  they have until the gradients come;
  not in it: the allocator's fragments, workspaces of libraries, sample images, other processes"""


@dataclass(frozen=True)
class Network:
    """One of a recipe's networks, by its name there. parameters: of which `trained` learn."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True)
class Phase:
    """Steps on images of one size (side in pixels), and what each costs."""

    size: int
    steps: int
    cost: StepCost


@dataclass(frozen=True)
class Plan:
    """What a run needs. stored: numbers in weights and buffers; problem: why no step could be taken, or "".

    gathered: of the weights, how many are whole at once under sharding=full; 0 without.
    matrices: numbers in what Muon steps, which keeps one moment of each where AdamW keeps two; 0 with AdamW alone.
    """

    name: str
    networks: tuple[Network, ...]
    stored: int
    phases: tuple[Phase, ...]
    problem: str
    gathered: int = 0
    matrices: int = 0

    @property
    def parameters(self) -> int:
        return sum(network.parameters for network in self.networks)

    @property
    def trained(self) -> int:
        return sum(network.trained for network in self.networks)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by what takes them; activations of the largest images."""
        learning = FLOAT * self.trained
        optimizer = "Muon and AdamW" if self.matrices else "AdamW"
        moments = 2 * learning - FLOAT * self.matrices
        kept = {"weights": FLOAT * self.stored, "gradients": learning, optimizer: moments, "EMA": learning}
        activations = max((phase.cost.activation_bytes for phase in self.phases), default=0)
        return kept | ({"activations": activations} if self.phases else {})

    def sharded_memory(self, processes: int) -> int:
        """Bytes that each of so many processes needs under sharding=full: a gathered weight comes with its gradient."""
        memory = self.memory
        activations = memory.pop("activations", 0)
        return sum(memory.values()) // processes + 2 * FLOAT * self.gathered + activations


@dataclass(frozen=True)
class DataLook:
    """What a look at a folder shows. images: files; shorter_sides: pixels, of those that were opened."""

    images: int
    shorter_sides: tuple[int, ...]


def plan(config: TrainConfig, recipe_class: type[Recipe]) -> Plan:
    """Build the recipe on the meta device and take a step of every size there."""
    with torch.device("meta"):
        recipe = build_recipe(config, recipe_class)
    recipe.to("meta")
    autocast = resolve(config.precision, config.device) == "bf16"
    if config.gradient_checkpointing:
        recipe.checkpoint_activations(recomputed_as_on_cuda(autocast))
    recipe.train()
    sizes = Counter(recipe.image_size_at(step) for step in range(config.steps))
    last = {recipe.image_size_at(step): step for step in range(config.steps)}
    phases, problem = [], ""
    try:
        for size, steps in sizes.items():
            images = config.batch_size, size
            phases.append(Phase(size, steps, step_cost(recipe, images, last[size], config.accumulation, autocast)))
    except (RuntimeError, NotImplementedError) as error:  # a recipe that looks at values, of which there are none
        problem = f"no step can be taken on the meta device: {str(error).splitlines()[0]}"
    stored = [*recipe.parameters(), *recipe.buffers()]
    gathered = _gathered(recipe) if config.sharding == "full" else 0
    matrices = sum(p.numel() for p in muon_matrices(recipe)) if config.optimizer.name == "muon" else 0
    numbers = sum(t.numel() for t in stored)
    return Plan(config.name, _networks(recipe), numbers, tuple(phases), problem, gathered, matrices)


def _gathered(recipe: Recipe) -> int:
    """What lies outside the blocks, of the block that runs, and of the next one."""
    assert recipe.sharded_by is not None, "refused with the settings"
    total = sum(p.numel() for p in recipe.parameters())
    blocks = [sum(p.numel() for p in b.parameters()) for b in recipe.get_submodule(recipe.sharded_by).children()]
    return total - sum(blocks) + sum(sorted(blocks)[-2:])


def _networks(recipe: Recipe) -> tuple[Network, ...]:
    children = [(name, child) for name, child in recipe.named_children() if name != "frozen"]
    found = [_network(name, child) for name, child in [*children, *recipe.frozen.named_children()]]
    return tuple(network for network in found if network.parameters)


def _network(name: str, module: nn.Module) -> Network:
    parameters = list(module.parameters())
    return Network(name, sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))


def look_at_data(roots: Sequence[str]) -> DataLook:
    """Count the images of `roots` and decode a few. Raises DataError for none, or for some that can't be read."""
    images = [(files, i) for root in roots for files in [image_files(root)] for i in range(len(files))]
    count = min(DECODED, len(images))
    chosen = [images[i * (len(images) - 1) // max(1, count - 1)] for i in range(count)]
    sides, bad = [], []
    for files, i in chosen:
        try:
            sides.append(min(decoded(files.read(i)).shape[:2]))
        except ImageError as error:
            bad.append(ImageError(files.label(i), error.reason))
    if bad:
        raise unreadable(bad)
    return DataLook(len(images), tuple(sides))


def describe(config: TrainConfig, recipe_class: type[Recipe]) -> Iterator[str]:
    """The report on networks, a step and weights, line by line as it is found."""
    yield f"{config.name}: a dry run; nothing is trained, fetched or written"
    yield from _described(plan(config, recipe_class), config)
    yield from described_weights(recipe_class.sources(config.options))


def described_weights(sources: Sequence[WeightsSource]) -> Iterator[str]:
    """How many of the files are here, and how to get the others."""
    missing = missing_weights(sources, download=False)
    if sources:
        yield f"{'weights':<12}{len(sources) - len(missing)} of {len(sources)} files are here"
    yield from (f"  missing: {message}" for message in missing)


def _described(found: Plan, config: TrainConfig) -> Iterator[str]:
    share = found.trained / max(1, found.parameters)
    yield f"{'parameters':<12}{_millions(found.parameters)}, of which {_millions(found.trained)} learn ({share:.1%})"
    for network in found.networks:
        learns = "learns" if network.trained == network.parameters else f"{_millions(network.trained)} learn"
        yield f"  {network.name:<18}{_millions(network.parameters):>12}  {learns if network.trained else 'frozen'}"
    if found.problem:
        yield found.problem
    images = config.batch_size * config.accumulation
    for phase in found.phases:
        yield (
            f"{'a step':<12}{_flop(phase.cost.flops)} for {images} image(s) of {phase.size} pixels a process; "
            f"{phase.steps:,} such steps: {_flop(phase.steps * phase.cost.flops)}"
        )
    memory = found.memory
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in memory.items())
    yield f"{'memory':<12}{_gib(sum(memory.values()))} GiB: {parts}"
    if found.gathered:
        each = ", ".join(f"{_gib(found.sharded_memory(count))} GiB in each of {count}" for count in PROCESSES)
        yield f"{'sharding':<12}{each} processes: all is divided"
        yield f"  but activations, and {_millions(found.gathered)} weights that are gathered at once, with gradients"
    if found.phases:
        yield _how(config)


def _how(config: TrainConfig) -> str:
    autocast = ", autocast's bfloat16" if resolve(config.precision, config.device) == "bf16" else ""
    checkpointing = ", gradient checkpointing" if config.gradient_checkpointing else ""
    return HOW.format(autocast=autocast, checkpointing=checkpointing)


def describe_data(data: DataConfig) -> Iterator[str]:
    """The report on the images. Raises DataError for a data.root that can't be used."""
    if not data.roots:
        yield f"{'data':<12}not looked at: name data.root=DIR"
        return
    look = look_at_data(data.roots)
    sides = look.shorter_sides
    yield (
        f"{'data':<12}{look.images:,} images below {', '.join(data.roots)}; {len(sides)} opened: shorter side "
        f"{min(sides)} to {max(sides)} pixels, median {round(statistics.median(sides))}"
    )
    if look.images <= data.validation:
        yield f"  too few: data.validation={data.validation} are held back, so none is left to train on"
    if small := sum(side < min(data.smallest_crop, data.side) for side in sides):
        yield f"  {small} of them smaller than data.smallest_crop={data.smallest_crop}: they would be enlarged"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _flop(count: int) -> str:
    for unit, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1e9:,.1f} GFLOP"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
