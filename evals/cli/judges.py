"""`python -m evals judges`: what concerns judges apart from a run.

agreement FOLDER    how a judge's verdicts agree with people's
failures RUN        the images that GenEval judged wrong, with its reasons
convert-mps FILE    the released checkpoint of MPS as a file that can be read without trust
install PACKAGE     the published package of a judge, for runs with judges.backend=original
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evals.cli.agreement import DESCRIPTION, METADATA
from evals.cli.arguments import as_options
from evals.cli.failures import DESCRIPTION as FAILURES
from evals.cli.failures import MOST

CONVERT = """\
FILE is MPS_overall_checkpoint.pth, a network that was pickled whole. Nothing in it is run: its tensors alone are read,
compared with the network's names and shapes, and saved as safetensors where metrics=[mps] looks for them. Exit status:
0 converted, 1 it can't be.
"""

INSTALL = """\
Makes a virtual environment below ~/.cache/lactok/judges (or XDG_CACHE_HOME), apart from this one, with versions that
are known to work together, and imports them once. Nothing is compiled for mmdet: a placeholder stands for mmcv's
operators. torch is the one that is installed here. A call that was stopped goes on where it was; one on a complete
environment does nothing. Exit status: 0 complete, 1 it can't be made.

    python -m evals judges install mmdet          GenEval's detector: mmdetection 3.3.0
    python -m evals judges install image-reward   ImageReward: image-reward 1.5
    python -m evals.run suite=geneval scale=paper judges.backend=original
"""


def main(argv: list[str]) -> int:
    """The command's exit status: see the texts of its parts."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m evals judges", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    agreement = commands.add_parser("agreement", help="with people", description=DESCRIPTION, formatter_class=raw)
    agreement.add_argument("folder", type=Path, metavar="FOLDER", help=f"holds annotations_MODEL.csv and {METADATA}")
    agreement.add_argument(
        "--detections",
        action="append",
        default=[],
        metavar="MODEL=FILE",
        help="stored detections or results of a model",
    )
    failing = commands.add_parser("failures", help="a page of images", description=FAILURES, formatter_class=raw)
    failing.add_argument("run", type=Path, metavar="RUN")
    failing.add_argument("--row", nargs="+", metavar="NAME", help="rows of the page [all models]")
    failing.add_argument("--out", type=Path, metavar="FILE", help="the page [RUN/failures.html]")
    failing.add_argument("--most", type=int, default=MOST, metavar="N", help=f"images of a row [{MOST}]")
    converting = commands.add_parser("convert-mps", help="to safetensors", description=CONVERT, formatter_class=raw)
    converting.add_argument("file", metavar="FILE", type=Path, help="the released checkpoint")
    converting.add_argument("--out", metavar="FILE", type=Path, help="where to save [where metrics=[mps] looks]")
    installing = commands.add_parser("install", help="a package", description=INSTALL, formatter_class=raw)
    installing.add_argument("package", choices=["image-reward", "mmdet"], help="whose environment to make")
    installing.add_argument("--dir", type=Path, metavar="DIR", help="in DIR; a link leads there [below ~/.cache]")
    try:
        args = parser.parse_args(as_options(argv, ("out", "most", "detections"), ("row",)))
    except SystemExit as done:
        return int(done.code or 0)
    if args.command == "install":
        return _install(args.package, args.dir)
    if args.command == "failures":
        return _failures(args.run, args.row, args.out, args.most)
    return _agreement(args.folder, args.detections) if args.command == "agreement" else _convert(args.file, args.out)


def _agreement(folder: Path, detections: list[str]) -> int:
    from evals.cli.agreement import report
    from evals.metrics.judges.geneval.agreement import AnnotationError

    try:
        return report(folder, detections)
    except (AnnotationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _failures(run: Path, rows: list[str] | None, out: Path | None, most: int) -> int:
    from evals.cli.compare import NotComparable
    from evals.cli.failures import write
    from evals.config import ConfigError
    from evals.datasets.base import DatasetError
    from evals.engine.reopen import NotReopened
    from evals.engine.store import StoreError
    from evals.record import RecordError
    from lactok.files import WriteError
    from lactok.registry import RegistryError
    from lactok.weights import WeightsError

    try:
        print(write(run, rows, out, most))
    except (NotComparable, RecordError, ConfigError, DatasetError, StoreError, RegistryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NotReopened, WeightsError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _convert(file: Path, out: Path | None) -> int:
    from evals.metrics.judges.mps import convert
    from lactok.files import WriteError
    from lactok.weights import WeightsError

    try:
        print(convert(file, out))
    except (WeightsError, WriteError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _install(package: str, folder: Path | None) -> int:
    from evals.metrics.judges.original.environments import ENVIRONMENTS, InstallError, install
    from evals.metrics.judges.original.process import OriginalProcess
    from lactok.files import WriteError

    def versions(name: str, python: Path) -> dict[str, str]:
        return OriginalProcess(name, python).versions()

    try:
        print(install(ENVIRONMENTS[package], folder, versions))
    except (InstallError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is installed is kept, and the same command goes on", file=sys.stderr)
        return 130
    return 0
