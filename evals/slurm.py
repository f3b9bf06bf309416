"""`launcher=slurm`: the same command as a job of a SLURM cluster, one process a GPU, through submitit."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from evals.config import ConfigError, RunConfig


def submit(config: RunConfig, argv: list[str]) -> str:
    """Submit the run and return what to tell the user: the job's number and where it writes.

    Raises ConfigError where submitit is not installed or the cluster takes no jobs from here.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError as error:
        raise ConfigError("launcher=slurm needs submitit: `pip install 'lactok[slurm]'`") from error
    settings, folder = config.slurm, Path(config.out).absolute() / "slurm"
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=settings.cluster)
        executor.update_parameters(
            name="lactok",
            nodes=settings.nodes,
            tasks_per_node=settings.tasks_per_node,
            gpus_per_node=settings.gpus_per_node,
            cpus_per_task=settings.cpus_per_task,
            timeout_min=settings.minutes,
            slurm_srun_args=["--kill-on-bad-exit=1"],  # a lost process ends the others, which would wait for it
            slurm_additional_parameters=dict(settings.more),
        )
        job = executor.submit(run_rank, _own(argv), os.getcwd())
    except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
        raise ConfigError(f"slurm.cluster={settings.cluster} takes no job from here: {error}") from error
    command = shlex.join(["python", "-m", "evals.run", *argv])
    return (
        f"submitted job {job.job_id}: {settings.nodes} node(s) of {settings.tasks_per_node} process(es); "
        f"logs in {folder / job.job_id}\nwhen it is cut, the same command goes on from there:\n  {command}"
    )


def _own(argv: list[str]) -> list[str]:
    """The overrides that concern the run and not its submission."""
    return [a for a in argv if not a.lstrip("+").startswith(("launcher=", "slurm."))]


def run_rank(argv: list[str], folder: str) -> int:
    """What each process of the job does. Raises RuntimeError for an exit status above 1, so that SLURM sees it."""
    from submitit.helpers import TorchDistributedEnvironment

    from evals.run import main

    TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    os.chdir(folder)
    status = main(argv)
    if status > 1:
        raise RuntimeError(f"evals.run ended with status {status}; its message is above")
    return status
