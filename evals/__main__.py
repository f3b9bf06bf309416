"""`python -m evals COMMAND`, the commands of COMMANDS; `run` is the same as `python -m evals.run`."""

from __future__ import annotations

import sys
from importlib import import_module

from evals.streams import spell_standard_streams

COMMANDS = {
    "run": ("evals.run", "measure tokenizers: python -m evals run suite=recon tokenizers=all"),
    "score": ("evals.cli.score", "images that exist against references or prompts: score references=DIR images=DIR"),
    "export": ("evals.cli.export", "a run's images, tokens and per-image figures as files: export RUN out=DIR"),
    "runs": ("evals.cli.runs", "finished runs and their store: runs list, name, merge, prune"),
    "list": ("evals.cli.list", "tokenizers, datasets, suites and metrics: what each needs and whether it is here"),
    "selftest": ("evals.cli.selftest", "check a tokenizer before an expensive run: selftest NAME, or FILE.py:CLASS"),
    "data": ("evals.cli.data", "the paper's datasets: data list, data get NAME, data verify NAME, data make-flux"),
    "check": (
        "evals.cli.check",
        "re-run a small subset and compare with committed figures: check results/mini/recon.json",
    ),
    "compare": ("evals.cli.compare", "paired tests between two tokenizers of one run or of two: compare RUN_A RUN_B"),
    "power": ("evals.cli.power", "how many images or prompts tell a given difference: power RUN row=A,B"),
    "report": ("evals.cli.report", "a table of the paper from the newest runs that fit each other: report table1"),
    "results": (
        "evals.cli.results",
        "docs/results.md from the summaries that are committed: results > docs/results.md",
    ),
    "lint-paper": ("evals.cli.lint_paper", "where the paper disagrees with itself or its release, computed anew"),
    "judges": (
        "evals.cli.judges",
        "agreement with people, failures of a run, convert-mps FILE, the published packages: judges install mmdet",
    ),
    "conformance": ("evals.cli.conformance", "run ports on golden cases: conformance FOLDER..."),
}


def main(argv: list[str] | None = None) -> int:
    """Dispatch to a command; each has its own --help."""
    argv = sys.argv[1:] if argv is None else argv
    spell_standard_streams()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: python -m evals COMMAND [...]\n")
        print("\n".join(f"  {name:<12} {summary}" for name, (_, summary) in COMMANDS.items()))
        print("\n`python -m evals COMMAND --help` tells more.")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        from lactok.registry import unknown

        print(f"error: {unknown('command', argv[0], list(COMMANDS))}", file=sys.stderr)
        return 2
    return import_module(COMMANDS[argv[0]][0]).main(argv[1:])


if __name__ == "__main__":
    from lactok.pipes import run_command

    sys.exit(run_command(main))
