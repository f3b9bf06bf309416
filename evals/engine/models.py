"""A row in execution: its model is built when its group starts; every call into it is isolated, batched and checked."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from pydantic import TypeAdapter

from evals.engine.batches import Batcher, Timed, is_out_of_memory
from evals.engine.checks import PluginError, check_info
from evals.engine.environment import hold_in_bf16, precision
from evals.engine.isolation import isolated
from evals.engine.job import Artifact
from evals.engine.rows import Identity, Row, identify
from evals.engine.store import Cache, StoreError
from lactok.interface import (
    GeneratorInfo,
    Item,
    ItemsRefused,
    Model,
    ModelInfo,
    RecordedInfo,
    TokenizerInfo,
    Unavailable,
    Unreachable,
)
from lactok.weights import WeightsError

T = TypeVar("T")
# Items of a failed batch that an error names.
NAMED = 4
INFOS: dict[str, type[ModelInfo]] = {cls.__name__: cls for cls in (TokenizerInfo, GeneratorInfo, RecordedInfo)}


@dataclass(frozen=True)
class Conditions:
    """What is no convention but a condition of a row: the device, precision, and the seed of its noise."""

    device: torch.device
    precision: str
    seed: int


@dataclass(frozen=True)
class Called(Generic[T]):
    """What a model gave for a batch. parts: positions in the batch and the value for them, in order; refused: position
    to reason; timed: how the calls went."""

    parts: list[tuple[list[int], T]]
    refused: dict[int, str]
    timed: Timed


def type_of(row: Row) -> type[Model]:
    """The class of a row that has one."""
    assert row.cls is not None, f"{row.label} has no class"
    return row.cls


def _of_no_item(error: Exception) -> bool:
    """Whether an error says nothing of the items that were being worked on: memory, a device, files, a network."""
    machine = (OSError, StoreError, WeightsError, Unavailable, Unreachable, torch.AcceleratorError)
    return is_out_of_memory(error) or isinstance(error, machine)


def _of_items(items: Sequence[Item]) -> str:
    """Which items a failed call was given."""
    named = ", ".join(item.id for item in items[:NAMED]) + (", ..." if len(items) > NAMED else "")
    return f"(at {named})" if len(items) == 1 else f"(in a batch of {len(items)}: {named})"


@dataclass
class ModelRun:
    """One row in execution. status and error as in RowRecord; identity and info are None until they are known.

    metric_errors: by metric name, why a metric could not score this row; refused: by item id, why the model refused it.
    """

    row: Row
    conditions: Conditions
    batch_size: int
    identity: Identity | None = None
    info: ModelInfo | None = None
    model: Model | None = None
    status: str = "ok"
    error: str = ""
    trace: str = ""
    metric_errors: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    _building_began: bool = False
    _batchers: dict[str, Batcher] = field(default_factory=dict)

    @property
    def kind(self) -> type[Model]:
        """The class of its model."""
        return type_of(self.row)

    @property
    def node(self) -> Artifact:
        """What determines its results, apart from items, protocol and seed."""
        assert self.identity is not None, f"{self.row.label} has no identity yet"
        conditions = {"device": self.conditions.device.type, "precision": self.conditions.precision}
        return Artifact("model", {**self.identity.parts, **conditions})

    def noise(self, seed_index: int) -> list[int] | None:
        """What its noise depends on beside the item; None for a deterministic model."""
        return None if self.deterministic else [self.conditions.seed, seed_index]

    @property
    def deterministic(self) -> bool:
        return self.info is not None and self.info.deterministic

    def seed_indices(self, seeds: int) -> list[int]:
        """Which outputs of an item there are: one for a deterministic model, else `seeds`."""
        return [0] if self.deterministic else list(range(seeds))

    def fail(self, error: BaseException, status: str = "failed") -> None:
        """Leave this row with the reason; what it had finished stays in the cache."""
        import traceback

        reference = self.row.cls is not None and self.row.cls.calibration is not None
        if reference and isinstance(error, (Unavailable, Unreachable)):  # of no item, and no fault
            self.status, self.error = type(error).__name__.lower(), str(error)
            stop([self])
            return
        known = isinstance(error, (PluginError, WeightsError))
        self.status = status
        said = str(error) if known else f"{type(error).__name__}: {error}"
        self.error = " ".join([said, *getattr(error, "__notes__", ())])
        self.trace = "" if status == "missing" else "".join(traceback.format_exception(error))
        stop([self])

    def identify(self) -> None:
        """Find (and perhaps download) the checkpoints; a row whose weights are missing has status "missing"."""
        if self.row.cls is None:
            self.status, self.error, self.trace = "failed", self.row.error, self.row.trace
            return
        try:
            self.identity = identify(self.row)
        except WeightsError as error:
            self.fail(error, "missing")
        except (Exception, SystemExit) as error:  # a plugin may fail in any way
            self.fail(error)

    def find_info(self, cache: Cache) -> None:
        """Its facts, from the cache; the model is built where no earlier run stored them."""
        try:
            artifact = Artifact("info", {}, (self.node,))
            entry = cache.read(artifact)
            if entry is not None and entry.meta["class"] in INFOS:
                stored = TypeAdapter(INFOS[entry.meta["class"]]).validate_python(entry.meta["info"])
                self.info = check_info(stored, type_of(self.row))
                return
            model = self.built()
            with isolated():
                info = model.info
            self.info = check_info(info, type_of(self.row))
            cache.write(artifact, {}, {"class": type(self.info).__name__, "info": dataclasses.asdict(self.info)})
        except WeightsError as error:
            self.fail(error, "missing")
        except StoreError:
            raise
        except (Exception, SystemExit) as error:  # a plugin's constructor may fail in any way
            self.fail(error)

    def built(self) -> Any:
        """The model, built once."""
        if self.model is None:
            self._building_began = True
            if self.row.live is not None:
                self.model = self.row.live
                return self.model
            with isolated():
                self.model = type_of(self.row)(self.row.options, self.conditions.device)
                if self.conditions.precision == "bf16":
                    hold_in_bf16(self.model)
        return self.model

    def call(
        self,
        step: str,
        items: Sequence[Item],
        positions: Sequence[int],
        function: Callable[[list[int]], Any],
        consume: Callable[[Any, int], T],
        apart: bool = False,
    ) -> Called[T]:
        """`function` on those of `items` at `positions`, in batches that fit into memory; an error names its items.

        function: positions to the plugin's result, run in the row's precision. consume: that result and the number of
        items to what is kept; it checks and copies, since a plugin may give the same buffer at each call.
        step: "encode", "decode" or "generate"; each remembers its own batch size. apart: a batch that fails is done
        item by item, and an item that fails alone counts as refused, with its error as the reason; where no item of
        the call comes to a result, or the cause is not an item (`_of_no_item`), the error is raised all the same.
        """
        batcher = self._batchers.setdefault(step, Batcher(self.batch_size, self.conditions.device))
        refused: dict[int, str] = {}
        failed: list[Exception] = []

        def one(part: slice) -> list[tuple[list[int], T]]:
            return some(list(positions[part]))

        def some(wanted: list[int]) -> list[tuple[list[int], T]]:
            while wanted:
                try:
                    with isolated(), precision(self.conditions.precision, self.conditions.device):
                        result = function(wanted)
                    return [(wanted, consume(result, len(wanted)))]
                except ItemsRefused as refusal:
                    wrong = [p for p in refusal.reasons if not 0 <= p < len(wanted)]
                    if wrong or not refusal.reasons:
                        raise PluginError(
                            f"{step} refused items {sorted(refusal.reasons)} of a batch of {len(wanted)}: expected "
                            f"positions 0 to {len(wanted) - 1}"
                        ) from refusal
                    refused.update({wanted[place]: reason for place, reason in refusal.reasons.items()})
                    wanted = [p for place, p in enumerate(wanted) if place not in refusal.reasons]
                except Exception as error:
                    if not (is_out_of_memory(error) and len(wanted) > 1):  # such a batch is halved
                        # a plugin may raise one and the same object at every call
                        error.__notes__ = [_of_items([items[p] for p in wanted])]
                    if not apart or _of_no_item(error):
                        raise
                    failed.append(error)
                    if len(wanted) == 1:
                        refused[wanted[0]] = f"{step} failed: {type(error).__name__}: {error}"
                        return []
                    return [part for position in wanted for part in some([position])]
            return []

        found, timed = batcher.run(len(positions), one)
        parts = [part for of_batch in found for part in of_batch]
        if failed and not parts:
            raise failed[0]
        return Called(parts, refused, timed)


def stop(runs: Sequence[ModelRun]) -> None:
    """Free their models, or what failed constructors left of them, and what they hold on the device.

    One collection serves all of them: it looks at every object of the process, which takes longer than a chunk.
    """
    begun = [run for run in runs if run._building_began]
    for run in begun:
        run.model = None
    if begun:
        gc.collect()
    if any(run.conditions.device.type == "cuda" for run in begun):
        torch.cuda.empty_cache()
