"""What a paper-scale run lacks, data and weights, told at once before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evals.config import ConfigError, RunConfig
from evals.datasets.base import BadPictures, Dataset, DatasetError
from evals.datasets.registry import open_dataset
from evals.engine.isolation import isolated
from evals.engine.measures import metric_names
from evals.engine.rows import CALIBRATION_FIRST, CALIBRATION_LAST, Row
from evals.metrics.registry import METRICS
from lactok.weights import HubWeights, MissingWeights, WeightsError, WeightsSource, locate


class MissingInputs(ConfigError):
    """Nothing can be measured; the message lists the dataset and every checkpoint that is lacking."""


def open_inputs(config: RunConfig, rows: Sequence[Row], cache_dir: Path) -> Dataset:
    """The run's dataset, ready to read.

    At scale=paper, where the dataset or the weights of all tokenizers are lacking, raises MissingInputs with all that
    is (nothing is downloaded for a dataset that is not here). Where some tokenizers can be measured the run goes on,
    and the others are rows that say what they lack. At scale=mini raises DatasetError.
    """
    dataset, lacking = None, []
    try:
        dataset = open_dataset(
            config.dataset.name,
            root=config.dataset.root,
            limit=config.limit,
            on_bad_image=config.on_bad_image,
            cache_dir=cache_dir,
            expect=config.dataset.expect,
        )
    except DatasetError as error:
        if config.scale != "paper" or isinstance(error, BadPictures):
            raise
        lacking.append(f"dataset {config.dataset.name}: {error}")
    if config.scale == "paper":
        tokenizers = [row for row in rows if row.name not in (*CALIBRATION_FIRST, *CALIBRATION_LAST)]
        missing = {row.label: found for row in tokenizers if (found := _of_row(row, download=dataset is not None))}
        if dataset is None or (tokenizers and len(missing) == len(tokenizers)):
            for label, found in missing.items():
                lacking += [f"tokenizer {label}: {line}" for line in _told(found, label)]
            lacking += _of_metrics(config)
            raise MissingInputs(_message(config, lacking, [r.name for r in tokenizers if r.label not in missing]))
    return dataset


def _of_row(row: Row, download: bool) -> list[tuple[WeightsSource, str]]:
    """The checkpoints that a row lacks, each with why; what is wrong otherwise is told by the row itself."""
    if row.cls is None:
        return []
    try:
        with isolated():
            sources = row.cls.weights(row.options)
    except Exception:  # a plugin may fail in any way
        return []
    return _missing(sources, download)


def _of_metrics(config: RunConfig) -> list[str]:
    lines: dict[str, str] = {}
    for name in metric_names(config.metrics, config.features):
        for line in _told(_missing(METRICS[name].weights(), download=False), name):
            lines.setdefault(line, name)
    return [f"metric {name}: {line}" for line, name in lines.items()]


def _missing(sources: Sequence[WeightsSource], download: bool) -> list[tuple[WeightsSource, str]]:
    found = []
    for source in sources:
        try:
            locate(source, download)
        except MissingWeights as error:
            found.append((source, str(error)))
        except WeightsError:  # it is here, and damaged
            pass
    return found


def _told(missing: Sequence[tuple[WeightsSource, str]], name: str) -> list[str]:
    """A line a file; one for all files of a hub repository."""
    lines: dict[str, list[str]] = {}
    hub: dict[str, list[HubWeights]] = {}
    for source, message in missing:
        if isinstance(source, HubWeights):
            hub.setdefault(source.repo, []).append(source)
            lines.setdefault(source.repo, []).append(message)
        else:
            lines[message] = [message]
    told = []
    for key, messages in lines.items():
        if len(messages) == 1:
            told.append(messages[0].replace("options.NAME.", f"options.{name.split('[')[0]}."))
        else:
            first = hub[key][0]
            names = " ".join(source.filename for source in hub[key])
            revision = f" --revision {first.revision}" if first.revision else ""
            told.append(
                f"{len(messages)} files of hub repository {key} are not here: `hf download {key} {names}{revision}` "
                "on a machine with network, and set HF_HUB_CACHE to that cache"
            )
    return told


def _message(config: RunConfig, lacking: Sequence[str], here: Sequence[str]) -> str:
    listed = "".join(f"\n  {place}. {line}" for place, line in enumerate(lacking, start=1))
    rest = ", ".join(dict.fromkeys(here)) or "none"
    return (
        f"suite={config.suite} scale=paper lacks {len(lacking)}:{listed}\n"
        f"Tokenizers whose weights are here: {rest}. `python -m evals list` names other ways to give weights."
    )
