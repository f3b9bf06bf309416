"""From a run's settings to its task: which protocol it has, and the task's own parameters."""

from __future__ import annotations

from evals.config import ConfigError, RunConfig
from evals.datasets.base import Dataset, ImageDataset, PromptDataset
from evals.tasks.base import Task
from evals.tasks.generation import Generation
from evals.tasks.protocol import GenerationProtocol, ReconstructionProtocol
from evals.tasks.reconstruction import Reconstruction

TASKS: dict[str, type[Task]] = {task.name: task for task in (Reconstruction, Generation)}


def task_class(config: RunConfig) -> type[Task]:
    """The class of the run's task."""
    return TASKS[config.task]


def make_task(config: RunConfig, dataset: Dataset) -> Task:
    """The task of the run. Raises ConfigError where it can't run on this kind of dataset, or for a bad protocol."""
    protocol = config.make_protocol()
    if isinstance(protocol, GenerationProtocol):
        if not isinstance(dataset, PromptDataset):
            raise ConfigError(f"dataset={config.dataset.name} has no prompts, which suite={config.suite} needs")
        return Generation(dataset, protocol)
    if not isinstance(dataset, ImageDataset):
        raise ConfigError(f"dataset={config.dataset.name} has no images, which suite={config.suite} needs")
    assert isinstance(protocol, ReconstructionProtocol)
    return Reconstruction(dataset, protocol, config.round_trips)
