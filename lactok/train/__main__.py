"""`python -m lactok.train recipe=NAME data.root=DIR [key=value...]`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lactok.train.chain import Chain
    from lactok.train.config import TrainConfig
    from lactok.train.loop import Outcome
    from lactok.train.recipe import Recipe


def main(arguments: list[str]) -> int:
    """Exit status: 0 done or stop_after_minutes, 1 diverged, 2 wrong settings or data, 130 stopped by a signal."""
    if not arguments or {"--help", "-h"} & set(arguments):
        from lactok.train.help import help_text

        print(help_text())
        return 0 if arguments else 2
    from lactok.registry import RegistryError
    from lactok.train.chain import Chain
    from lactok.train.config import CHAIN, TrainConfigError, compose_config

    try:
        run = Chain(arguments) if f"recipe={CHAIN}" in arguments else compose_config(arguments)
    except (TrainConfigError, RegistryError) as error:
        return _fail(str(error), 2)

    from lactok.data.folder import DataError
    from lactok.files import WriteError
    from lactok.train.loop import TrainingDiverged, train
    from lactok.train.optimizer import OptimizerError
    from lactok.train.run_folder import RunFolderError
    from lactok.train.tokens import TokenExtraction, extract
    from lactok.weights import WeightsError

    try:
        if not isinstance(run, Chain) and issubclass(run[1], TokenExtraction):
            return extract(run[0])
        if isinstance(run, Chain):
            return _dry(run.compose_all()) if run.settings[0].dry_run else _chain(run)
        return _dry([run]) if run[0].dry_run else _one(train(*run))
    except (
        DataError, OptimizerError, RegistryError, RunFolderError, TrainConfigError, WeightsError, WriteError,
    ) as error:  # fmt: skip
        return _fail(str(error), 2)
    except TrainingDiverged as error:
        return _fail(str(error), 1)


def _dry(runs: list[tuple[TrainConfig, type[Recipe]]]) -> int:
    from lactok.train.dry_run import describe

    for config, recipe_class in runs:
        for line in describe(config, recipe_class):
            print(line, flush=True)
        print()
    for line in runs[0][1].described_data(runs[0][0].data):
        print(line)
    return 0


def _one(outcome: Outcome) -> int:
    if outcome.finished:
        print(f"done: {outcome.step} steps; exported {outcome.export}")
        return 0
    return _stopped(f"at step {outcome.step}", outcome.reason)


def _chain(chain: Chain) -> int:
    from lactok.train.chain import Stopped, closing_table

    ended = chain.run()
    if isinstance(ended, Stopped):
        at = f"at step {ended.step} of {ended.part}" if ended.step is not None else f"before {ended.part} was trained"
        return _stopped(at, ended.reason)
    print(closing_table(ended))
    return 0


def _stopped(where: str, reason: str) -> int:
    print(f"stopped {where} ({reason}), saved; the same command resumes")
    return 130 if reason.startswith("SIG") else 0


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    from lactok.pipes import run_command

    sys.exit(run_command(main))
