"""How fast each tokenizer encodes and decodes at its published size, and how much of the device's arithmetic it uses.

    python benchmarks/tokenizers.py                                  all; the GPU where there is one, else the CPU
    python benchmarks/tokenizers.py --tokenizers llamagen,titok      these two
    python benchmarks/tokenizers.py --tokenizers flextok --parts encode --json flextok.json
    python benchmarks/tokenizers.py --quick                          miniatures, seconds: shows that it works

Weights are seeded (the time is the same), images are noise of the native size, decoders run with their published
steps and guidance. What is timed is the adapter that the benchmark's own runs call.

CPU: one image, fp32, not compiled, as many threads as torch takes. GPU: bf16 autocast, the batch at which one more
doubling no longer raises the rate (found without torch.compile), then compiled.

    images/s      of that batch, median over calls
    FLOPs/image   matrix products, convolutions and attention of one image, by torch's counter; a multiply-add is two
    matrix rate   FLOPs/s of one large square matrix product in the same precision on the same device: the fastest
                  call, before and after each tokenizer (a share over 100 % says that the machine did other work)
    share         images/s x FLOPs/image / matrix rate
    peak memory   torch.cuda.max_memory_allocated of a call, all weights of the tokenizer in it: of one image, not
                  compiled, and of the batch as it is timed; none on the CPU, where torch keeps no such count

On the CPU a call of a large decoder takes minutes: one warms up and counts, one at least is timed.
Exits 1 when a tokenizer that was asked for could not be measured; what and why is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the repository, not this folder, where `tokenizers` is this file and not the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from rich.console import Console
from rich.table import Column, Table

from benchmarks.coding import PARTS, Work
from benchmarks.measuring import DTYPES, Settings, call_times, gib, machine, matrix_rate, names, peak_bytes
from benchmarks.tokenizer_networks import TOKENIZERS
from evals.engine.environment import choose_device
from lactok.weights import MissingWeights


@dataclass(frozen=True)
class Row:
    """One part of one tokenizer.

    side: of the images that it encodes; calls: how many were timed; search: why no larger batch was taken, empty on
    the CPU, which gets one image; note: the subject's.
    peak_bytes, peak_bytes_one: most device memory allocated at once in a call of the batch as it was timed, and in one
    of a single image, not compiled; None on the CPU.
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


def measure(name: str, parts: Sequence[str], settings: Settings, rate: float) -> list[Row]:
    """Both parts of one tokenizer. Raises MissingWeights, or torch's OutOfMemoryError for a single image."""
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
