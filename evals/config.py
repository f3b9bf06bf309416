"""The command line's configuration: Hydra groups composed into typed dataclasses, with errors that teach.

Inside, plain typed values are passed on; no configuration object leaves evals/run.py and the suites.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from evals.protocol import Protocol
from lactok import registry
from lactok.registry import unknown


class ConfigError(Exception):
    """The command line can't be used; the message says the value seen, the value expected and the way out."""


@dataclass
class DatasetConfig:
    """name: see `python -m evals list`; root: folder or file of the data, where the dataset needs one; expect: its
    number of items, where a part of a dataset of published size is wanted."""

    name: str = "photos"
    root: str | None = None
    expect: int | None = None


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
class RunConfig:
    """All of a run's settings, resolved. evals/cli/help.py explains each key."""

    suite: str = "recon"
    scale: str = "mini"
    weights: str = "mini"
    features: str = "effnet"
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    protocol: dict[str, Any] = field(default_factory=dict)
    tokenizers: Any = "all"
    calibration: bool = True
    metrics: Any = "default"
    limit: int | None = None
    seed: int = 0
    seeds: int = 1
    device: str = "auto"
    batch_size: int | None = None
    precision: str = "fp32"
    resident: int | None = None
    save_pictures: bool = False
    on_bad_image: str = "stop"
    out: str = "results"
    launcher: str = "here"
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    options: dict[str, Any] = field(default_factory=dict)

    def make_protocol(self) -> Protocol:
        """The frozen protocol; raises ConfigError for an unknown field or a value out of range."""
        known = [f.name for f in dataclasses.fields(Protocol)]
        for name in self.protocol:
            if name not in known:
                raise ConfigError(unknown("key", f"protocol.{name}", [f"protocol.{k}" for k in known]))
        try:
            return Protocol(**self.protocol)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error


CHOICES = {
    "weights": ("mini", "paper"),
    "features": ("effnet", "inception"),
    "precision": ("fp32", "tf32", "bf16"),
    "on_bad_image": ("stop", "skip"),
    "launcher": ("here", "slurm"),
}
# The paper's tables as suites: the dataset of each that is taken where none is named, at scale=paper. (Which pictures
# Tables 4 and 5 stand on is not known; docs/paper_tables.md.)
PAPER_TABLES = {
    "table1": "imagenet-val",
    "table2": "coco-val2017",
    "table4": "coco-val2017",
    "table5": "coco-val2017",
}
POSITIVE = ("limit", "seeds", "batch_size", "resident")


def compose_config(overrides: list[str]) -> RunConfig:
    """Command-line overrides ("key=value", Hydra syntax) to a checked RunConfig. Raises ConfigError."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [*_of_the_paper(overrides), *overrides]
    try:
        with initialize_config_module("evals.conf", version_base="1.3"):
            composed = compose("config", overrides=[_allow_new_keys(o) for o in overrides])
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(overrides, error)) from error
    changed = sorted(
        o.lstrip("+").removeprefix("protocol.") for o in overrides if o.lstrip("+").startswith("protocol.")
    )
    if changed and "name" in config.protocol:
        config.protocol["name"] += f" with {', '.join(changed)}"
    _check(config)
    return config


def _of_the_paper(overrides: list[str]) -> list[str]:
    """The scale and the dataset of a paper's table, where the command line names its suite and not them."""
    given = dict(o.split("=", 1) for o in overrides if "=" in o)
    if given.get("suite") not in PAPER_TABLES:
        return []
    scale = given.get("scale", "paper")
    usual = {"scale": scale} | ({"dataset": PAPER_TABLES[given["suite"]]} if scale == "paper" else {})
    return [f"{key}={value}" for key, value in usual.items() if key not in given]


def _allow_new_keys(override: str) -> str:
    """A plugin's own keys and a protocol's unset fields are not in the YAML: Hydra wants `++` for them.

    `dataset=NAME` is short for `dataset.name=NAME`: its names are those of the registry, not of YAML files.
    """
    if override.startswith("dataset="):
        return f"dataset.name={override.removeprefix('dataset=')}"
    return (
        f"++{override}"
        if override.startswith(("options.", "protocol.", "dataset.root=", "dataset.expect=", "slurm.more."))
        else override
    )


def _check(config: RunConfig) -> None:
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            raise ConfigError(f"{name}={value}: expected {' or '.join(choices)}")
    for name in POSITIVE:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: expected a whole number of at least 1")
    for name in ("nodes", "tasks_per_node", "cpus_per_task", "minutes"):
        if getattr(config.slurm, name) < 1:
            raise ConfigError(f"slurm.{name}={getattr(config.slurm, name)}: expected a whole number of at least 1")
    if config.dataset.name not in (known := registry.entries("datasets")):
        raise ConfigError(unknown("dataset", config.dataset.name, list(known)))
    if config.dataset.expect is not None and config.dataset.expect < 1:
        raise ConfigError(f"dataset.expect={config.dataset.expect}: expected a whole number of at least 1")
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
            return f"the value of {key} has characters that need quotes; write {quoted(key, value)}"
        base = key.lstrip("+~")
        if base.split(".")[0] not in RunConfig.__dataclass_fields__:
            return unknown("key", base, list(RunConfig.__dataclass_fields__)) + "; see `python -m evals.run --help`"
        if base in ("suite", "scale", "protocol") and value not in (names := group_names(base)):
            return unknown(base, value, names)
        if base.startswith("dataset.") and base not in (
            known := [f"dataset.{k}" for k in DatasetConfig.__dataclass_fields__]
        ):
            return unknown("key", base, known)
    key = getattr(error, "full_key", None)
    return (f"{key}: " if key else "") + (text.splitlines()[0] if text else type(error).__name__)


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

    return sorted(p.name.removesuffix(".yaml") for p in (files("evals.conf") / group).iterdir() if p.suffix == ".yaml")


def as_list(value: Any) -> list[str]:
    """`a`, `[a,b]` or "a,b" to a list of names."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Iterable):
        return [str(v) for v in value]
    return [str(value)]
