"""Names to lazily imported plugins, through entry points.

Groups: tokenizers, generators, recipes, features, metrics, datasets, suites, conformance, calibration;
the entry-point group is `lactok.<group>`.
Nothing is imported until it is asked for, and a plugin that breaks on import is named while the rest load. Where a name
is asked for, FILE.py:CLASS or package.module:CLASS stands for a plugin that no package registers (lactok/targets.py).
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

GROUPS = (
    "tokenizers",
    "generators",
    "recipes",
    "features",
    "metrics",
    "datasets",
    "suites",
    "conformance",
    "calibration",
)
# Top-level packages of this project, whose files determine results wherever they are installed.
PROJECT = ("lactok", "baselines", "evals")
ALIASES = {"tokenizers": {"lactok-l": "lactok-t", "lactok-l-star": "lactok-t-star"}}
"""By group, other names that users may type and what each stands for. LacTok-L is LacTok-T in the paper's version at
CVPR 2026 (known second hand)."""


class RegistryError(Exception):
    """A name that can't be had; the message says why and what to do."""


class UnknownName(RegistryError):
    """No plugin of that name; the message lists the nearest."""


class BrokenPlugin(RegistryError):
    """The plugin is registered but can't be imported; the message holds its reason."""


@dataclass(frozen=True)
class Entry:
    """One registered name: its target ("module:attribute") and the distribution that brings it."""

    name: str
    target: str
    distribution: str


@cache
def entries(group: str) -> dict[str, Entry]:
    """All entries of a group by name, sorted; no plugin is imported.

    Raises RegistryError when two distributions register one name: which of them would win is undefined.
    """
    if group not in GROUPS:
        raise UnknownName(f"no plugin group {group!r}; groups: {', '.join(GROUPS)}")
    found: dict[str, Entry] = {}
    for point in sorted(entry_points(group=f"lactok.{group}"), key=lambda p: (p.name, p.value)):
        entry = Entry(point.name, point.value, point.dist.name if point.dist else "?")
        other = found.setdefault(entry.name, entry)
        if other.target != entry.target:
            raise RegistryError(
                f"two packages register {_kind(group)} {entry.name!r}: {other.distribution} ({other.target}) and "
                f"{entry.distribution} ({entry.target}); uninstall or rename one of them"
            )
    if not found and group == "tokenizers":
        raise RegistryError("no tokenizer is registered: the package is not installed; run `pip install -e .`")
    return found


def canonical(group: str, name: str) -> str:
    """The registered name that `name` stands for; any other name as it is."""
    return ALIASES.get(group, {}).get(name, name)


def aliases_of(group: str, name: str) -> list[str]:
    """The other names of a registered name."""
    return [alias for alias, target in ALIASES.get(group, {}).items() if target == name]


def is_target(name: str) -> bool:
    """Whether a name says where a plugin is (WHERE:CLASS); no registered name has a colon."""
    return ":" in name


def short_name(target: str, with_place: bool = False) -> str:
    """What rows and options call a target: the name of its class, or PLACE-CLASS with the file's or module's name."""
    where, _, attribute = target.rpartition(":")
    place = Path(where).stem if names_a_file(where) else where.rpartition(".")[2]
    name = attribute.rpartition(".")[2]
    return re.sub(r"[^\w-]", "_", f"{place}-{name}" if with_place else name)


def names_a_file(where: str) -> bool:
    """Whether the part of a target before its colon is a path, and no module's name."""
    return where.endswith(".py") or "/" in where or "\\" in where


def _kind(group: str) -> str:
    """What one member of a group is called in a message."""
    return {"conformance": "port", "features": "feature network"}.get(group, group.removesuffix("s"))


def nearest(name: str, candidates: list[str], count: int = 3) -> list[str]:
    """Candidates that a person who typed `name` may have meant, best first."""
    squeeze = {re.sub(r"[^a-z0-9]", "", c.lower()): c for c in candidates}
    close = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", name.lower()), squeeze, n=count, cutoff=0.4)
    return [squeeze[c] for c in close]


def unknown(kind: str, name: str, candidates: list[str]) -> str:
    """The sentence for a name that is not known: the nearest names, else all."""
    close = nearest(name, candidates)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else "nothing is close to it;"
    return f"unknown {kind} {name!r}: {hint} known: {', '.join(sorted(candidates))}"


def load(group: str, name: str) -> Any:
    """Import and return the target of `name`, or of what it is an alias of; of FILE.py:CLASS or package.module:CLASS.

    Raises UnknownName with the nearest names, or BrokenPlugin with the plugin's own reason.
    """
    if is_target(name):
        from lactok.targets import load as load_target

        return load_target(name)
    known = entries(group)
    name = canonical(group, name)
    if name not in known:
        raise UnknownName(unknown(_kind(group), name, list(known)))
    entry = known[name]
    try:
        return EntryPoint(name, entry.target, f"lactok.{group}").load()
    except (Exception, SystemExit) as error:  # a plugin may fail in any way; it must not take the others with it
        raise BrokenPlugin(
            f"{_kind(group)} {name!r} of package {entry.distribution} can't be imported from {entry.target}: "
            f"{type(error).__name__}: {error}"
        ) from error


def source_hash(cls: type, target: str = "") -> str:
    """16 hex digits of the content of `hashed_files`, wherever they lie; "" where there are none.

    target: how the class was named where it is not registered: what its file imports from its own folder joins.
    With it in the keys of stored results, an edit of a plugin is enough to measure it anew.
    """
    files = hashed_files(cls)
    if target:
        from lactok.targets import own_files

        here = {path.resolve() for path in files}
        files += [path for path in own_files(target).values() if path.resolve() not in here]
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in files]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16] if digests else ""


def hashed_files(cls: type) -> list[Path]:
    """The files that define `cls` and what it inherits from, each once, but for those of installed dependencies.

    A dependency is what lies in the standard library or in site-packages and is neither this project's nor of the
    package that `cls` itself is from.
    """
    own = {*PROJECT, _package(cls)}
    found: dict[Path, None] = {}
    for ancestor in inspect.getmro(cls):
        try:
            file = inspect.getsourcefile(ancestor)
        except (TypeError, OSError):  # a builtin, or defined in an interactive session
            continue
        if file and (_package(ancestor) in own or not is_installed(Path(file).resolve())):
            found[Path(file)] = None
    return list(found)


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def is_installed(file: Path) -> bool:
    """Whether a file is of the standard library or of an installed package."""
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    return bool({"site-packages", "dist-packages"} & set(file.parts) or standard & set(file.parents))
