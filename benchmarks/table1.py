"""Table 1's path at 1024 pixels with networks of published size: where the time of each tokenizer's run goes.

    python benchmarks/table1.py                                   64 pictures, all of them; on a GPU
    python benchmarks/table1.py --tokenizers lactok-h --pictures 128 --plot parts.png
    python benchmarks/table1.py --quick                           small networks, 4 pictures: shows that it works

It is `suite=table1` on synthetic pictures of 1024 pixels, in bf16 on a GPU; only the weights of the tokenizers are
seeded (the time is the same), and those of Inception-v3 and AlexNet where they are not on this machine. The figures of
such a run mean nothing and are not shown. Each tokenizer is a run of its own in one store, so the first one also looks
at the originals, and the others find that done.

    metrics / decode   seconds of all metrics over seconds of decoding, for the same pictures; for lactok-h at most 10 %
                       are aimed at on a GPU

Exits 1 when a tokenizer could not be measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.engine import Clock, engine, plot
from benchmarks.memory import synthetic
from benchmarks.metrics import inception_file, lpips_file
from benchmarks.tokenizer_networks import TOKENIZERS
from evals.config import compose_config
from evals.engine.environment import choose_device, describe_device
from lactok import registry
from lactok.features import inception, lpips
from lactok.interface import Tokenizer
from lactok.weights import LocalWeights

NAMES = ("seedtok", "titok", "llamagen", "flextok", "lactok-h", "lactok-t")
"""Table 1's; the starred rows are networks of the same size."""
WORK = ("wait for images", "encode", "decode", "write", "rest")
"""Parts that are no metric."""


def clamped(tokenizer: Tokenizer) -> Tokenizer:
    """With seeded weights pictures may be far from [0, 1], which the engine refuses."""
    decode = tokenizer.decode
    tokenizer.decode = lambda codes, seeds: decode(codes, seeds).clamp(0, 1)
    return tokenizer


@contextmanager
def seeded_networks(quick: bool, folder: Path) -> Iterator[dict[str, str]]:
    """Tokenizers by their names, with seeded weights; yields whose weights the metrics' networks have."""
    load = registry.load
    kept: dict[str, Tokenizer] = {}

    def seeded(group: str, name: str) -> Any:
        found = load(group, name)
        if group != "tokenizers" or name not in NAMES:
            return found

        def build(cls: type[Tokenizer], options: Any, device: torch.device) -> Tokenizer:
            if name not in kept:  # seeding billions of weights takes minutes, so they serve both runs
                kept.clear()
                kept[name] = clamped(TOKENIZERS[name](quick, device).tokenizer)
            return kept[name]

        return type(found.__name__, (found,), {"__new__": build, "weights": classmethod(lambda cls, options: ())})

    inception_weights, of_inception = inception_file(folder)
    alexnet, of_alexnet = lpips_file(folder)
    with (
        mock.patch.object(registry, "load", seeded),
        mock.patch.object(inception, "WEIGHTS", LocalWeights(str(inception_weights))),
        mock.patch.dict(lpips.BACKBONES, {"alex": LocalWeights(str(alexnet))}),
    ):
        yield {"Inception-v3": of_inception, "AlexNet": of_alexnet}


def measure(
    names: list[str], count: int, side: int, quick: bool, more: list[str]
) -> tuple[dict[str, Clock], list[str]]:
    """A clock for each tokenizer, and a line for each that failed."""
    clocks, failed = {}, []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = synthetic(folder / "pictures", count, side)
        with seeded_networks(quick, folder) as whose:
            print("weights: tokenizers seeded,", ", ".join(f"{n} {w}" for n, w in whose.items()), flush=True)
            for name in names:
                given = [
                    "suite=table1", f"tokenizers={name}", "calibration=false", "dataset=folder",
                    f"dataset.root='{data}'", f"protocol.eval_size={side}", *more,
                ]  # fmt: skip
                engine(compose_config([*given, "limit=2", f"out='{folder / 'warm'}'"]), Clock())  # kernels, imports
                clock = Clock()
                job = engine(compose_config([*given, f"out='{folder / 'out'}'"]), clock)
                failed += [f"{name}: {work.error}" for work in job.runs if work.status != "ok"]
                if not failed or not failed[-1].startswith(f"{name}:"):
                    clocks[name] = clock
                    print(f"{name} done", file=sys.stderr, flush=True)
    return clocks, failed


def metrics_share(clock: Clock) -> float:
    """Seconds of all metrics over seconds of decoding."""
    return sum(s for part, s in clock.seconds.items() if part not in WORK) / clock.seconds["decode"]


def show(clocks: dict[str, Clock], count: int) -> None:
    parts = list(dict.fromkeys(part for clock in clocks.values() for part in clock.seconds))
    table = Table("ms a picture", *clocks)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in parts:
        table.add_row(part, *(f"{1e3 * clock.seconds.get(part, 0) / count:.1f}" for clock in clocks.values()))
    table.add_section()
    table.add_row("pictures/s", *(f"{count / sum(clock.seconds.values()):.2f}" for clock in clocks.values()))
    table.add_row("metrics / decode", *(f"{100 * metrics_share(clock):.1f} %" for clock in clocks.values()))
    Console().print(table)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", default=",".join(NAMES), help=f"[{','.join(NAMES)}]")
    parser.add_argument("--pictures", type=int, default=64, help="[64]")
    parser.add_argument("--side", type=int, default=1024, help="of the pictures as they are scored, pixels [1024]")
    parser.add_argument("--quick", action="store_true", help="small networks, 4 pictures of 128 pixels")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the parts as stacked bars")
    parser.add_argument("more", nargs="*", help="further settings of the runs, such as batch_size=4")
    args = parser.parse_args(argv)
    names = args.tokenizers.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"--tokenizers {','.join(unknown)}: expected some of {', '.join(NAMES)}")
    count, side = (4, 128) if args.quick else (args.pictures, args.side)
    device = choose_device("auto")
    if device.type != "cuda" and not args.quick:
        print("no GPU: at this size a picture takes minutes on a CPU; --quick shows that the script works", flush=True)
    more = [*(["precision=bf16"] if device.type == "cuda" else []), *args.more]
    print(f"{count} pictures of {side} px, {describe_device(device)}, torch {torch.__version__}", flush=True)
    clocks, failed = measure(names, count, side, args.quick, more)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    if clocks:
        show(clocks, count)
        if args.plot:
            plot(clocks, count, args.plot)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
