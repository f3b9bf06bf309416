"""The benchmark's command line: `python -m evals.run suite=recon tokenizers=all`. `--help` explains every key."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.suites.recon import Finished


def main(argv: list[str] | None = None) -> int:
    """Run a benchmark; returns the exit status that `--help` explains."""
    argv = sys.argv[1:] if argv is None else argv
    if any(a in ("-h", "--help", "help") for a in argv):
        from evals.cli.help import TEXT

        print(TEXT, end="")
        return 0
    from evals.config import ConfigError, compose_config
    from evals.datasets.base import DatasetError
    from evals.engine.ranks import RankError, join
    from evals.store import StoreError
    from evals.streams import spell_standard_streams
    from lactok.registry import RegistryError

    spell_standard_streams()
    try:
        config = compose_config(argv)
        if config.launcher == "slurm":
            from evals.slurm import submit

            print(submit(config, argv))
            return 0
        from evals.suites import recon

        ranks = join()
        if ranks.rank:
            recon.assist(config, ranks)
            return 0
        return publish(recon.run(config, ranks=ranks), argv)
    except (ConfigError, DatasetError, StoreError, RegistryError, RankError) as error:
        if os.environ.get("RANK", "0") == "0":  # rank 0 tells what stopped another one, too
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "evals.run", *argv])
        print(f"\nstopped; all finished work is kept, and this goes on from there:\n  {command}", file=sys.stderr)
        return 130


def publish(finished: Finished, argv: list[str]) -> int:
    """Write the run's record, tables, report and contact sheet; print the table; return the exit status."""
    from evals.report.console import print_run
    from evals.suites.output import write_run

    paths = write_run(finished, shlex.join(["python", "-m", "evals.run", *argv]))
    print_run(finished.record)
    print("\n".join(str(path) for path in paths))
    bad = [row for row in finished.record.rows if row.status != "ok"]
    if bad:
        names = ", ".join(f"{row.label} ({row.status})" for row in bad)
        print(f"{len(bad)} row(s) not measured, the reasons stand below the table: {names}", file=sys.stderr)
    return 1 if bad or finished.record.missing_metrics else 0


if __name__ == "__main__":
    sys.exit(main())
