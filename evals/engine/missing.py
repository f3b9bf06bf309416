"""What a paper-scale run lacks, data and weights, reported at once before any work is done."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from evals.config import ConfigError, RunConfig
from evals.datasets.base import BadImages, Dataset, DatasetError, DatasetRequest
from evals.datasets.registry import open_dataset
from evals.engine.environment import why_no_gpu
from evals.engine.isolation import isolated
from evals.engine.rows import Row, named
from evals.metrics.plan import metric_classes
from evals.tasks.protocol import ReconstructionProtocol
from lactok.weights import MissingFile, WeightsError, WeightsSource, missing_files, told


class MissingInputs(ConfigError):
    """Nothing can be measured; the message lists the dataset and every checkpoint that is missing."""


def open_all(configs: Sequence[RunConfig], rows: Sequence[Row], cache_dir: Path) -> list[Dataset]:
    """The datasets of several runs that differ in nothing else, ready to read.

    At scale=paper, where a dataset or the weights of all models are missing, raises MissingInputs with all that is
    (nothing is downloaded for a dataset that is not here). Where some models can be measured the run goes on, and the
    others are rows that say what they lack. At scale=mini raises DatasetError.
    """
    config = configs[0]
    datasets: list[Dataset] = []
    missing: list[str] = []
    for one in configs:
        try:
            datasets.append(_open(one, cache_dir))
        except DatasetError as error:
            if one.scale != "paper" or isinstance(error, BadImages):
                raise
            missing.append(f"dataset {one.dataset.name}: {error}")
    if config.scale == "paper":
        if config.device == "auto" and (reason := why_no_gpu()):
            missing.append(f"a GPU, which scale=paper needs: {reason}; device=cpu runs it on the CPU, for weeks")
        models = [row for row in rows if row.cls is None or row.cls.calibration is None]
        without = {row.label: found for row in models if (found := _of_row(row, download=not missing))}
        if missing or (models and len(without) == len(models)):
            for label, found in without.items():  # rows that differ in other options lack the same
                name = label.split("[")[0]
                missing += [f"model {name}: {named(line, label)}" for line in told(found)]
            missing = list(dict.fromkeys(missing))
            missing += _of_metrics(configs)
            here = [row.name for row in models if row.label not in without]
            raise MissingInputs(_message(configs, missing, here))
    return datasets


def _open(config: RunConfig, cache_dir: Path) -> Dataset:
    dataset = config.dataset
    stop_or_skip: Literal["stop", "skip"] = "skip" if config.on_bad_image == "skip" else "stop"
    protocol = config.make_protocol()
    request = DatasetRequest(
        cache_dir,
        dataset.root,
        config.limit,
        stop_or_skip,
        dataset.expect,
        dataset.cluster,
        dataset.max_pixels,
        "srgb" if isinstance(protocol, ReconstructionProtocol) and protocol.colour == "srgb" else None,
        protocol.eval_size if isinstance(protocol, ReconstructionProtocol) else None,
    )
    return open_dataset(dataset.name, request, dataset.metadata)


def _of_row(row: Row, download: bool) -> list[MissingFile]:
    """The checkpoints that a row lacks, each with why; what is wrong otherwise is told by the row itself."""
    if row.cls is None or row.live is not None:
        return []
    try:
        with isolated():
            sources = row.cls.weights(row.options)
    except Exception:  # a plugin may fail in any way
        return []
    return _missing(sources, download)


def _of_metrics(configs: Sequence[RunConfig]) -> list[str]:
    lines: dict[str, str] = {}
    for config in configs:
        protocol = config.make_protocol()
        for name, cls in metric_classes(config.metrics, config.default_metrics).items():
            try:
                cls.backend(protocol.subset(*(field for field in cls.protocol_fields if hasattr(protocol, field))))
            except WeightsError as error:
                lines.setdefault(str(error), name)
            for line in told(_missing(cls.weights(), download=False)):
                lines.setdefault(line, name)
    return [f"metric {name}: {line}" for line, name in lines.items()]


def _missing(sources: Sequence[WeightsSource], download: bool) -> list[MissingFile]:
    found = []
    for source in sources:
        with contextlib.suppress(WeightsError):  # it is here, and damaged
            found += missing_files([source], download)
    return found


def _message(configs: Sequence[RunConfig], lacking: Sequence[str], here: Sequence[str]) -> str:
    listed = "".join(f"\n  {place}. {line}" for place, line in enumerate(lacking, start=1))
    rest = ", ".join(dict.fromkeys(here)) or "none"
    roots = " ".join(f"roots.{config.dataset.name}=DIR" for config in configs)
    return (
        f"suite={configs[0].suite} scale=paper lacks {len(lacking)}:{listed}\n"
        f"Models whose weights are here: {rest}. `python -m evals list` names other ways to give weights."
        + (f"\nThe folders of all its datasets in one command: {roots}" if len(configs) > 1 else "")
    )
