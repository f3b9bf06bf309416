"""`python -m lactok.train recipe=NAME data.root=DIR [key=value...]`."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Exit status: 0 done or stop_after_minutes, 1 diverged, 2 wrong settings or data, 130 stopped by a signal."""
    if not arguments or {"--help", "-h"} & set(arguments):
        from lactok.train.help import help_text

        print(help_text())
        return 0 if arguments else 2
    from lactok.registry import RegistryError
    from lactok.train.config import TrainConfigError, compose_config

    try:
        config, recipe_class = compose_config(arguments)
    except (TrainConfigError, RegistryError) as error:
        return _fail(str(error), 2)

    from lactok.data.pictures import DataError
    from lactok.train.loop import TrainingDiverged, train
    from lactok.train.run_folder import RunFolderError
    from lactok.weights import WeightsError

    try:
        outcome = train(config, recipe_class)
    except (DataError, RunFolderError, WeightsError) as error:
        return _fail(str(error), 2)
    except TrainingDiverged as error:
        return _fail(str(error), 1)
    if outcome.finished:
        print(f"done: {outcome.step} steps; exported {outcome.export}")
        return 0
    print(f"stopped at step {outcome.step} ({outcome.reason}), saved; the same command goes on")
    return 130 if outcome.reason.startswith("SIG") else 0


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
