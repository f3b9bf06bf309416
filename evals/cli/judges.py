"""`python -m evals judges convert-mps FILE`: the released checkpoint of MPS as a file that can be read without trust.

FILE is `MPS_overall_checkpoint.pth`, a network that was pickled whole. Nothing in it is run: its tensors alone are
read, compared with the network's names and shapes, and saved as safetensors where `metrics=[mps]` looks for them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """The command. Returns 0 when the file was converted, 1 when it can't be."""
    parser = argparse.ArgumentParser(prog="python -m evals judges", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    converting = commands.add_parser("convert-mps", help="save the tensors of the released MPS as safetensors")
    converting.add_argument("file", metavar="FILE", type=Path, help="the released checkpoint")
    converting.add_argument("--out", metavar="FILE", type=Path, help="where to save [where metrics=[mps] looks]")
    args = parser.parse_args(argv)

    from evals.metrics.judges.mps import convert
    from lactok.files import WriteError
    from lactok.weights import WeightsError

    try:
        print(convert(args.file, args.out))
    except (WeightsError, WriteError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
