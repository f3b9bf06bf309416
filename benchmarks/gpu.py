"""What one GPU gives in a few minutes, in the order of worth, each figure on disk as soon as it exists.

    python benchmarks/gpu.py --minutes 12                     all parts on the CUDA device, into results/gpu/gpu.json
    python benchmarks/gpu.py --minutes 5 --only coding        one part; the file's earlier runs stay
    python benchmarks/gpu.py --quick                          the same in miniature on the CPU, figures mean nothing

Parts, in this order (--only takes their names):

{parts}

Each part has a time box, a share of the minutes that are left; what it leaves goes to the later ones. Whatever fails,
does not fit or finds its box over is named with its reason, and the next part runs. `gpu.json` is written anew by a
rename after each result: it always loads, and holds everything found before a kill. Weights are drawn on the device;
no checkpoint is read and none is written. Shares are of the rate of an 8192^3 matrix product in the same precision.

Exits 2 without a CUDA device, 1 when something could not be measured or a check failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":  # the repository, not this folder, where `tokenizers` is a file and not the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.gpu_session import Record, RunRecord, Session, now
from benchmarks.measuring import Settings
from evals.engine.environment import describe_device

OUT, QUICK_OUT = Path("results/gpu"), Path("runs/gpu-quick")
SECONDS = 0.5
"""How long each figure is timed, at least one call."""
QUICK_MINUTES = 10.0


@dataclass(frozen=True)
class Part:
    """weight: of its time box among the parts still to come; module: of benchmarks/gpu_parts that has `measure`."""

    name: str
    weight: float
    module: str
    about: str

    def measure(self, session: Session) -> None:
        """Imported late, so that a part that can't be imported costs itself alone."""
        call: Callable[[Session], None] = import_module(f"benchmarks.gpu_parts.{self.module}").measure
        gc.freeze()  # what is imported is no garbage: collections between networks take no time for it
        call(session)


PARTS = (
    Part("card", 3, "card", "card, driver, versions, matrix rates, copy bandwidth"),
    Part("correctness", 20, "correctness", "golden cases in fp32 without TF32, tests marked gpu"),
    Part("coding", 42, "coding", "LacTok-H and -T, then FlexTok, TiTok, LlamaGen, SeedTok: eager, compiled, kernels"),
    Part("metrics", 7, "metric_rates", "images/s of each metric at 1024 px, their share of a LacTok-H decode"),
    Part("judges", 5, "judge_rates", "images/s of ImageReward, MPS and HPSv2 on images of 1024 px and their prompts"),
    Part("table1", 13, "table1", "suite=table1 on 32 images of 1024 px, by its parts"),
    Part(
        "training",
        15,
        "training",
        "optimizer steps: stage 1 at 512 and 1024 px, batch 4; stage 2 (Hyper-SD) at 1024 px",
    ),
    Part("generation", 12, "generation", "ids/s of GPT-XL against batch size, recorded, compiled, and by a plain loop"),
)


def run(session: Session, parts: Sequence[Part], seconds: float) -> bool:
    """All parts within so many seconds; whether everything was measured and every check passed."""
    ends = time.monotonic() + seconds
    for number, part in enumerate(parts):
        later = sum(other.weight for other in parts[number:])
        session.run_part(part.name, part.measure, max(0.0, ends - time.monotonic()) * part.weight / later)
    session.record.run.complete = True
    session.record.write()
    return all(part.status == "ok" for part in session.record.run.parts)


def described() -> str:
    return "\n".join(f"    {part.name:<12} {part.about}" for part in PARTS)


def main(argv: Sequence[str]) -> int:
    description = __doc__.replace("{parts}", described())
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help=f"for all parts together [{QUICK_MINUTES:g} with --quick]")
    parser.add_argument(
        "--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART", help="these parts [all]"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder of gpu.json [{OUT}; {QUICK_OUT} with --quick]")
    parser.add_argument("--quick", action="store_true", help="in miniature on the CPU: shows that it works")
    args = parser.parse_args(argv)
    parts = [part for part in PARTS if not args.only or part.name in args.only]
    if not args.quick and not torch.cuda.is_available():
        wanted = "\n".join(f"  {part.name}: {part.about}" for part in parts)
        print(
            f"error: a CUDA device is missing: torch {torch.__version__} sees none here. It would have measured:\n"
            f"{wanted}\nRun this on a machine with a GPU, or add --quick for miniatures on the CPU",
            file=sys.stderr,
        )
        return 2
    if args.minutes is None and not args.quick:
        parser.error("--minutes: how long may all parts take together?")
    device = torch.device("cpu" if args.quick else "cuda")
    minutes = QUICK_MINUTES if args.minutes is None else args.minutes
    precision = "fp32" if args.quick else "bf16"
    settings = Settings(device, precision, compile=False, quick=args.quick, seconds=0.0 if args.quick else SECONDS)
    try:
        found = RunRecord(now(), minutes, args.quick, describe_device(device))
        record = Record(args.out or (QUICK_OUT if args.quick else OUT), found)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    whole = run(Session(settings, record, lambda line: print(line, flush=True)), parts, 60 * minutes)
    print(f"{'all measured' if whole else 'something lacks'}: {record.path}")
    return 0 if whole else 1


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1:]))
