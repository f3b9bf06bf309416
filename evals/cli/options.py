"""A plugin's options, from its Options dataclass and the docstrings: for `evals list` and docs/tokenizers.md."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

from lactok.typed import describe

PAGE = """\
# Tokenizers and their options

Written by `python -m evals list tokenizers --markdown > docs/tokenizers.md` from the classes themselves; a test holds
it to them. `options.NAME.OPTION=VALUE` sets one; a list of values is a row each:
`options.flextok-mini.keep_ids=[1,16,64]`. Under `weights=mini` a name means its miniature (`llamagen` is
`llamagen-mini`). A class of your own takes options likewise, by the name of the class:
`tokenizers=[./my_tok.py:MyTok] options.MyTok.KEY=VALUE` ([adding-a-tokenizer.md](adding-a-tokenizer.md)).
"""


@dataclass(frozen=True)
class Option:
    """One field: its type and default as they are typed on the command line, and its meaning, "" where none is told."""

    name: str
    type: str
    default: str
    meaning: str


def options_of(kind: type) -> list[Option]:
    """The fields of an options dataclass, in order."""
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    told = _meanings(kind, [field.name for field in fields])
    values = kind()
    return [
        Option(field.name, describe(hints[field.name]), _shown(getattr(values, field.name)), told.get(field.name, ""))
        for field in fields
    ]


def _shown(value: Any) -> str:
    """A value as Hydra takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_shown, value))}]"
    return str(value)


def _meanings(kind: type, names: Iterable[str]) -> dict[str, str]:
    """By field, what follows "NAME:" or "NAME, NAME:" in the docstring of the class or of what it inherits or names."""
    one = "|".join(map(re.escape, names)) or "(?!)"
    marker = re.compile(rf"(?:^|(?<=\s)|(?<=\())((?:(?:{one}), )*(?:{one})): ")
    found: dict[str, str] = {}
    for doc in _docstrings(kind):
        parts = marker.split(" ".join(doc.split()))
        for together, text in zip(parts[1::2], parts[2::2]):
            for name in together.split(", "):
                found.setdefault(name, text.strip().rstrip(";.").strip())
    return found


def _docstrings(kind: type) -> Iterator[str]:
    """Of a dataclass and those that it inherits from or names (`OtherOptions`), each once."""
    todo, seen = list(inspect.getmro(kind)), set()
    while todo:
        cls = todo.pop(0)
        if cls in seen or not dataclasses.is_dataclass(cls):
            continue
        seen.add(cls)
        doc = cls.__doc__ or ""
        if doc.startswith(f"{cls.__name__}("):  # made by dataclass, where the author wrote none
            continue
        yield doc
        names = vars(sys.modules[cls.__module__])
        todo += [names[name] for name in re.findall(r"`(\w+)`", doc) if isinstance(names.get(name), type)]


def page() -> str:
    """docs/tokenizers.md: every tokenizer of this project, what it is, and its options."""
    from lactok import registry

    parts = [PAGE]
    for name, entry in registry.entries("tokenizers").items():
        if entry.distribution != "lactok":
            continue
        cls = registry.load("tokenizers", name)
        parts.append(f"## {name}\n\n{_first_line(cls)} Weights: {_licence(cls)}; code: {cls.code_licence}.\n")
        parts.append(_table(options_of(cls.Options)))
    return "\n".join(parts)


def _licence(cls: Any) -> str:
    return str(cls.weights_licence)


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").splitlines()[0]


def _table(options: list[Option]) -> str:
    if not options:
        return "No options.\n"
    lines = ["| option | type | default | meaning |", "|:--|:--|:--|:--|"]
    for option in options:
        cells = (
            f"`{option.name}`",
            f"`{option.type}`".replace("|", "\\|"),
            f"`{option.default}`",
            _cell(option.meaning),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
