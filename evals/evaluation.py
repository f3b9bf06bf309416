"""`evals.evaluate`: a run from Python, on names, classes or built tokenizers. The figures are the command line's."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.config import ConfigError, DatasetConfig, RunConfig, as_list, compose_config
from evals.results import Results
from lactok.registry import unknown

if TYPE_CHECKING:
    import torch

    from lactok.interface import Model, Tokenizer

# Keys of the command line that are arguments as they are.
SETTINGS = (
    "suite", "scale", "weights", "features", "round_trips", "limit", "seed", "seeds", "device", "offline", "batch_size",
    "precision", "resident", "save_images", "on_bad_image", "max_refused", "dataset",
)  # fmt: skip


def evaluate(
    tokenizers: Any,
    images: Any = None,
    metrics: str | Sequence[str] = "default",
    protocol: str | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    calibration: bool = False,
    metadata: str | Path | None = None,
    progress: bool = True,
    threads: int | None = None,
    **settings: Any,
) -> Results:
    """Measure tokenizers by reconstruction, in this process.

    tokenizers: one, or a list, of registered names, FILE.py:CLASS, subclasses of Tokenizer and built ones
        (`lactok.load`, or your own); or a dict that gives classes and built ones a label. Built ones are held in eval
        mode meanwhile, classes and built ones are measured at every call: no file says what they are.
    images: a folder (of dataset=NAME, where one is named); or PIL images, arrays or tensors, as
        `lactok.load(...).encode` takes them; None: the photographs that ship, or dataset=NAME.
    metrics, protocol: names as on the command line; protocol: or {"name": NAME, FIELD: value}.
    out: a folder that keeps all work, as the command line's out=; a later call does not do it again. None: nothing is
        kept but the results.
    options: by row name, a plugin's options; a list of values gives a row a value.
    calibration: add the calibration rows. metadata: of a folder of images, a CSV of what tokenizers that ask for it are
        told of each (dataset.metadata). progress: show it. threads: of the CPU, None: as the command line,
        OMP_NUM_THREADS or 1; figures of several may differ in the last digits.
    settings: other keys of the command line: limit, device, seed, seeds, precision, weights, scale, dataset, ...

    Process settings (threads, precision, random states) are as before when it returns. Raises RowsFailed where a row
    could not be measured (its `results` hold the others), ConfigError for arguments, DatasetError for images.
    """
    from evals.engine import run as engine
    from evals.engine.isolation import isolated
    from evals.engine.workers import threads as usual_threads
    from lactok.weights import offline

    config = _composed(protocol, settings)
    names, given = _sorted_out(tokenizers)
    folders: list[tempfile.TemporaryDirectory[str]] = []
    with isolated(), offline(config.offline):
        import torch

        torch.set_num_threads(threads or usual_threads())
        live = _built(given, options or {}, config)
        if live:
            config.device = str(_device_of(live, config.device))
        config = dataclasses.replace(
            config,
            tokenizers=names,
            metrics=as_list(metrics),
            calibration=calibration,
            options={k: dict(v) for k, v in (options or {}).items() if k not in given},
            workers=1,
            out=str(out) if out is not None else _folder(folders),
        )
        if not config.metrics:
            raise ConfigError("metrics is empty, so there would be no figures: name one, a list, or 'default'")
        in_memory = _set_images(config, images, folders, settings.get("dataset") is not None)
        config.dataset.metadata = None if metadata is None else str(metadata)
        with _in_eval_mode(live.values()):
            finished = engine.run(config, quiet=not progress, live=live)
        finished.job._built.clear()  # the metrics' networks
        if in_memory:
            finished.record.config["dataset"]["root"] = None
            finished.record.notes.append("the images were given from Python")
        shown = ", ".join(repr(name) for name in [*names, *live])
        results = Results(finished, f"# from Python: evals.evaluate([{shown}], ...)", folders)
        if out is not None:
            results.save(finished.folder)
    return results.checked()


def _folder(folders: list[tempfile.TemporaryDirectory[str]]) -> str:
    folders.append(tempfile.TemporaryDirectory(prefix="lactok-evaluate-"))
    return folders[-1].name


def _composed(protocol: str | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> RunConfig:
    """The command line's configuration for these settings. Raises ConfigError."""
    for key in settings:
        if key not in SETTINGS:
            raise ConfigError(unknown("setting", key, list(SETTINGS)))
    overrides = [f"{key}={value}" for key, value in settings.items() if value is not None]
    fields = {"name": protocol} if isinstance(protocol, str) else dict(protocol or {})
    if (name := fields.pop("name", None)) is not None:
        overrides.append(f"protocol={name}")
    config = compose_config([*overrides, *(f"protocol.{key}={value}" for key, value in fields.items())])
    if config.task != "reconstruction":
        raise ConfigError(f"suite={config.suite} is of generation: evaluate measures tokenizers by reconstruction")
    return config


def _sorted_out(tokenizers: Any) -> tuple[list[str], dict[str, Any]]:
    """Names, and by label the classes and built tokenizers. Raises ConfigError for anything else."""
    from lactok.interface import Tokenizer

    labelled = isinstance(tokenizers, Mapping)
    single = isinstance(tokenizers, (str, type, Tokenizer)) or hasattr(tokenizers, "tokenizer")
    pairs = list(tokenizers.items()) if labelled else [(None, one) for one in ([tokenizers] if single else tokenizers)]
    names: list[str] = []
    given: dict[str, Any] = {}
    for label, one in pairs:
        if isinstance(one, str):
            if labelled:
                raise ConfigError(f"{label!r}: {one!r} has its name for a label; give names in a list")
            names.append(one)
            continue
        found = getattr(one, "tokenizer", one)  # of lactok.load
        if label is None and isinstance(found, Tokenizer):
            label = getattr(one, "name", None) if one is not found else type(found).__name__
        if not isinstance(found, Tokenizer) and not (isinstance(found, type) and issubclass(found, Tokenizer)):
            kind = found if isinstance(found, type) else type(found)
            lacks = [name for name in ("info", "encode", "decode") if not hasattr(kind, name)]
            raise ConfigError(
                f"tokenizers: {kind.__name__} is no lactok.interface.Tokenizer: derive one from it"
                + (f" that defines {', '.join(lacks)}" if lacks else "")
            )
        label = str(label or getattr(found, "__name__", type(found).__name__))
        if label in given or label in names:
            raise ConfigError(f"two tokenizers are called {label!r}: give them labels, tokenizers={{'a': x, 'b': y}}")
        given[label] = found
    return names, given


def _built(
    given: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]], config: RunConfig
) -> dict[str, Tokenizer]:
    """By label, built tokenizers; classes are built with their options on the run's device."""
    from evals.engine.environment import choose_device
    from evals.engine.rows import check_options
    from lactok.interface import Tokenizer

    live: dict[str, Tokenizer] = {}
    for label, one in given.items():
        if isinstance(one, type) and issubclass(one, Tokenizer):
            usual = dict(one.preset_options.get(config.weights, {}))
            one = one(
                check_options(label, one.Options, usual | dict(options.get(label, {}))), choose_device(config.device)
            )
        elif label in options:
            raise ConfigError(f"options of {label!r}: it is built already; give its class")
        live[label] = one
    if live and config.precision == "bf16":
        raise ConfigError("precision=bf16 changes a model's weights in place: give names or FILE.py:CLASS")
    return live


def _device_of(live: Mapping[str, Tokenizer], wanted: str) -> torch.device:
    """The device of built tokenizers. Raises ConfigError where they are on several, or not on the wanted one."""
    import torch

    devices = {}
    for label, model in live.items():
        parameters = [p for network in model.networks().values() for p in network.parameters()]
        found = parameters[0].device if parameters else getattr(model, "device", None)
        devices[label] = torch.device(found if found is not None else "cpu")
    kinds = set(devices.values())
    if len(kinds) > 1 or (wanted != "auto" and torch.device(wanted).type != next(iter(kinds)).type):
        seen = ", ".join(f"{label} on {device}" for label, device in devices.items())
        raise ConfigError(f"device={wanted}: the built tokenizers are {seen}; move them to one device")
    return kinds.pop()


def _set_images(
    config: RunConfig, images: Any, folders: list[tempfile.TemporaryDirectory[str]], named: bool = False
) -> bool:
    """Let the run read these images; True where they were given from memory. Raises ConfigError.

    named: whether a data set is named, too, whose folder `images` then is.
    """
    if images is None:
        return False
    if isinstance(images, (str, Path)):
        if named:
            config.dataset.root = str(images)
        else:
            config.dataset = DatasetConfig("folder", root=str(images))
        return False
    if named:
        raise ConfigError(f"images are given, and dataset={config.dataset.name}: expected one of them, or a folder")
    from PIL import Image

    from lactok.images.arrays import pixels, separate

    folder = Path(_folder(folders))
    try:
        for number, image in enumerate(separate(images)):
            Image.fromarray(pixels(image)).save(folder / f"{number:06}.png", compress_level=1)
    except ValueError as error:
        raise ConfigError(f"images: {error}") from error
    config.dataset = DatasetConfig("folder", root=str(folder))
    return True


@contextlib.contextmanager
def _in_eval_mode(models: Iterator[Model] | Any) -> Iterator[None]:
    """Every network of these models in eval mode, and each of its modules as it was before when the block ends."""
    training = [m for model in models for net in model.networks().values() for m in net.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
