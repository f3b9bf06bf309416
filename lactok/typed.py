"""Values from the command line as the types that a dataclass declares, so that one value has one form and one hash."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def typed(kind: type, given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`given`, by names of fields of the dataclass `kind`, each value as its field's type.

    Converted is what means the same: "no", "off", 0 to False, "7" and 7.0 to 7, 7 to "7" where text is declared, a list
    to a tuple, the name of an enum's member to the member. Raises ValueError naming `prefix` and field, the value, and
    the declared type.
    """
    from pydantic import ValidationError

    found = {}
    for name, value in given.items():
        hint, adapter = _fields(kind)[name]
        if _holds_bool(value) and not _takes_bool(hint):  # pydantic takes True for 1
            raise ValueError(f"{prefix}{name}={value!r}: expected {describe(hint)}")
        try:
            found[name] = adapter.validate_python(_member(hint, value))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(f"{prefix}{name}={value!r}: expected {describe(hint)} ({reason})") from error
    return found


def describe(hint: Any) -> str:
    """A type as a reader of the command line knows it: "int", "str | None", "one of squash, crop"."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(hint.__members__)}"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


@cache
def _fields(kind: type) -> dict[str, tuple[Any, TypeAdapter]]:
    from pydantic import ConfigDict, TypeAdapter

    hints, made = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        nested = dataclasses.is_dataclass(hint)  # has its own settings, pydantic takes none for it
        config = None if nested else ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)
        made[field.name] = (hint, TypeAdapter(hint, config=config))
    return made


def _member(hint: Any, value: Any) -> Any:
    """The member that a name means where an enum is declared (pydantic takes a member's value); else `value`."""
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and isinstance(value, str):
            return kind.__members__.get(value, value)
    return value


def _holds_bool(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, bool) or any(map(_holds_bool, parts))


def _takes_bool(hint: Any) -> bool:
    """Whether True can be meant: a bool somewhere in the type, or a type that pydantic judges by itself."""
    if get_origin(hint) is Literal:
        return any(isinstance(value, bool) for value in get_args(hint))
    if arguments := get_args(hint):
        return any(map(_takes_bool, arguments))
    return hint in (bool, Any, object, list, tuple, dict) or dataclasses.is_dataclass(hint)
