"""The benchmark's command line: `python -m evals.run suite=recon tokenizers=all`. `--help` explains every key."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.config import RunConfig
    from evals.engine.ranks import Ranks
    from evals.engine.run import Finished

# What is logged: with -v also what is done without being asked for, with --quiet errors alone and no progress.
VERBOSITY = {"-v": logging.INFO, "--verbose": logging.INFO, "--quiet": logging.ERROR}


def main(argv: list[str] | None = None) -> int:
    """Run a benchmark; returns the exit status that `--help` explains."""
    argv = sys.argv[1:] if argv is None else argv
    if any(a in ("-h", "--help", "help") for a in argv):
        from evals.cli.help import TEXT

        print(TEXT, end="")
        return 0
    told = [a for a in argv if a in VERBOSITY]
    argv = [a for a in argv if a not in VERBOSITY]
    from evals.config import ConfigError, compose_runs
    from evals.datasets.base import DatasetError
    from evals.engine.job import CHUNK
    from evals.engine.ranks import RankError, join
    from evals.engine.store import StoreError
    from evals.engine.workers import attach, attach_place, started, worker_count
    from evals.streams import log_to_stderr, spell_standard_streams
    from lactok.registry import RegistryError
    from lactok.weights import offline

    spell_standard_streams()
    log_to_stderr(VERBOSITY[told[-1]] if told else logging.WARNING)
    quiet, ranks = "--quiet" in told, None
    try:
        runs = compose_runs(argv)
        if runs[0].launcher == "slurm":
            from evals.slurm import submit

            print(submit(runs[0], argv))
            return 0
        with offline(runs[0].offline):
            ranks = attach() or join()
            if ranks.size > 1 or "WORLD_SIZE" in os.environ:
                return _measure(runs, ranks, argv, quiet)
            with started(worker_count(runs[0], CHUNK), argv) as ranks:
                return _measure(runs, ranks, argv, quiet)
    except (ConfigError, DatasetError, StoreError, RegistryError, RankError) as error:
        if ranks is None or ranks.rank == 0 or attach_place():  # rank 0 says what stopped another one, too
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not attach_place():
            command = shlex.join(["python", "-m", "evals.run", *argv])
            print(f"\nstopped; all finished work is kept, and this resumes:\n  {command}", file=sys.stderr)
        return 130


def _measure(runs: list[RunConfig], ranks: Ranks, argv: list[str], quiet: bool) -> int:
    """The runs in turn, then the paper's table that they belong to; raises as `engine.run` does.

    What all runs lack is reported before the first one begins.
    """
    from evals.engine import run as engine

    parts = {run.dataset.name: ranks.part(run.dataset.name) for run in runs}
    if ranks.rank:
        for run in runs:
            engine.assist(run, parts[run.dataset.name])
        return 0
    try:
        if len(runs) > 1:
            engine.require_inputs(runs)
        status = max([publish(engine.run(run, quiet, parts[run.dataset.name]), argv) for run in runs])
    finally:
        for part in parts.values():  # where one has failed, the ranks that wait for the next ones end, too
            part.end()
    _write_table(runs[0])
    return status


def _write_table(run: RunConfig) -> None:
    """The paper's table from all its runs so far, where the run was of one of its datasets at the paper's scale."""
    from evals.suites.catalog import suites

    if run.scale == "paper" and run.dataset.name in suites()[run.suite].datasets:
        from evals.cli.report import write

        write(run.suite, Path(run.out), run.make_protocol().hash)


def publish(finished: Finished, argv: list[str]) -> int:
    """Write the run's record, tables, report and contact sheet; print the table; return the exit status."""
    from evals.record import FAULTS
    from evals.report.console import print_run
    from evals.report.html import NAME as PAGE
    from evals.report.output import write_run

    paths = write_run(finished, shlex.join(["python", "-m", "evals.run", *argv]))
    print_run(finished.record)
    print("\n".join(str(path) for path in sorted(paths, key=lambda path: path.name == PAGE)))  # to be opened: last
    bad = [row for row in finished.record.rows if row.status in FAULTS]
    if bad:
        names = ", ".join(f"{row.label} ({row.status})" for row in bad)
        print(f"{len(bad)} row(s) not measured, the reasons stand below the table: {names}", file=sys.stderr)
    return 1 if bad or finished.record.missing_metrics else 0


if __name__ == "__main__":
    from lactok.pipes import run_command

    sys.exit(run_command(main))
