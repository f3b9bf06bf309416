"""Which rows a run has: from names on the command line to tokenizer classes, checked options and identities."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import itertools
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, get_args

from evals.config import ConfigError, as_list
from evals.engine.isolation import isolated
from evals.record import WeightsRecord
from lactok import registry, weights
from lactok.interface import Tokenizer

# Order of the calibration rows in a table: before the tokenizers, from best to worst, and after them.
CALIBRATION_FIRST = ("identity", "resize-64", "resize-256")
CALIBRATION_LAST = ("downsample-bits", "mean-colour")
# downsample-bits spends what the reference tokenizer's ids cost: llamagen-mini (64 x 10), llamagen (256 x 14).
REFERENCE_BITS = {"mini": 640, "paper": 3584}


@dataclass(frozen=True)
class Row:
    """One row to be measured.

    label: as the table shows it; cls: the plugin's class, None where it can't be imported (then `error` says why);
    options: an instance of cls.Options; changed: the options that differ from the defaults.
    """

    label: str
    name: str
    cls: type[Tokenizer] | None
    options: Any = None
    changed: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""


def resolve_rows(tokenizers: Any, preset: str, calibration: bool, options: dict[str, Any]) -> list[Row]:
    """The rows of a run, in the table's order.

    tokenizers: a name, a list, or "all"; preset: the `weights` setting, "mini" or "paper", which says what a name
    without its ending means (`llamagen` is `llamagen-mini` under "mini") and what "all" takes.
    options: by tokenizer; a list where the plugin declares a single value gives a row a value (a rate sweep).
    Raises ConfigError for an unknown name (with the nearest) or an option that the plugin does not declare.
    """
    known = list(registry.entries("tokenizers"))
    wanted = as_list(tokenizers)
    if not wanted:
        raise ConfigError("tokenizers is empty: name one, a list [a,b], or all")
    given = {_full_name(name, preset, known): dict(values or {}) for name, values in options.items()}
    named = [_full_name(name, preset, known) for name in wanted if name != "all"]
    optional = [*(known if "all" in wanted else ()), *(CALIBRATION_FIRST + CALIBRATION_LAST if calibration else ())]
    loaded = {name: _rows(name, preset, given.get(name, {})) for name in dict.fromkeys([*named, *optional])}
    rows = {name: found for name, found in loaded.items() if name in named or _belongs(found[0], preset)}
    unused = set(given) - set(rows)
    if unused:
        raise ConfigError(
            registry.unknown("tokenizer in options", sorted(unused)[0], list(rows)) + " (the rows of this run)"
        )
    return sorted((row for found in rows.values() for row in found), key=_table_order)


def _belongs(row: Row, preset: str) -> bool:
    """Whether "all" takes it; a plugin that can't be imported is taken, so that it is named."""
    return row.cls is None or (row.cls.scale in ("any", preset) and not row.cls.ablation)


def _full_name(name: str, preset: str, known: list[str]) -> str:
    if preset == "mini" and f"{name}-mini" in known:
        return f"{name}-mini"
    if name not in known:
        raise ConfigError(registry.unknown("tokenizer", name, known))
    return name


def _rows(name: str, preset: str, given: dict[str, Any]) -> list[Row]:
    """A row for each combination of the options' values; one where none is a list."""
    try:
        with isolated():
            cls = registry.load("tokenizers", name)
    except registry.BrokenPlugin as error:
        return [Row(name, name, None, error=str(error))]
    if not (isinstance(cls, type) and issubclass(cls, Tokenizer)):
        return [Row(name, name, None, error=f"tokenizer {name!r} is {cls!r}: expected a subclass of Tokenizer")]
    if wrong := _wrong_options(cls):
        return [Row(name, name, None, error=wrong)]
    usual = {"bits": REFERENCE_BITS[preset]} if name == "downsample-bits" else {}
    swept = {key: value if _is_sweep(cls.Options, key, value) else [value] for key, value in given.items()}
    combinations = [dict(zip(swept, values)) for values in itertools.product(*swept.values())]
    made = [check_options(name, cls.Options, usual | one) for one in combinations]
    rows = [_row(name, cls, options, usual, short=True) for options in made]
    if len({row.label for row in rows}) < len(rows):  # files of one name in several folders
        rows = [_row(name, cls, options, usual, short=False) for options in made]
    return rows


def _wrong_options(cls: type[Tokenizer]) -> str:
    """Why a plugin's Options can't be used; "" where they can."""
    from omegaconf import OmegaConf

    try:
        with isolated():
            plain_options(cls.Options())
            OmegaConf.structured(cls.Options)
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


def _row(name: str, cls: type[Tokenizer], options: Any, usual: dict[str, Any], short: bool) -> Row:
    """short: whether the label has of a local checkpoint's path the last part alone."""
    plain = plain_options(cls.Options()) | usual
    values = plain_options(options)
    shown = {k: v for k, v in values.items() if v != plain[k]}
    told = {k: Path(v).name if short and k in cls.path_options and isinstance(v, str) else v for k, v in shown.items()}
    label = name + (f"[{','.join(f'{k}={v}' for k, v in told.items())}]" if told else "")
    return Row(label, name, cls, options, shown | {k: values[k] for k in usual})


def check_options(name: str, kind: type, given: dict[str, Any]) -> Any:
    """`given` as an instance of the options dataclass `kind`. Raises ConfigError for unknown keys and wrong types."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    declared = {f.name: f for f in dataclasses.fields(kind)}
    for key in given:
        if key not in declared:
            if not declared:
                raise ConfigError(f"options.{name}.{key}: {name} has no options")
            raise ConfigError(
                registry.unknown("option", f"options.{name}.{key}", [f"options.{name}.{k}" for k in declared])
            )
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), given))
    except OmegaConfBaseException as error:
        key = next(iter(given))
        expected = ", ".join(f"{k}: {_type_name(f)}" for k, f in declared.items())
        raise ConfigError(
            f"options.{name}.{getattr(error, 'key', None) or key}: {str(error).splitlines()[0]}; declared: {expected}"
        ) from error


def _type_name(field: dataclasses.Field) -> str:
    """A field's type as its author wrote it."""
    return field.type.__name__ if isinstance(field.type, type) and not get_args(field.type) else str(field.type)


def _table_order(row: Row) -> tuple[int, int, str]:
    if row.name in CALIBRATION_FIRST:
        return 0, CALIBRATION_FIRST.index(row.name), row.label
    if row.name in CALIBRATION_LAST:
        return 2, CALIBRATION_LAST.index(row.name), row.label
    return 1, 0, row.name


@dataclass(frozen=True)
class Identity:
    """What determines a row's results, apart from pictures, protocol and conditions; `parts` is plain JSON."""

    parts: dict[str, Any]
    weights: tuple[WeightsRecord, ...]


def identify(row: Row) -> Identity:
    """Name, version, options, checkpoints' sha256, and the sha256 of the file that defines the plugin.

    The last makes an edit of a plugin's own file enough to measure it anew. Finds (and may download) the checkpoints;
    raises lactok.weights.WeightsError.
    """
    records = []
    with isolated():
        sources = row.cls.weights(row.options)
    for source in sources:
        path = weights.locate(source)
        records.append(WeightsRecord(str(source), weights.sha256_of(path), pinned=source.sha256 is not None))
    options = {k: v for k, v in plain_options(row.options).items() if k not in row.cls.path_options}
    parts = {
        "name": row.name,
        "version": row.cls.version,
        "options": options,
        "weights": [r.sha256 for r in records],
        "source": _source_hash(row.cls),
    }
    return Identity(parts, tuple(records))


def _source_hash(cls: type) -> str:
    try:
        path = inspect.getsourcefile(cls)
    except TypeError:  # defined in an interactive session
        path = None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""
