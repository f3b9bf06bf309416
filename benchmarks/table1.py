"""Table 1's path at 1024 pixels with networks of published size: where the time of each tokenizer's run goes.

    python benchmarks/table1.py                                   64 images, all of them; on a GPU
    python benchmarks/table1.py --tokenizers lactok-h --images 128 --plot parts.png
    python benchmarks/table1.py --quick                           small networks, 4 images: shows that it works

It is `suite=table1` on synthetic images of 1024 pixels, in bf16 on a GPU; only the weights of the tokenizers are
seeded (the time is the same), and those of Inception-v3 and AlexNet where they are not on this machine. The figures of
such a run mean nothing and are not shown. Each tokenizer is a run of its own in one store, so the first one also looks
at the originals, and the others find that done.

    metrics / decode   seconds of all metrics over seconds of decoding, for the same images; for lactok-h at most 10 %
                       are aimed at on a GPU

Exits 1 when a tokenizer could not be measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
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
from benchmarks.metric_networks import metric_networks
from benchmarks.tokenizer_networks import TOKENIZERS
from evals.config import compose_config
from evals.engine.environment import choose_device, describe_device
from lactok import registry
from lactok.interface import Tokenizer

NAMES = ("seedtok", "titok", "llamagen", "flextok", "lactok-h", "lactok-t")
"""The networks of Table 1: LacTok-H* is one of the size of lactok-h, LacTok-T* of lactok-t."""
WORK = ("wait for images", "encode", "decode", "write", "rest")
"""Parts that are no metric."""


def clamped(tokenizer: Tokenizer) -> Tokenizer:
    """With seeded weights images may be far from [0, 1], which the engine refuses."""
    decode = tokenizer.decode
    tokenizer.decode = lambda codes, seeds: decode(codes, seeds).clamp(0, 1)
    return tokenizer


class Bench:
    """Runs of suite=table1 over one folder of images in one store, each with one tokenizer; a context manager.

    loads: seconds of building each tokenizer. whose: whose weights each of the metrics' networks has.
    """

    def __init__(self, folder: Path, data: Path, side: int, quick: bool, more: Sequence[str] = ()) -> None:
        self.folder, self.data, self.side, self.quick, self.more = folder, data, side, quick, more
        self.loads: dict[str, float] = {}
        self.whose: dict[str, str] = {}
        self._kept: dict[str, Tokenizer] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        self._load = registry.load
        self._stack.enter_context(mock.patch.object(registry, "load", self._seeded))
        self.whose = self._stack.enter_context(metric_networks(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.clear()
        self._stack.close()

    def _seeded(self, group: str, name: str) -> Any:
        """In place of `registry.load`: tokenizers with drawn weights, which serve the warm-up and the run."""
        found = self._load(group, name)
        if group != "tokenizers" or name not in NAMES:
            return found

        def build(cls: type[Tokenizer], options: Any, device: torch.device) -> Tokenizer:
            if name not in self._kept:
                self._kept.clear()
                started = time.perf_counter()
                self._kept[name] = clamped(TOKENIZERS[name](self.quick, device).tokenizer)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                self.loads[name] = time.perf_counter() - started
            return self._kept[name]

        return type(found.__name__, (found,), {"__new__": build, "weights": classmethod(lambda cls, options: ())})

    def run(self, name: str) -> Clock:
        """One tokenizer over all images, after two that start kernels. Raises RuntimeError where it failed."""
        given = [
            "suite=table1", f"tokenizers={name}", "calibration=false", "dataset=folder", f"dataset.root='{self.data}'",
            f"protocol.eval_size={self.side}", f"device={choose_device('auto').type}", *self.more,
        ]  # fmt: skip
        engine(compose_config([*given, "limit=2", f"out='{self.folder / 'warm'}'"]), Clock())
        clock = Clock()
        job = engine(compose_config([*given, f"out='{self.folder / 'out'}'"]), clock)
        if failed := [work.error for work in job.runs if work.status != "ok"]:
            raise RuntimeError(f"{name}: {'; '.join(failed)}")
        return clock


def measure(
    names: list[str], count: int, side: int, quick: bool, more: list[str]
) -> tuple[dict[str, Clock], list[str]]:
    """A clock for each tokenizer, and a line for each that failed."""
    clocks, failed = {}, []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with Bench(folder, synthetic(folder / "images", count, side), side, quick, more) as bench:
            print("weights: tokenizers drawn,", ", ".join(f"{n} {w}" for n, w in bench.whose.items()), flush=True)
            for name in names:
                try:
                    clocks[name] = bench.run(name)
                except RuntimeError as error:
                    failed.append(str(error))
    return clocks, failed


def metrics_share(clock: Clock) -> float:
    """Seconds of all metrics over seconds of decoding."""
    return sum(s for part, s in clock.seconds.items() if part not in WORK) / clock.seconds["decode"]


def show(clocks: dict[str, Clock], count: int) -> None:
    parts = list(dict.fromkeys(part for clock in clocks.values() for part in clock.seconds))
    table = Table("ms an image", *clocks)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in parts:
        table.add_row(part, *(f"{1e3 * clock.seconds.get(part, 0) / count:.1f}" for clock in clocks.values()))
    table.add_section()
    table.add_row("images/s", *(f"{count / sum(clock.seconds.values()):.2f}" for clock in clocks.values()))
    table.add_row("metrics / decode", *(f"{100 * metrics_share(clock):.1f} %" for clock in clocks.values()))
    Console().print(table)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", default=",".join(NAMES), help=f"[{','.join(NAMES)}]")
    parser.add_argument("--images", type=int, default=64, help="[64]")
    parser.add_argument("--side", type=int, default=1024, help="of the images as they are scored, pixels [1024]")
    parser.add_argument("--quick", action="store_true", help="small networks, 4 images of 128 pixels")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the parts as stacked bars")
    parser.add_argument("more", nargs="*", help="further settings of the runs, such as batch_size=4")
    args = parser.parse_args(argv)
    names = args.tokenizers.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"--tokenizers {','.join(unknown)}: expected some of {', '.join(NAMES)}")
    count, side = (4, 128) if args.quick else (args.images, args.side)
    device = choose_device("auto")
    if device.type != "cuda" and not args.quick:
        print("no GPU: at this size an image takes minutes on a CPU; --quick shows that the script works", flush=True)
    more = [*(["precision=bf16"] if device.type == "cuda" else []), *args.more]
    print(f"{count} images of {side} px, {describe_device(device)}, torch {torch.__version__}", flush=True)
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
