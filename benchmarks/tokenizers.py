"""How fast each tokenizer encodes and decodes at its published size, and how much of the device's arithmetic it uses.

    python benchmarks/tokenizers.py                                  all; the GPU where there is one, else the CPU
    python benchmarks/tokenizers.py --tokenizers llamagen,titok      these two
    python benchmarks/tokenizers.py --tokenizers flextok --parts encode --json flextok.json
    python benchmarks/tokenizers.py --quick                          miniatures, seconds: shows that it works

Weights are seeded (the time is the same), pictures are noise of the native size, decoders run with their published
steps and guidance. What is timed is the adapter that the benchmark's own runs call.

CPU: one picture, fp32, not compiled, as many threads as torch takes. GPU: bf16 autocast, the batch at which one more
doubling no longer raises the rate (found without torch.compile), then compiled.

    images/s      of that batch, median over calls
    FLOPs/image   matrix products, convolutions and attention of one picture, by torch's counter; a multiply-add is two
    matrix rate   FLOPs/s of one large square matrix product in the same precision on the same device: the fastest
                  call, before and after each tokenizer (a share over 100 % says that the machine did other work)
    share         images/s x FLOPs/image / matrix rate
    peak memory   torch.cuda.max_memory_allocated of a call, all weights of the tokenizer in it: of one picture, not
                  compiled, and of the batch as it is timed; none on the CPU, where torch keeps no such count

On the CPU a call of a large decoder takes minutes: one warms up and counts, one at least is timed.
Exits 1 when a tokenizer that was asked for could not be measured; what and why is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the repository, not this folder, where `tokenizers` is this file and not the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from rich.console import Console
from rich.table import Column, Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tokenizer_networks import TOKENIZERS, Subject
from evals.engine.environment import choose_device, describe_device, package_versions, precision
from lactok.interface import Latents, Tokens
from lactok.weights import MissingWeights

PARTS = ("encode", "decode")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
RISE = 1.03  # a doubling that gains less than this ends the search for the batch
LARGEST_BATCH = 1024
MATRIX = {"cuda": 16384, "cpu": 4096}  # side of the matrix product
MOST_CALLS = 50  # timed, however short


@dataclass(frozen=True)
class Settings:
    """What all rows share. seconds: how long each part is timed, at least one call."""

    device: torch.device
    precision: str
    compile: bool
    quick: bool
    seconds: float


@dataclass(frozen=True)
class Row:
    """One part of one tokenizer.

    side: of the pictures that it encodes; calls: how many were timed; search: why no larger batch was taken, empty on
    the CPU, which gets one picture; note: the subject's.
    peak_bytes, peak_bytes_one: most device memory allocated at once in a call of the batch as it was timed, and in one
    of a single picture, not compiled; None on the CPU.
    """

    tokenizer: str
    part: str
    side: int
    batch: int
    calls: int
    images_per_second: float
    flops_per_image: int
    share: float
    peak_bytes: int | None
    peak_bytes_one: int | None
    search: str
    note: str


def call_times(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each call until `seconds` have passed, at least one; who wants to warm up calls before."""
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < MOST_CALLS):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return times


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Most memory of the device allocated at once in one call, what was there before included; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def matrix_rate(settings: Settings) -> float:
    """FLOPs/s of a square matrix product: what the device gives at best, in practice."""
    side = 512 if settings.quick else MATRIX[settings.device.type]
    a, b = (torch.randn(side, side, device=settings.device, dtype=DTYPES[settings.precision]) for _ in range(2))
    with precision(settings.precision, settings.device):
        call_times(lambda: a @ b, settings.device, 0)
        return 2 * side**3 / min(call_times(lambda: a @ b, settings.device, settings.seconds))


class Work:
    """The calls of one subject; inputs are made once a batch size."""

    def __init__(self, subject: Subject, settings: Settings) -> None:
        self.subject, self.settings = subject, settings
        size = 1, 3, subject.side, subject.side
        self.image = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(settings.device)
        self._codes: Tokens | Latents | None = None

    def call(self, part: str, batch: int, numbers: str | None = None) -> Callable[[], object]:
        """A call of `part` on `batch` pictures, in the settings' precision where no other is named."""
        tokenizer = self.subject.tokenizer
        if part == "encode":
            images = self.image.repeat(batch, 1, 1, 1)
            run = lambda: tokenizer.encode(images)  # noqa: E731
        else:
            if self._codes is None:
                self._codes = tokenizer.encode(self.image)
            codes, seeds = type(self._codes).cat([self._codes] * batch), list(range(batch))
            run = lambda: tokenizer.decode(codes, seeds)  # noqa: E731

        def within() -> object:
            with precision(numbers or self.settings.precision, self.settings.device):
                return run()

        return within

    def flops(self, part: str) -> int:
        """Of one picture, counted in float32: the counter takes products apart, past what autocast does to them."""
        call = self.call(part, 1, "fp32")
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    def best_batch(self, part: str) -> tuple[int, str]:
        """The batch after which doubling no longer pays, and why the search ended. Not compiled: it would take long."""
        best, rate, batch = 1, 0.0, 1
        while batch <= LARGEST_BATCH:
            try:
                call = self.call(part, batch)
                call_times(call, self.settings.device, 0)
                times = call_times(call, self.settings.device, self.settings.seconds)
            except RuntimeError as error:  # of memory, or of a kernel's largest tensor
                if batch == 1:
                    raise
                return best, f"{batch} does not fit: {str(error).splitlines()[0]}"
            finally:
                call = None
                if self.settings.device.type == "cuda":
                    torch.cuda.empty_cache()
            seen = batch / statistics.median(times)
            if seen < RISE * rate:
                return best, f"{batch} gives {seen:.4g} images/s, {best} gives {rate:.4g}, not compiled"
            best, rate, batch = batch, seen, 2 * batch
        return best, f"{LARGEST_BATCH} is the largest that is tried"


def measure(name: str, parts: Sequence[str], settings: Settings, rate: float) -> list[Row]:
    """Both parts of one tokenizer. Raises MissingWeights, or torch's OutOfMemoryError for a single picture."""
    subject = TOKENIZERS[name](settings.quick, settings.device)
    work = Work(subject, settings)
    flops = {part: work.flops(part) for part in parts}
    search = settings.device.type == "cuda"
    batches = {part: work.best_batch(part) if search else (1, "") for part in parts}
    alone = {part: peak_bytes(work.call(part, 1), settings.device) for part in parts}
    if settings.compile:
        torch._dynamo.reset()  # what other tokenizers compiled counts against the limit of one function
        for network in subject.networks:
            network.compile(dynamic=False)
    rows = []
    for part in parts:
        batch, why = batches[part]
        call = work.call(part, batch)
        if search or settings.compile or settings.precision != "fp32":  # else the count was the warm-up
            call_times(call, settings.device, 0)
        times = call_times(call, settings.device, settings.seconds)
        peaks = peak_bytes(call, settings.device), alone[part]
        speed = batch / statistics.median(times)
        share = speed * flops[part] / rate
        counts = subject.side, batch, len(times)
        rows.append(Row(name, part, *counts, speed, flops[part], share, *peaks, why, subject.note))
    return rows


# --- What is printed -------------------------------------------------------------------------------------------------


def machine(settings: Settings, rate: float) -> dict[str, object]:
    return {
        "device": describe_device(settings.device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "packages": package_versions(),
        "precision": settings.precision,
        "compiled": settings.compile,
        "quick": settings.quick,
        "matrix_flops_per_second": rate,
    }


def gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"


def show(console: Console, facts: dict[str, object], rows: Sequence[Row]) -> None:
    packages = facts["packages"]
    console.print(
        f"{facts['device']}; {facts['cores']} cores, load average before {facts['load_average']}; "
        f"torch {packages['torch']}, diffusers {packages['diffusers']}, timm {packages['timm']}\n"
        f"{facts['precision']}, {'compiled' if facts['compiled'] else 'not compiled'}; "
        f"matrix rate {facts['matrix_flops_per_second'] / 1e12:.4g} TFLOP/s",
        soft_wrap=True,
    )
    table = Table(
        Column("tokenizer", no_wrap=True),
        "part",
        "side",
        "batch",
        "calls",
        "images/s",
        "GFLOPs/image",
        "share",
        "GiB (of 1)",
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        speed = f"{row.images_per_second:.4g}", f"{row.flops_per_image / 1e9:.4g}", f"{row.share:.1%}"
        memory = f"{gib(row.peak_bytes)} ({gib(row.peak_bytes_one)})"
        table.add_row(row.tokenizer, row.part, str(row.side), str(row.batch), str(row.calls), *speed, memory)
    console.print(table)
    for row in rows:
        if row.search:
            console.print(f"{row.tokenizer} {row.part}: batch {row.batch}; {row.search}", soft_wrap=True)
    for name, note in {row.tokenizer: row.note for row in rows if row.note}.items():
        console.print(f"{name}: {note}", soft_wrap=True)


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} not known; known: {', '.join(known)}")
        return text.split(",")

    return parse


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = ", ".join(TOKENIZERS)
    parser.add_argument("--tokenizers", type=names(list(TOKENIZERS)), default=list(TOKENIZERS), help=f"of {choices}")
    parser.add_argument("--parts", type=names(PARTS), default=list(PARTS), help="encode, decode or both [both]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="[bf16 on a GPU, fp32 on the CPU]")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile [on a GPU only]")
    parser.add_argument("--threads", type=int, help="of torch on the CPU [its own choice]")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each part is timed [5]")
    parser.add_argument("--quick", action="store_true", help="miniatures, 0.1 seconds each: figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures here too")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    gpu = device.type == "cuda"
    settings = Settings(
        device=device,
        precision=args.precision or ("bf16" if gpu else "fp32"),
        compile=gpu if args.compile is None else args.compile,
        quick=args.quick,
        seconds=0.1 if args.quick else args.seconds,
    )
    console = Console()
    rate = matrix_rate(settings)
    facts = machine(settings, rate)
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for name in args.tokenizers:
        try:
            rows += measure(name, args.parts, settings, rate)
        except (MissingWeights, torch.OutOfMemoryError) as error:
            failures[name] = str(error).splitlines()[0]
        gc.collect()  # its networks, before the next ones are built
        if gpu:
            torch.cuda.empty_cache()
        rate = max(rate, matrix_rate(settings))  # other work on the machine can only make it slower
    facts["matrix_flops_per_second"] = rate
    rows = [dataclasses.replace(row, share=row.images_per_second * row.flops_per_image / rate) for row in rows]
    show(console, facts, rows)
    for name, reason in failures.items():
        console.print(f"{name}: NOT MEASURED: {reason}", soft_wrap=True)
    if args.json:
        record = {"machine": facts, "rows": [dataclasses.asdict(row) for row in rows], "not_measured": failures}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
