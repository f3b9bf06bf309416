"""The command line's configuration: Hydra groups composed into typed dataclasses, with errors that teach.

Inside, plain typed values are passed on; no configuration object leaves evals/run.py and the suites.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from evals.suites.catalog import ENCODER_SIZES, Suite, suites
from evals.tasks.protocol import Conventions, GenerationProtocol, ReconstructionProtocol
from lactok.registry import canonical, entries, unknown


class ConfigError(Exception):
    """The command line can't be used; the message says the value seen, the value expected and the way out."""


@dataclass
class DatasetConfig:
    """name: see `python -m evals list`; root: folder or file of the data, where the dataset needs one; expect: its
    number of items, where a part of a dataset of published size is wanted; cluster: of a folder, which images belong
    together for intervals: "folder", "file", or a CSV with columns file and cluster; max_pixels: images with more are
    refused, None: the decoder's limit; metadata: a CSV of what models that ask for it are told of each item."""

    name: str = "photos"
    root: str | None = None
    expect: int | None = None
    cluster: str | None = None
    max_pixels: int | None = None
    metadata: str | None = None


@dataclass
class SlurmConfig:
    """What launcher=slurm asks the cluster for.

    cluster: "slurm", or "local" for processes of this machine; more: further sbatch options, by name.
    """

    cluster: str = "slurm"
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 1
    cpus_per_task: int = 8
    minutes: int = 24 * 60
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class JudgesConfig:
    """backend: whose code scores generated images: "ported", or "original", the published packages in environments of
    their own (`python -m evals judges install`)."""

    backend: str = "ported"


@dataclass
class RunConfig:
    """All of a run's settings, resolved. evals/cli/help.py explains each key."""

    suite: str = "recon"
    scale: str = "mini"
    weights: str = "mini"
    features: str = "effnet"
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    protocol: dict[str, Any] = field(default_factory=dict)
    tokenizers: Any = "all"
    generators: Any = "all"
    round_trips: int = 1
    costs: bool = False
    drift: int = 0
    calibration: bool = True
    metrics: Any = "default"
    judges: JudgesConfig = field(default_factory=JudgesConfig)
    limit: int | None = None
    seed: int = 0
    seeds: int = 1
    device: str = "auto"
    offline: bool = False
    batch_size: int | None = None
    precision: str = "fp32"
    resident: int | None = None
    save_images: bool = False
    on_bad_image: str = "stop"
    max_refused: Any = None
    out: str = "results"
    workers: Any = "auto"
    launcher: str = "here"
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The name of the suite's task."""
        return suites()[self.suite].task

    @property
    def unasked(self) -> tuple[str, ...]:
        """The metrics of the suite's table that the run does not compute at its scale, unless they are asked for."""
        suite = suites().get(self.suite)
        return tuple(name for name in suite.unasked.get(self.scale, ()) if name not in self.metrics) if suite else ()

    @property
    def default_metrics(self) -> str:
        """Which of the metrics that are measured by default (evals/metrics/plan.py): by features, or of generation."""
        return "generation" if self.task == "generation" else self.features

    def make_protocol(self) -> Conventions:
        """The task's frozen protocol; raises ConfigError for an unknown field or a value out of range."""
        kind: type[Conventions] = GenerationProtocol if self.task == "generation" else ReconstructionProtocol
        known = [f.name for f in dataclasses.fields(kind)]
        for name in self.protocol:
            if name not in known:
                raise ConfigError(unknown("key", f"protocol.{name}", [f"protocol.{k}" for k in known]))
        from lactok.images.decode import VERSION

        try:
            protocol = kind(**self._with_judges())
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error
        if isinstance(protocol, ReconstructionProtocol) and protocol.decode != VERSION:
            raise ConfigError(
                f"protocol.decode={protocol.decode}: these are not the decoding rules of this version of the code; "
                f"expected {VERSION}"
            )
        return protocol

    def _with_judges(self) -> dict[str, Any]:
        """The protocol's fields, the judges' backend among them where it is not the usual one."""
        backend = self.judges.backend
        if backend == JudgesConfig.backend:
            return self.protocol
        name = f"{self.protocol.get('name', '')} with judges={backend}"
        return self.protocol | {"judges": backend, "name": name}


@dataclass(frozen=True)
class Limit:
    """A number of items, or a share of all of them. text: as it was given, "3" or "1%"."""

    text: str

    def __post_init__(self) -> None:
        """Raises ValueError for another text, or more than 100 %."""
        if self._share and not 0 <= float(self.text[:-1]) <= 100:
            raise ValueError
        if not self._share and int(self.text) < 0:
            raise ValueError

    @property
    def _share(self) -> bool:
        return self.text.endswith("%")

    def of(self, items: int) -> int:
        """The most items of so many."""
        return int(float(self.text[:-1]) * items / 100 + 1e-9) if self._share else int(self.text)


CHOICES = {
    "weights": ("mini", "paper"),
    "features": ("effnet", "inception"),
    "precision": ("fp32", "tf32", "bf16"),
    "on_bad_image": ("stop", "skip"),
    "launcher": ("here", "slurm"),
}
POSITIVE = ("limit", "seeds", "batch_size", "resident", "round_trips")
# What stands for a dot within a part of a key, where Hydra would see several parts.
DOT = "$"
# Former names of keys, which commands may still have.
FORMER = {"save_pictures": "save_images"}


def compose_runs(overrides: list[str]) -> list[RunConfig]:
    """The checked runs that a command line asks for, in the order in which they are made; one but for a paper's table.

    A paper's table at scale=paper is a run on each of its datasets, with the folders given by `roots.NAME=DIR`; a
    dataset that the command line names (`dataset=NAME dataset.root=DIR`) is the only one. Raises ConfigError.
    """
    roots = {o.lstrip("+").removeprefix("roots."): o for o in overrides if o.lstrip("+").startswith("roots.")}
    roots = {key.split("=", 1)[0]: override for key, override in roots.items()}
    rest = [o for o in overrides if not o.lstrip("+").startswith("roots.")]
    given = _given(rest)
    suite, datasets = _suite(given), []
    if suite.table is not None and given.get("scale", "paper") == "paper" and "dataset" not in given:
        datasets = list(suite.datasets)
    _check_roots(roots, suite, datasets, given)
    if not datasets:
        return [_compose(rest)]
    if len(datasets) > 1 and "dataset.root" in given:
        example = " ".join(f"roots.{name}=DIR" for name in datasets)
        raise ConfigError(
            f"dataset.root={given['dataset.root']}: suite={suite.name} stands on {len(datasets)} datasets; give the "
            f"folder of each ({example}), or name one (dataset={datasets[0]} dataset.root=DIR)"
        )
    return [_compose([*rest, f"dataset={name}", *_root_of(roots.get(name))]) for name in datasets]


def compose_config(overrides: list[str]) -> RunConfig:
    """The checked run that a command line asks for. Raises ConfigError, also where it asks for several."""
    runs = compose_runs(overrides)
    if len(runs) > 1:
        names = " or ".join(f"dataset={run.dataset.name}" for run in runs)
        raise ConfigError(f"suite={runs[0].suite} is {len(runs)} runs: name one of them by {names}")
    return runs[0]


def _given(overrides: list[str]) -> dict[str, str]:
    return dict(o.lstrip("+").split("=", 1) for o in overrides if "=" in o)


def _suite(given: dict[str, str]) -> Suite:
    name = given.get("suite", RunConfig.suite)
    if name not in suites():
        raise ConfigError(unknown("suite", name, list(suites())))
    return suites()[name]


def _check_roots(roots: dict[str, str], suite: Suite, datasets: list[str], given: dict[str, str]) -> None:
    for name, override in roots.items():
        if "=" not in override:
            raise ConfigError(f"{override!r} is not of the form roots.NAME=DIR")
        if not datasets:
            where = " ".join(f"{key}={given[key]}" for key in ("suite", "scale", "dataset") if key in given)
            raise ConfigError(
                f"roots.{name} is for a paper's table on all its datasets at scale=paper; {where or 'suite=recon'} has "
                "one dataset, with dataset.root=DIR"
            )
        if name not in datasets:
            raise ConfigError(unknown("key", f"roots.{name}", [f"roots.{known}" for known in datasets]))
        if "dataset.root" in given:
            raise ConfigError(f"roots.{name} and dataset.root name a folder each: give one of them")


def _root_of(override: str | None) -> list[str]:
    """roots.NAME=DIR as dataset.root=DIR, its quotes kept."""
    return [] if override is None else [f"dataset.root={override.split('=', 1)[1]}"]


def _compose(overrides: list[str]) -> RunConfig:
    """Command-line overrides ("key=value", Hydra syntax) to a checked RunConfig. Raises ConfigError."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [_renamed(o) for o in [*_of_the_suite(_given(overrides)), *overrides]]
    if renaming := [o for o in overrides if o.lstrip("+~").split("=", 1)[0] == "protocol.name"]:
        raise ConfigError(
            f"{renaming[0]}: a protocol's name says which shipped one it is and what was changed of it; choose one by "
            f"protocol={'|'.join(group_names('protocol'))}, change its fields by protocol.FIELD=value"
        )
    try:
        with initialize_config_module("evals.conf", version_base="1.3"):
            composed = compose("config", overrides=[_allow_new_keys(o) for o in overrides])
        config = cast(RunConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), composed)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(overrides, error)) from error
    config.options = {name.replace(DOT, "."): values for name, values in config.options.items()}
    changed = sorted(
        o.lstrip("+").removeprefix("protocol.") for o in overrides if o.lstrip("+").startswith("protocol.")
    )
    if changed and "name" in config.protocol:
        config.protocol["name"] += f" with {', '.join(changed)}"
    _check(config)
    return config


def _renamed(override: str) -> str:
    """The override under the key that the configuration has."""
    key, equals, value = _with_dots_masked(override).partition("=")
    if key == "dataset":  # a name; the group of a dataset's settings has the same name
        return f"dataset.name={value}"
    return FORMER.get(key, key) + equals + value


def _with_dots_masked(override: str) -> str:
    """The override with a model's name as one part of its key: `options.sd1.5.steps` to `options.sd1$5.steps`."""
    prefix, options, rest = override.partition("options.")
    if not options or prefix.strip("+~"):
        return override
    names = [name for group in ("tokenizers", "generators", "calibration") for name in entries(group)]
    for name in names:
        if "." in name and rest.startswith((f"{name}.", f"{name}=")):
            return f"{prefix}{options}{name.replace('.', DOT)}{rest[len(name) :]}"
    return override


def _of_the_suite(given: dict[str, str]) -> list[str]:
    """What a suite sets where the command line does not: tokenizers, their sizes and, of a paper's table, the scale."""
    suite = _suite(given)
    usual = dict(suite.settings) | ({} if suite.table is None else {"scale": "paper"})
    if suite.task == "generation":
        usual.setdefault("protocol", "as-generated")
    scale = given.get("scale", usual.get("scale", RunConfig.scale))
    for key, names in (("tokenizers", suite.tokenizers), ("generators", suite.generators)):
        usual[key] = f"[{','.join(names)}]" if names != ("all",) else "all"
    usual |= {**suite.scaled.get(scale, {}), **suite.of_dataset.get(given.get("dataset", ""), {})}
    rows = "generators" if suite.task == "generation" else "tokenizers"
    usual = {key: value for key, value in usual.items() if _has_row(key, given.get(rows, usual[rows]))}
    named = as_list(given["tokenizers"].strip("[]")) if "tokenizers" in given else suite.tokenizers
    named = [canonical("tokenizers", name) for name in named]
    for name in suite.sized:
        if name in named and scale in ENCODER_SIZES:
            usual[f"options.{name}.input_size"] = f"[{','.join(map(str, ENCODER_SIZES[scale]))}]"
    return [f"{key}={value}" for key, value in usual.items() if key not in given]


def _has_row(key: str, rows: str) -> bool:
    """Whether a suite's setting is of a row that the command has: of options only those are set."""
    if not key.startswith("options."):
        return True
    named = [name.strip() for name in as_list(rows.strip("[]").split(","))]
    own = key.removeprefix("options.").rsplit(".", 1)[0]
    return "all" in named or own in named or own.removesuffix("-mini") in named


def _allow_new_keys(override: str) -> str:
    """A plugin's own keys and a protocol's unset fields are not in the YAML: Hydra wants `++` for them.

    `dataset=NAME` is short for `dataset.name=NAME`: its names are those of the registry, not of YAML files.
    """
    if override.startswith("dataset="):
        return f"dataset.name={override.removeprefix('dataset=')}"
    return (
        f"++{override}" if override.startswith(("options.", "protocol.", "dataset.root=", "slurm.more.")) else override
    )


def _check(config: RunConfig) -> None:
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            raise ConfigError(f"{name}={value}: expected {' or '.join(choices)}")
    if config.judges.backend not in ("ported", "original"):
        raise ConfigError(f"judges.backend={config.judges.backend}: expected ported or original")
    if config.judges.backend != JudgesConfig.backend and config.task != "generation":
        raise ConfigError(
            f"judges.backend={config.judges.backend} is of images of prompts, and suite={config.suite} has none: "
            "leave it out, or name a suite of generation"
        )
    for name in POSITIVE:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: expected a whole number of at least 1")
    if config.drift < 0:
        raise ConfigError(f"drift={config.drift}: expected a number of round trips, 0 for none")
    if (config.costs or config.drift) and config.task != "reconstruction":
        raise ConfigError(
            f"costs and drift are of tokenizers, and suite={config.suite} has none: leave them out, or name a suite of "
            "reconstruction"
        )
    for name in ("nodes", "tasks_per_node", "cpus_per_task", "minutes"):
        if getattr(config.slurm, name) < 1:
            raise ConfigError(f"slurm.{name}={getattr(config.slurm, name)}: expected a whole number of at least 1")
    for name, value in (
        ("out", config.out),
        ("dataset.root", config.dataset.root),
        ("dataset.cluster", config.dataset.cluster),
        ("dataset.metadata", config.dataset.metadata),
    ):
        if value is not None and not value.strip():  # it would be the current folder
            raise ConfigError(f"{name}= is empty (an unset shell variable?): name it, or leave {name} out")
    if not as_list(config.metrics):
        raise ConfigError("metrics is empty, so the run would have no figures: name one, a list [a,b], or default")
    if config.dataset.name not in (names := entries("datasets")):
        raise ConfigError(unknown("dataset", config.dataset.name, list(names)))
    if config.workers != "auto" and (type(config.workers) is not int or config.workers < 1):
        raise ConfigError(f"workers={config.workers}: expected auto, or a whole number of at least 1")
    if config.dataset.expect is not None and config.dataset.expect < 1:
        raise ConfigError(f"dataset.expect={config.dataset.expect}: expected a whole number of at least 1")
    if config.max_refused is not None:
        try:
            Limit(str(config.max_refused))
        except ValueError as error:
            raise ConfigError(
                f"max_refused={config.max_refused}: expected a number of items (3) or a share of them (1%), at least 0"
            ) from error
    if config.dataset.max_pixels is not None and config.dataset.max_pixels < 1:
        raise ConfigError(f"dataset.max_pixels={config.dataset.max_pixels}: expected a whole number of at least 1")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"seed={config.seed}: expected 0 to 2^63 - 1")


def _explain(overrides: list[str], error: Exception) -> str:
    """One clear sentence for what Hydra or OmegaConf found wrong."""
    text = str(error).strip()
    for override in overrides:
        key, _, value = override.partition("=")
        if "=" not in override:
            return f"{override!r} is not of the form key=value; `python -m evals.run --help` lists the keys"
        if not _parses(override):
            shown = key.replace(DOT, ".")
            return f"the value of {shown} has characters that need quotes; write {quoted(shown, value)}"
        base = key.lstrip("+~")
        if base.split(".")[0] not in RunConfig.__dataclass_fields__:
            return unknown("key", base, list(RunConfig.__dataclass_fields__)) + "; see `python -m evals.run --help`"
        if base in ("scale", "protocol") and value not in (names := group_names(base)):
            return unknown(base, value, names)
        if base.startswith("dataset.") and base not in (
            known := [f"dataset.{k}" for k in DatasetConfig.__dataclass_fields__]
        ):
            return unknown("key", base, known)
    where = getattr(error, "full_key", None)
    return (f"{where}: " if where else "") + (text.splitlines()[0] if text else type(error).__name__)


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return not OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False


def quoted(key: str, value: str) -> str:
    """`key=value` as a POSIX shell and Hydra both take it, whatever the value holds."""
    import shlex

    inner = value.replace("\\", "\\\\").replace("'", "\\'")
    override = f"{key}='{inner}'"
    return shlex.quote(override) if set('"\\$`!') & set(override) else f'"{override}"'


def group_names(group: str) -> list[str]:
    """The names in a configuration group, e.g. the protocols."""
    from importlib.resources import files

    return sorted(
        p.name.removesuffix(".yaml") for p in (files("evals.conf") / group).iterdir() if p.name.endswith(".yaml")
    )


def as_list(value: Any) -> list[str]:
    """`a`, `[a,b]` or "a,b" to a list of names."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Iterable):
        return [str(v) for v in value]
    return [str(value)]
