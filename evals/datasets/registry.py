"""Datasets by name: the classes under the entry-point group `lactok.datasets`."""

from __future__ import annotations

from collections.abc import Iterator

from evals.datasets.base import Dataset, DatasetError, DatasetRequest
from evals.datasets.duplicates import share_clusters
from evals.datasets.metadata import with_metadata
from lactok import registry


def dataset_names() -> list[str]:
    """All names, sorted."""
    return list(registry.entries("datasets"))


def dataset_class(name: str) -> type[Dataset]:
    """The class of a dataset. Raises DatasetError for an unknown name, or a plugin that can't be imported."""
    try:
        cls = registry.load("datasets", name)
    except registry.RegistryError as error:
        raise DatasetError(str(error)) from error
    if not (isinstance(cls, type) and issubclass(cls, Dataset)):
        raise DatasetError(f"dataset {name!r} is {cls!r}: expected a subclass of evals.datasets.base.Dataset")
    return cls


def dataset_classes() -> Iterator[type[Dataset]]:
    """The classes that can be imported, by name; `python -m evals list` names the others."""
    for name in dataset_names():
        try:
            yield dataset_class(name)
        except DatasetError:
            continue


def open_dataset(name: str, request: DatasetRequest, metadata: str | None = None) -> Dataset:
    """The dataset, ready to read, copies of an item in one cluster.

    metadata: a CSV of what is known of its items (`with_metadata`). Raises DatasetError (a setting that the dataset
    does not follow; an unknown name comes with the nearest ones; BadImages lists all bad files).
    """
    cls = dataset_class(name)
    if request.expect is not None and cls.expected is None:
        sized = ", ".join(other.name for other in dataset_classes() if other.expected is not None)
        raise DatasetError(f"dataset.expect={request.expect} is for a part of {sized}; {name} has no number")
    keys = {"cluster": "dataset.cluster", "max_pixels": "dataset.max_pixels", "colour": "protocol.colour"}
    for setting, key in keys.items():
        if (value := getattr(request, setting)) is not None and setting not in cls.settings:
            able = ", ".join(other.name for other in dataset_classes() if setting in other.settings)
            raise DatasetError(f"{key}={value}: dataset={name} does not follow it; these do: {able}")
    dataset = cls.open(request)
    if metadata is not None:
        dataset.items = with_metadata(dataset.items, metadata)
    dataset.items, notes = share_clusters(dataset.items)
    dataset.notes = [*dataset.notes, *notes]
    return dataset
