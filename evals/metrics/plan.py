"""From the names in `metrics=[...]` to what a run computes and which columns its table has. Imports no torch."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from evals.config import ConfigError, as_list
from evals.tasks.protocol import Conventions
from lactok import registry
from lactok.weights import MissingWeights, WeightsError, identity_of, locate_all, missing_weights

if TYPE_CHECKING:
    from evals.metrics.base import Column, ImageMetric, Metric, SetMetric, TokenMetric

# What a table holds by default, by `RunConfig.default_metrics`. Images of prompts have no reference to compare with.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "generation": (),
    "effnet": ("psnr", "ssim", "lpips-alex", "fd-effnet", "colour", "codes"),
    "inception": ("psnr", "ssim", "lpips-alex", "rfid", "kid", "colour", "codes"),
}
Kind = Literal["image", "set", "token"]
M_co = TypeVar("M_co", bound="Metric", covariant=True)


class TaskFacts(typing.Protocol):
    """What is read of a task."""

    @property
    def protocol(self) -> Conventions: ...

    @property
    def has_references(self) -> bool: ...


class UnusableMetric(Exception):
    """A metric can't be computed here; the message is its reason."""


@dataclass(frozen=True)
class MetricPlan(Generic[M_co]):
    """A metric to compute. identity: what determines its values, for keys.

    columns_wanted: False for an image metric that nobody named and whose features a set metric reads.
    """

    cls: type[M_co]
    identity: dict[str, Any]
    columns_wanted: bool = True

    @property
    def name(self) -> str:
        return self.cls.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """The values of the metric's `protocol_fields`."""
        return self.identity["protocol"]


@dataclass(frozen=True)
class PlannedColumn:
    """A column of the table, and the metric that fills it."""

    column: Column
    kind: Kind
    metric: str


@dataclass
class Plan:
    """What to compute. columns: in the table's order.

    missing: "NAME: reason" for each metric that was asked for and can't be computed here; the others go on.
    """

    image: list[MetricPlan[ImageMetric]] = field(default_factory=list)
    sets: list[MetricPlan[SetMetric]] = field(default_factory=list)
    tokens: list[MetricPlan[TokenMetric]] = field(default_factory=list)
    columns: list[PlannedColumn] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def features_of(self, plan: MetricPlan[SetMetric]) -> MetricPlan[ImageMetric]:
        """The image metric whose features a set metric reads."""
        return next(image for image in self.image if image.name == plan.cls.features_of)


def metric_names(wanted: Any, features: str) -> list[str]:
    """The names that `metrics=` means, each once, in order. Raises ConfigError for an unknown one.

    features: the key of DEFAULTS for which "default" stands.
    """
    known = registry.entries("metrics")
    names = [n for w in as_list(wanted) for n in (DEFAULTS[features] if w == "default" else [w])]
    for name in names:
        if name not in known and not registry.is_target(name):
            raise ConfigError(registry.unknown("metric", name, ["default", *known]))
    return list(dict.fromkeys(names))


def metric_class(name: str) -> type[Metric]:
    """The class of a registered name, or of FILE.py:CLASS. Raises registry.RegistryError, or UnusableMetric for what is
    no metric of that name."""
    from evals.metrics.base import ImageMetric, SetMetric, TokenMetric

    cls = registry.load("metrics", name)
    if not (isinstance(cls, type) and issubclass(cls, (ImageMetric, SetMetric, TokenMetric))):
        raise UnusableMetric(f"{name} is {cls!r}: expected a subclass of ImageMetric, SetMetric or TokenMetric")
    if registry.is_target(name):
        if not isinstance(getattr(cls, "name", None), str) or cls.name in registry.entries("metrics"):
            raise UnusableMetric(
                f"{cls.__qualname__}.name is {getattr(cls, 'name', None)!r}: expected a text that is no registered "
                "metric's name"
            )
    elif getattr(cls, "name", None) != name:
        raise UnusableMetric(f"{cls.__qualname__}.name is {getattr(cls, 'name', None)!r}: expected {name!r}")
    if lacking := sorted(getattr(cls, "__abstractmethods__", ())):
        raise UnusableMetric(f"{cls.__qualname__} does not define {', '.join(lacking)}")
    return cls


def identity(cls: type[Metric], protocol: Conventions, target: str = "") -> dict[str, Any]:
    """What determines a metric's values: its weights and code too. target: FILE.py:CLASS, where it was named so.

    Raises lactok.weights.WeightsError, one MissingWeights for all files that are missing.
    """
    if strange := [name for name in cls.protocol_fields if not hasattr(protocol, name)]:
        raise UnusableMetric(f"it reads protocol.{', protocol.'.join(strange)}, which this task's protocol has not")
    settings = protocol.subset(*cls.protocol_fields)
    backend = _backend(cls, settings)
    locate_all(cls.weights())
    found = {
        "name": cls.name,
        "version": cls.version,
        "protocol": settings,
        "weights": [identity_of(source) for source in cls.weights()],
        "source": registry.source_hash(cls, target),
    }
    return found | ({"backend": backend} if backend else {})


def _backend(cls: type[Metric], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`cls.backend`; where that is not here, one MissingWeights names the files that are not here with it."""
    try:
        return cls.backend(settings)
    except MissingWeights as error:
        if lacking := missing_weights(cls.weights(), download=False):
            raise MissingWeights("\n  ".join([str(error), *lacking])) from error
        raise


def metric_classes(wanted: Any, features: str) -> dict[str, type[Metric]]:
    """The classes that `metrics=` names and that can be imported, by name. Raises ConfigError for an unknown name."""
    found = {}
    for name in metric_names(wanted, features):
        with contextlib.suppress(registry.RegistryError, UnusableMetric):
            found[name] = metric_class(name)
    return found


def plan(wanted: Any, features: str, task: TaskFacts) -> Plan:
    """What `metrics=` names, in that order. Raises ConfigError for an unknown name.

    A metric that can't be imported, whose network's weights are not here, or that fills a column of another one is
    listed in `missing`.
    """
    return _Planner(metric_names(wanted, features), task).plan()


class _Planner:
    def __init__(self, names: Sequence[str], task: TaskFacts) -> None:
        self.names = names
        self.task, self.protocol = task, task.protocol
        self.image: dict[str, MetricPlan[ImageMetric]] = {}  # in the order in which they are needed
        self.found = Plan()

    def plan(self) -> Plan:
        for name in self.names:
            try:
                self._add(name)
            except (WeightsError, registry.RegistryError, UnusableMetric) as error:
                self.found.missing.append(f"{name}: {error}")
            except Exception as error:  # a plugin may fail in any way; the others go on
                self.found.missing.append(f"{name}: {type(error).__name__}: {error}")
        self.found.image = list(self.image.values())
        return self.found

    def _add(self, name: str) -> None:
        from evals.metrics.base import ImageMetric, SetMetric, TokenMetric

        cls = metric_class(name)
        self._check_columns(cls)
        self._check_references(cls)
        determined = identity(cls, self.protocol, name if registry.is_target(name) else "")
        kind: Kind = "token"
        if issubclass(cls, ImageMetric):
            kind = "image"
            self.image[cls.name] = MetricPlan(cls, determined)
        elif issubclass(cls, SetMetric):
            kind = "set"
            source = self._features(cls)
            self.image.setdefault(source.name, source)
            self.found.sets.append(MetricPlan(cls, determined))
        elif issubclass(cls, TokenMetric):
            self.found.tokens.append(MetricPlan(cls, determined))
        self.found.columns += [PlannedColumn(column, kind, cls.name) for column in cls.columns]

    def _features(self, cls: type[SetMetric]) -> MetricPlan[ImageMetric]:
        """The image metric whose features `cls` reads; its own columns are shown only if it is named itself."""
        from evals.metrics.base import ImageMetric

        planned = self.image.get(cls.features_of)
        source = planned.cls if planned else metric_class(cls.features_of)
        if not (issubclass(source, ImageMetric) and source.feature_dim > 0):
            raise UnusableMetric(f"it reads features of {source.name!r}, which gives none")
        if planned:  # of FILE.py:CLASS too
            return planned
        return MetricPlan(source, identity(source, self.protocol), columns_wanted=False)

    def _check_references(self, cls: type[Metric]) -> None:
        from evals.metrics.base import ImageMetric, SetMetric

        compares = issubclass(cls, SetMetric) or (issubclass(cls, ImageMetric) and cls.needs_reference)
        if compares and not self.task.has_references:
            raise UnusableMetric("it compares with reference images, which this task has none of")

    def _check_columns(self, cls: type[Metric]) -> None:
        filled = {planned.column.name: planned.metric for planned in self.found.columns}
        for column in cls.columns:
            if column.name in filled:
                raise UnusableMetric(f"its column {column.name!r} is filled by {filled[column.name]!r}; name only one")
