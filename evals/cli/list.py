"""`python -m evals list`: what can be named on the command line, what each needs, and whether it is here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.cli.listing import Listing

HELP = """\
usage: python -m evals list [tokenizers] [generators] [calibration] [datasets] [suites] [metrics]
                            [protocols] | tokenizers --markdown

Shows the names that `python -m evals.run` takes, what each needs (checkpoints, data) and whether that is here.
Nothing is downloaded. Without a word: all seven. `list tokenizers` and `list generators` also show every option with
its type, default and meaning: options.NAME.OPTION=VALUE sets one, options.NAME.OPTION=[a,b] makes a row of each value.
Columns where the terminal is wide enough for them, else a block for each name.

    python -m evals list tokenizers --markdown > docs/tokenizers.md
"""


def main(argv: list[str]) -> int:
    """Print the asked-for lists; 2 for an unknown word, 1 when a plugin can't be imported."""
    sections = {
        "tokenizers": lambda: _models("tokenizers", options="tokenizers" in argv),
        "generators": lambda: _models("generators", options="generators" in argv),
        "calibration": lambda: _models("calibration"),
        "datasets": _datasets,
        "suites": _suites,
        "metrics": _metrics,
        "protocols": _protocols,
    }
    if any(a in ("-h", "--help") for a in argv):
        print(HELP, end="")
        return 0
    if "--markdown" in argv:
        if argv != ["tokenizers", "--markdown"]:
            print("error: --markdown is of tokenizers: python -m evals list tokenizers --markdown", file=sys.stderr)
            return 2
        from evals.cli.options import page

        print(page(), end="")
        return 0
    for word in argv:
        if word not in sections:
            from lactok.registry import unknown

            print(f"error: {unknown('list', word, list(sections))}", file=sys.stderr)
            return 2
    return max(sections[word]() for word in argv or sections)


def _table(title: str, *columns: str) -> Listing:
    from evals.cli.listing import Listing

    return Listing(title, columns)


def _licences_of(cls: Any) -> str:
    """Of a model's code and weights."""
    return f"{cls.code_licence} / {cls.weights_licence}"


def _models(group: str, options: bool = False) -> int:
    """The models of a group of plugins: "tokenizers", "generators" or "calibration". options: whether theirs follow."""
    from evals.engine.rows import named
    from lactok import registry
    from lactok.interface import Unavailable

    key = "tokenizers" if group == "calibration" else group
    title = f"{group.capitalize()} ({key}=NAME)"
    table = _table(title, "name", "scale", "package", "licence code / weights", "needs", "pinned by", "here")
    broken, missing, found = 0, [], {}
    for name, entry in registry.entries(group).items():
        try:
            cls = found[name] = registry.load(group, name)
            sources = cls.weights(cls.Options())
            needs, here, reasons = _here(sources)
            missing += [named(reason, name) for reason in reasons]
            names = "\n".join([name, *(f"also {alias}" for alias in registry.aliases_of(group, name))])
            table.add(names, cls.scale, entry.distribution, _licences_of(cls), needs, _pinned(sources), here)
        except Unavailable as error:
            table.add(name, cls.scale, entry.distribution, _licences_of(cls), "a package", "–", "no")
            missing.append(named(str(error), name))
        except registry.BrokenPlugin as error:
            broken = 1
            table.add(name, "?", entry.distribution, "?", "?", "?", "broken")
            missing.append(str(error))
    table.show()
    if options:
        _show_options(found)
    _show_missing(missing)
    return broken


def _show_options(models: dict[str, Any]) -> None:
    """Every option of these classes, by name."""
    from evals.cli.options import options_of

    title = "Options (options.NAME.OPTION=VALUE; a list of values is a row each)"
    table = _table(title, "option", "type", "default", "meaning")
    for name, cls in models.items():
        for option in options_of(cls.Options):
            table.add(f"options.{name}.{option.name}", option.type, option.default, option.meaning)
    table.show()


def _pinned(sources: Any) -> str:
    """What holds the sources to the files that were meant; "nothing" where any may be another one tomorrow."""
    from lactok.weights import pin_of

    return ", ".join(dict.fromkeys(map(pin_of, sources)))


def _here(sources: Any) -> tuple[str, str, list[str]]:
    """What is needed, whether it is here, and for what is not: where it was looked for, and how to get it."""
    from lactok.weights import MissingFile, MissingWeights, WeightsError, locate, told

    lacking, missing = [], []
    for source in sources:
        try:
            locate(source, download=False)
        except MissingWeights as error:
            lacking.append(MissingFile(source, str(error), error.reason))
        except WeightsError as error:
            missing.append(str(error))
    missing += told(lacking)
    return "\n".join(_named(sources)) or "nothing", "no" if missing else "yes", missing


def _named(sources: Any) -> list[str]:
    """A line a source, and one for several files of a hub repository's revision."""
    from lactok.weights import HubWeights

    lines: dict[object, list[Any]] = {}
    for source in sources:
        lines.setdefault((source.repo, source.revision) if isinstance(source, HubWeights) else source, []).append(
            source
        )
    return [
        str(found[0]) if len(found) == 1 else f"{len(found)} files of {found[0].repository}" for found in lines.values()
    ]


def _show_missing(missing: list[str]) -> None:
    if missing:
        from rich.console import Console

        from evals.cli.listing import wrapped

        width = Console().width
        print("What is missing here:")
        for line in dict.fromkeys(missing):
            print("\n".join(wrapped(f"- {line}", width, "  ")))
        print()


def _datasets() -> int:
    from lactok import registry

    table = _table("Datasets (dataset=NAME)", "name", "what", "package", "here")
    broken, missing = 0, []
    for name, entry in registry.entries("datasets").items():
        try:
            needs = registry.load("datasets", name).needs()
            where = f"yes: {needs.where}" if needs.where else "yes"
            here = {True: where, False: "no", None: "give dataset.root=DIR"}[needs.here]
            table.add(name, needs.summary, entry.distribution, here)
        except registry.BrokenPlugin as error:
            broken = 1
            table.add(name, "?", entry.distribution, "broken")
            missing.append(str(error))
    table.show()
    _show_missing(missing)
    return broken


def _suites() -> int:
    from evals.suites.catalog import suites

    table = _table("Suites (suite=NAME)", "name", "what")
    for suite in suites().values():
        table.add(suite.name, suite.summary)
    table.show()
    return 0


def _metrics() -> int:
    from evals.metrics.plan import UnusableMetric, metric_class
    from lactok import registry

    table = _table("Metrics (metrics=[NAME,...])", "name", "what", "package", "needs", "pinned by", "here")
    broken, missing = 0, []
    for name, entry in registry.entries("metrics").items():
        try:
            cls = metric_class(name)
            needs, here, reasons = _here(cls.weights())
            missing += reasons
            table.add(name, cls.summary, entry.distribution, needs, _pinned(cls.weights()), here)
        except Exception as error:  # a plugin may fail in any way; the others are listed
            broken = 1
            table.add(name, "?", entry.distribution, "?", "?", "broken")
            told = isinstance(error, (registry.RegistryError, UnusableMetric))
            missing.append(f"metric {name}: {error if told else f'{type(error).__name__}: {error}'}")
    table.show()
    _show_missing(missing)
    return broken


def _protocols() -> int:
    from importlib.resources import files

    from evals.config import group_names

    table = _table("Protocols (protocol=NAME)", "name", "fields that it sets")
    for name in group_names("protocol"):
        text = (files("evals.conf") / "protocol" / f"{name}.yaml").read_text()
        fields = [line.strip() for line in text.splitlines() if line and not line.startswith(("#", "name"))]
        table.add(name, ", ".join(fields))
    table.show()
    return 0
