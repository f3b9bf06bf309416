"""Which rows a run has: from names on the command line to model classes, checked options and identities."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import traceback
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, get_args

from evals.config import ConfigError, as_list
from evals.engine.isolation import isolated
from evals.record import WeightsRecord
from lactok import registry, weights
from lactok.interface import Generator, Model, Tokenizer
from lactok.typed import typed


@dataclass(frozen=True)
class Row:
    """One row to be measured.

    label: as the table shows it; cls: the plugin's class, None where it can't be imported (then `error` says why, and
    `trace` is the traceback); options: an instance of cls.Options; changed: the options that differ from the defaults;
    target: FILE.py:CLASS or package.module:CLASS where it was named so; live: a built model, which nothing identifies.
    """

    label: str
    name: str
    cls: type[Model] | None
    options: Any = None
    changed: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""
    trace: str = ""
    target: str = ""
    live: Model | None = None


@dataclass(frozen=True)
class Wanted:
    """Which rows a run asks for.

    group: "tokenizers" or "generators"; names: a name, FILE.py:CLASS, a list, or "all"; preset: the `weights` setting,
    which says what a name without its ending means (`llamagen` is `llamagen-mini` under "mini") and what "all" takes;
    calibration: whether the calibration rows join; options: by model, a list where the plugin declares a single value
    gives a row a value (a rate sweep); takes: the kinds of model that the task can run.
    """

    group: str
    names: Any
    preset: str
    calibration: bool
    options: dict[str, Any]
    takes: tuple[type[Model], ...]


def resolve_rows(wanted: Wanted, live: Mapping[str, Model] = MappingProxyType({})) -> list[Row]:
    """The rows of a run, in the table's order. live: built models by label, which are rows too.

    Raises ConfigError for an unknown name (with the nearest), an option that the plugin does not declare, or a named
    model that the task can't run, or where there is no row.
    """
    models, others = list(registry.entries(wanted.group)), list(registry.entries("calibration"))
    known, preset = [*models, *others], wanted.preset
    names = as_list(wanted.names)
    if not names and not live:
        raise ConfigError(f"{wanted.group} is empty: name one, a list [a,b], or all")
    targets = _targets(names, known)
    known += targets
    names = [next((short for short, target in targets.items() if target == name), name) for name in names]
    given = _options_by_row(wanted.options, preset, known)
    named = [_full_name(name, preset, known, wanted.group) for name in names if name != "all"]
    optional = [*(models if "all" in names else ()), *(others if wanted.calibration else ())]
    groups = dict.fromkeys(models, wanted.group) | dict.fromkeys(others, "calibration")
    loaded = {
        name: _rows(groups.get(name, wanted.group), name, preset, given.get(name, {}), targets.get(name, ""))
        for name in dict.fromkeys([*named, *optional])
    }
    for name in named:
        cls = loaded[name][0].cls
        if name in targets and cls is not None:
            _check_target(targets[name], cls, wanted.takes)
        if cls is not None and not issubclass(cls, wanted.takes):
            kinds = " or ".join(kind.__name__ for kind in wanted.takes)
            raise ConfigError(f"{name} is no {kinds}, which this suite runs: it is a {cls.__mro__[1].__name__}")
    rows = {name: found for name, found in loaded.items() if name in named or _belongs(found[0], wanted)}
    if not rows and not live:
        other = "paper" if preset == "mini" else "mini"
        raise ConfigError(
            f"{wanted.group}=all: none of them is for weights={preset}; choose weights={other}, or name one of "
            + (", ".join(models) or "none that is registered")
        )
    unused = set(given) - set(rows)
    if unused:
        raise ConfigError(
            registry.unknown(f"{wanted.group[:-1]} in options", sorted(unused)[0], list(rows))
            + " (the rows of this run)"
        )
    built = [Row(label, label, type(model), live=model) for label, model in live.items()]
    ordered = sorted([*(row for found in rows.values() for row in found), *built], key=_table_order)
    labels = [row.label for row in ordered]
    if doubled := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
        raise ConfigError(f"several rows would be called {', '.join(doubled)}: give each a name of its own")
    return ordered


def _targets(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """By short name, the targets among `names`. Raises ConfigError where two have one name."""
    found = list(dict.fromkeys(filter(registry.is_target, names)))
    short = [registry.short_name(target) for target in found]
    several = {name for name in short if short.count(name) > 1 or name in known}
    named: dict[str, str] = {}
    for target, name in zip(found, short, strict=True):
        name = registry.short_name(target, with_place=True) if name in several else name
        if name in named or name in known:
            raise ConfigError(
                f"{target} and {named.get(name, 'a registered plugin')} are both called {name}: rename one"
            )
        named[name] = target
    return named


def _check_target(target: str, cls: type[Model], takes: tuple[type[Model], ...]) -> None:
    """Raises ConfigError for a class that was named by its place and can't be built; the message says what it lacks."""
    kind = takes[0]
    wanted = sorted(getattr(kind, "__abstractmethods__", ()))
    if not issubclass(cls, takes):
        lacks = [name for name in wanted if not hasattr(cls, name)]
        raise ConfigError(
            f"{target} is no {kind.__name__}: derive it (class {cls.__name__}({kind.__name__}), from lactok.interface)"
            + (f" and define {', '.join(lacks)}, which it lacks" if lacks else f"; it has {', '.join(wanted)}")
        )
    if lacks := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(f"{target} does not define {', '.join(lacks)}; a {kind.__name__} has {', '.join(wanted)}")


def references_at(rows: Sequence[Row], rates: Iterable[float], preset: str) -> dict[str, list[Row]]:
    """Rows to be added to a table's: by the name of a calibration row that can spend any rate (Model.at_rate), one for
    each of `rates` (bits an image) that it has no row of, by falling rate.

    None of a name whose options the run has set itself.
    """
    added: dict[str, list[Row]] = {}
    for name in dict.fromkeys(row.name for row in rows if row.cls is not None and row.cls.calibration is not None):
        cls, here = next(row.cls for row in rows if row.name == name), [row for row in rows if row.name == name]
        assert cls is not None
        usual = dict(cls.preset_options.get(preset, {}))
        if any(row.options != check_options(name, cls.Options, usual) for row in here):
            continue
        found = [_same(cls, row) for row in here]
        for rate in sorted(rates, reverse=True):
            row = _reference(name, cls, usual, rate)
            if row is not None and (same := _same(cls, row)) not in found:
                found.append(same)
                added.setdefault(name, []).append(row)
    return added


def _reference(name: str, cls: type[Model], usual: dict[str, Any], rate: float) -> Row | None:
    """The row of a model at a rate; None where it has none, a failed one where its class fails."""
    try:
        with isolated():
            found = cls.at_rate(rate)
        if found is None:
            return None
        return _row(name, cls, check_options(name, cls.Options, usual | dict(found)), usual, short=True)
    except Exception as error:  # a plugin may fail in any way
        return Row(f"{name} at {rate:g} bits", name, None, error=f"at_rate: {type(error).__name__}: {error}")


def _same(cls: type[Model], row: Row) -> Any:
    """What tells a reference row from others of its name: rows of which this is equal are one."""
    try:
        with isolated():
            return row.label if row.cls is None else cls.same_as(row.options)
    except Exception:  # a plugin may fail in any way; the row itself says so
        return row.label


def _belongs(row: Row, wanted: Wanted) -> bool:
    """Whether "all" takes it; a plugin that can't be imported is taken, so that it is named."""
    if row.cls is None:
        return True
    return row.cls.scale in ("any", wanted.preset) and not row.cls.ablation and issubclass(row.cls, wanted.takes)


def _options_by_row(options: dict[str, Any], preset: str, known: list[str]) -> dict[str, dict[str, Any]]:
    """The options by full name. Raises ConfigError where two names of one tokenizer give one option."""
    given: dict[str, dict[str, Any]] = {}
    for name, values in options.items():
        full = _full_name(name, preset, known)
        for key in given.get(full, {}).keys() & (values or {}).keys():
            raise ConfigError(f"options.{name}.{key}: {full} has got {key} under another of its names; give it once")
        given[full] = given.get(full, {}) | dict(values or {})
    return given


def _full_name(name: str, preset: str, known: list[str], group: str = "tokenizers") -> str:
    name = registry.canonical(group, name)
    if preset == "mini" and f"{name}-mini" in known:
        return f"{name}-mini"
    if name not in known:
        raise ConfigError(registry.unknown(group[:-1], name, known))
    return name


def _rows(group: str, name: str, preset: str, given: dict[str, Any], target: str = "") -> list[Row]:
    """A row for each combination of the options' values; one where none is a list."""
    try:
        with isolated():
            cls = registry.load(group, target or name)
    except registry.BrokenPlugin as error:
        return [Row(name, name, None, error=str(error), trace="".join(traceback.format_exception(error)))]
    except registry.UnknownName as error:
        raise ConfigError(str(error)) from error
    if target and not isinstance(cls, type):
        raise ConfigError(f"{target} is {cls!r}: expected a class")
    if target and not issubclass(cls, Model):
        _check_target(target, cls, (Generator,) if group == "generators" else (Tokenizer,))
    if not (isinstance(cls, type) and issubclass(cls, Model)):
        return [Row(name, name, None, error=f"{name!r} is {cls!r}: expected a subclass of lactok.interface.Model")]
    if wrong := _wrong_options(cls):
        return [Row(name, name, None, error=wrong)]
    usual = dict(cls.preset_options.get(preset, {}))
    swept = {key: value if _is_sweep(cls.Options, key, value) else [value] for key, value in given.items()}
    combinations = [dict(zip(swept, values)) for values in itertools.product(*swept.values())]
    made = [check_options(name, cls.Options, usual | one) for one in combinations]
    rows = [_row(name, cls, options, usual, short=True) for options in made]
    if len({row.label for row in rows}) < len(rows):  # files of one name in several folders
        rows = [_row(name, cls, options, usual, short=False) for options in made]
    return [dataclasses.replace(row, target=target) for row in rows]


def _wrong_options(cls: type[Model]) -> str:
    """Why a plugin's Options can't be used; "" where they can."""
    try:
        with isolated():
            plain_options(cls.Options())
    except Exception as error:  # a plugin may declare anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"{cls.__qualname__}.Options: {reason}; expected a dataclass, each field with a type and a default"
    return ""


def plain_options(options: Any) -> dict[str, Any]:
    """An instance of a plugin's Options as plain JSON: an enum's member by its name, a path as text.

    Raises TypeError for a value that has no such form.
    """
    return {name: _plain(name, value) for name, value in dataclasses.asdict(options).items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, dict):
        return {str(_plain(name, k)): _plain(name, v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(name, v) for v in value])
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name} is {value!r}: expected a number, a text, an enum's member, a path, or lists or dicts of them"
    )


def _is_sweep(kind: type, key: str, value: Any) -> bool:
    """Whether a list is several values of an option that takes one."""
    declared = {f.name: _type_name(f) for f in dataclasses.fields(kind)}.get(key, "")
    return isinstance(value, list) and bool(value) and not declared.startswith(("list", "tuple"))


def _row(name: str, cls: type[Model], options: Any, usual: dict[str, Any], short: bool) -> Row:
    """short: whether the label has of a local checkpoint's path the last part alone."""
    plain = plain_options(cls.Options()) | usual
    values = plain_options(options)
    shown = {k: v for k, v in values.items() if v != plain[k]}
    told = {k: Path(v).name if short and k in cls.path_options and isinstance(v, str) else v for k, v in shown.items()}
    label = cls.label(options) or name + (f"[{','.join(f'{k}={v}' for k, v in told.items())}]" if told else "")
    return Row(label, name, cls, options, shown | {k: values[k] for k in usual})


def check_options(name: str, kind: type, given: dict[str, Any]) -> Any:
    """`given` as an instance of the options dataclass `kind`. Raises ConfigError for unknown keys and wrong types."""
    declared = {f.name: f for f in dataclasses.fields(kind)}
    for key in given:
        if key not in declared:
            if not declared:
                raise ConfigError(f"options.{name}.{key}: {name} has no options")
            raise ConfigError(
                registry.unknown("option", f"options.{name}.{key}", [f"options.{name}.{k}" for k in declared])
            )
    try:
        return kind(**typed(kind, given, f"options.{name}."))
    except (TypeError, ValueError, NameError) as error:
        expected = ", ".join(f"{k}: {_type_name(f)}" for k, f in declared.items())
        said = str(error) if str(error).startswith("options.") else f"options.{name}: {error}"
        raise ConfigError(f"{said}; declared: {expected}") from error


def _type_name(field: dataclasses.Field) -> str:
    """A field's type as its author wrote it."""
    return field.type.__name__ if isinstance(field.type, type) and not get_args(field.type) else str(field.type)


def _table_order(row: Row) -> tuple[int, int, str]:
    place = row.cls.calibration if row.cls else None
    if place is None:
        return 0, 0, row.name
    return (-1 if place < 0 else 1), place, row.label


def named(message: str, label: str) -> str:
    """A message about a row's checkpoints with the model's name in the option that it names."""
    return message.replace("options.NAME.", f"options.{label.split('[')[0]}.")


@dataclass(frozen=True)
class Identity:
    """What determines a row's results, apart from items, protocol and conditions; `parts` is plain JSON."""

    parts: dict[str, Any]
    weights: tuple[WeightsRecord, ...]


def identify(row: Row) -> Identity:
    """Name, version, options, checkpoints' sha256, and the sha256 of the files that define the plugin's class; of a
    live model nothing but a number drawn for this run.

    The last makes an edit of one of them, or of one that the class inherits from, enough to measure it anew. Finds (and
    may download) the checkpoints; raises lactok.weights.WeightsError.
    """
    assert row.cls is not None, f"{row.label} has no class"
    if row.live is not None:
        return Identity({"name": row.name, "live": uuid.uuid4().hex}, ())
    records = []
    with isolated():
        sources = row.cls.weights(row.options)
    try:
        weights.locate_all(sources)
    except weights.MissingWeights as error:
        raise weights.MissingWeights(named(str(error), row.label)) from error
    for source in sources:
        records.append(WeightsRecord(str(source), weights.identity_of(source), pinned=weights.is_pinned(source)))
    options = {k: v for k, v in plain_options(row.options).items() if k not in row.cls.path_options}
    parts = {
        "name": row.name,
        "version": row.cls.version,
        "options": options,
        "weights": [r.sha256 for r in records],
        "source": registry.source_hash(row.cls, row.target),
    }
    return Identity(parts, tuple(records))
