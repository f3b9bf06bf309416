"""How many ids and images a GPT generates a second, against batch size, beside what the device allows and a plain loop.

    python benchmarks/generate.py                           GPT-XL from text at 256 pixels; the GPU, else the CPU
    python benchmarks/generate.py --size small --threads 1  a small model, on which a CPU takes seconds
    python benchmarks/generate.py --ids 1024 --batches 1,16
    python benchmarks/generate.py --quick                   a smaller one, once: shows that it works

Weights are drawn on the device, prompts are noise of 5 to 40 text tokens; settings are those of LlamaGen's script
for text (guidance 7.5, so two sequences a prompt; top-k 1000). A call generates all ids of a batch, prefixes included.

    recorded      the step as CUDA graphs (a GPU alone); compiled: torch.compile takes the step
    plain loop    the same blocks in a loop as people write it: no compilation, keys and values of the whole prefix and
                  of all ids, concatenated anew at each step
    bandwidth     ids/s if a step took as long as a copy of the bytes that it must read: all weights but the embeddings,
                  keys and values so far, those of a prefix once; a copy's reading and writing both count
    arithmetic    ids/s if the FLOPs of prefixes and steps ran at the rate of one large matrix product
    share         of the lower of these limits

On a GPU weights and cache are bfloat16 without autocast, as the published script has them; on the CPU float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the repository, not this folder, where `tokenizers` is a file and not the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from benchmarks.device_weights import draw_weights
from benchmarks.measuring import DTYPES, Settings, call_times, copy_rate, gib, machine, matrix_rate, peak_bytes
from evals.engine.environment import choose_device, precision
from lactok.models.gpt import GPT, SIZES, GPTConfig, padding_mask, rotary_table
from lactok.models.gpt_generation import IdGenerator, Prompt, gather
from lactok.models.gpt_sampling import Sampling, guide, probabilities
from lactok.state_dict import meta_skeleton

SMALL = GPTConfig(dim=256, n_layer=6, n_head=4, vocab_size=4096, caption_dim=64)
QUICK = dataclasses.replace(SMALL, n_layer=2, block_size=16)
BATCHES, QUICK_BATCHES = {"cuda": (1, 8, 32, 64, 128), "cpu": (1, 4, 16)}, (1, 2)
SHORTEST, LONGEST = 5, 40
"""Text tokens of a prompt: from an object and its colour to a sentence that describes a scene."""
COMPILATIONS = 16
"""Of one function: a length of the cache each."""
PLAIN, EAGER, RECORDED, COMPILED, BOTH = "plain loop", "eager", "recorded", "compiled", "compiled, recorded"


@dataclass(frozen=True)
class Rates:
    """Of the device: FLOPs/s of a matrix product, bytes/s of a copy."""

    matrix: float
    copy: float


@dataclass(frozen=True)
class Generated:
    """One way at one batch of prompts.

    first_call: seconds of the first one, recording and compiling included; seconds: median of `calls` later ones.
    bandwidth_limit, matrix_limit: ids/s that the device allows; share: of the lower one. cache_bytes: of keys and
    values that the way holds at the end; peak_bytes: of a call, weights in it; None on the CPU.
    """

    model: str
    precision: str
    way: str
    batch: int
    first_call: float
    calls: int
    seconds: float
    ids_per_second: float
    images_per_second: float
    bandwidth_limit: float
    matrix_limit: float
    share: float
    cache_bytes: int
    peak_bytes: int | None

    def __str__(self) -> str:
        return (
            f"{self.model}, {self.precision}, {self.way}, batch {self.batch}: {self.ids_per_second:.4g} ids/s, "
            f"{self.images_per_second:.4g} images/s; allowed: {self.bandwidth_limit:.4g} by bandwidth, "
            f"{self.matrix_limit:.4g} by arithmetic ({self.share:.1%}); cache {gib(self.cache_bytes)} GiB, "
            f"peak {gib(self.peak_bytes)} GiB, first call {self.first_call:.1f} s"
        )


@dataclass(frozen=True)
class Load:
    """What generating `batch` images takes at least, two sequences each. bytes: moved; flops: a multiply-add is two."""

    bytes: int
    flops: int


def lengths(count: int) -> list[int]:
    """Text tokens of so many prompts; of a single one the middle."""
    span = LONGEST - SHORTEST
    return [SHORTEST + (span * place // (count - 1) if count > 1 else span // 2) for place in range(count)]


def load_of(config: GPTConfig, batch: int, width: int) -> Load:
    """width: bytes of a value. A prefix needs its text tokens, of attention values alone; none follows the last id."""
    rows, kv = 2 * batch, config.kv_heads * config.head_dim
    output = config.dim * config.vocab_size
    after = config.dim**2 + 3 * config.dim * config.ffn_dim
    layer = config.dim * (config.dim + 2 * kv) + after
    weights = config.n_layer * layer + output
    slots = sum(1 + place + 1 for place in range(config.block_size - 1))  # a prefix is one, and the id itself counts
    steps = config.block_size - 1
    moved = weights * (steps + 1) + rows * config.n_layer * 2 * kv * slots
    prefix = 2 * sum(lengths(batch)) * config.n_layer * (config.dim * kv + after) + rows * output
    attention = rows * config.n_layer * 2 * config.dim * slots
    return Load(width * moved, 2 * (prefix + rows * weights * steps + attention))


class Bench:
    """A model with drawn weights, and what generates from it."""

    def __init__(self, name: str, config: GPTConfig, settings: Settings, rates: Rates) -> None:
        self.config, self.settings, self.rates = config, settings, rates
        self.name = f"{name}, {config.block_size} ids"
        dtype = DTYPES[settings.precision]
        skeleton = meta_skeleton(GPT, dataclasses.replace(config, token_dropout_p=0.0)).to(dtype)
        self.model = draw_weights(skeleton, settings.device).eval().requires_grad_(False)
        self.sampling = Sampling()

    def prompts(self, count: int) -> list[Prompt]:
        """Of lengths from SHORTEST to LONGEST, evenly."""
        total, generator = self.config.cls_token_num, torch.Generator().manual_seed(0)
        made = []
        for length in lengths(count):
            seen = torch.arange(total) >= total - length
            states = torch.randn(total, self.config.caption_dim, generator=generator) * seen[:, None]
            made.append(Prompt(states.to(self.settings.device), seen, len(made)))
        return made

    def measure(self, way: str, batch: int) -> Generated:
        """Raises torch's OutOfMemoryError."""
        device, prompts = self.settings.device, self.prompts(batch)
        numbers = "fp32" if self.settings.precision == "bf16" else self.settings.precision  # no autocast
        with precision(numbers, device), torch._dynamo.config.patch(recompile_limit=COMPILATIONS):
            call, cache = self._call(way, prompts)
            started = time.perf_counter()
            call_times(call, device, 0)
            first = time.perf_counter() - started
            times = call_times(call, device, self.settings.seconds)
            peak = peak_bytes(call, device)
        if "compiled" in way:
            torch._dynamo.reset()  # else what is compiled keeps the model
        load = load_of(self.config, batch, DTYPES[self.settings.precision].itemsize)
        ids, seconds = batch * self.config.block_size, statistics.median(times)
        bandwidth, matrix = ids * self.rates.copy / load.bytes, ids * self.rates.matrix / load.flops
        share = ids / seconds / min(bandwidth, matrix)
        how = self.name, self.settings.precision, way, batch, first, len(times), seconds
        return Generated(*how, ids / seconds, batch / seconds, bandwidth, matrix, share, cache, peak)

    def _call(self, way: str, prompts: list[Prompt]) -> tuple[Callable[[], object], int]:
        """What generates all ids of the prompts, and the bytes of its keys and values."""
        if way == PLAIN:
            config = self.config
            values = 2 * 2 * len(prompts) * config.n_layer * config.kv_heads * config.head_dim * config.positions
            condition, seen = gather(self.model, prompts)
            size = values * DTYPES[self.settings.precision].itemsize
            return lambda: plain_loop(self.model, condition, seen, self.sampling), size
        backend = "eager" if self.settings.quick else "inductor"
        flags = {"compiled": "compiled" in way, "recorded": "recorded" in way}
        generator = IdGenerator(self.model, len(prompts), self.sampling, **flags, backend=backend)
        return lambda: list(generator.stream(prompts)), generator.cache.bytes


@torch.no_grad()
def plain_loop(model: GPT, condition: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Guided ids int64 (B, N) of conditions (B, L, caption_dim) and masks (B, L), as people write it.

    A batch at a time, keys and values concatenated with those so far, draws from torch's global generator.
    """
    config, batch = model.config, len(condition)
    table = rotary_table(config).to(condition.device)[:, None]
    nothing = torch.ones(batch, dtype=torch.bool, device=condition.device)
    x = torch.cat([model.prefix(condition), model.prefix(condition, nothing)])
    seen = seen.bool().repeat(2, 1)
    mask = padding_mask(seen, config.cls_token_num)[:, None]
    past: list[tuple[Tensor, Tensor]] = []
    found: list[Tensor] = []
    for place in range(config.block_size):
        turn = table[config.cls_token_num + place - 1][None] if place else table[: config.cls_token_num]
        for number, layer in enumerate(model.layers):
            q, k, v = layer.attention.project(layer.attention_norm(x), turn)
            if place:
                k, v = torch.cat([past[number][0], k], 1), torch.cat([past[number][1], v], 1)
                past[number] = k, v
            else:
                past.append((k, v))
            mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), mask)
            x = x + layer.attention.wo(mixed.transpose(1, 2).flatten(2))
            x = x + layer.feed_forward(layer.ffn_norm(x))
        conditional, unconditional = model.logits(x[:, -1]).chunk(2)
        guided = guide(conditional, unconditional, sampling.guidance_scale)
        found.append(torch.multinomial(probabilities(guided, sampling), 1))
        x = model.tok_embeddings(found[-1]).repeat(2, 1, 1)
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        mask = seen[:, None, None]
    return torch.cat(found, 1)


def ways(device: torch.device, compiled: bool) -> list[str]:
    """In the order of measuring."""
    if device.type == "cuda":
        return [RECORDED, *([BOTH] if compiled else []), EAGER, PLAIN]
    return [EAGER, *([COMPILED] if compiled else []), PLAIN]


# --- What is printed -------------------------------------------------------------------------------------------------


def show(console: Console, facts: dict[str, object], rows: Sequence[Generated], rates: Rates) -> None:
    packages = facts["packages"]
    assert isinstance(packages, dict)
    console.print(
        f"{facts['device']}; {facts['threads']} threads, load average before {facts['load_average']}; "
        f"torch {packages['torch']}\n{rows[0].model if rows else ''}, {facts['precision']}; matrix rate "
        f"{rates.matrix / 1e12:.4g} TFLOP/s, copy {rates.copy / 1e9:.4g} GB/s",
        soft_wrap=True,
    )
    names = ("batch", "ids/s", "images/s", "bandwidth", "arithmetic", "share", "x plain", "cache GiB", "peak GiB")
    table = Table(Column("way", no_wrap=True), *(Column(name, justify="right") for name in names))
    plain = {row.batch: row.ids_per_second for row in rows if row.way == PLAIN}
    for row in rows:
        gain = f"{row.ids_per_second / plain[row.batch]:.2f}" if row.batch in plain else "-"
        speeds = (row.ids_per_second, row.images_per_second, row.bandwidth_limit, row.matrix_limit)
        shown = [*(f"{speed:.4g}" for speed in speeds), f"{row.share:.1%}", gain]
        table.add_row(row.way, str(row.batch), *shown, gib(row.cache_bytes), gib(row.peak_bytes))
    console.print(table)


def all_rows(bench: Bench, batches: Sequence[int], compiled: bool) -> Iterator[Generated | str]:
    """Figures, each as soon as it exists, or why there is none."""
    for batch in batches:
        for way in ways(bench.settings.device, compiled):
            try:
                yield bench.measure(way, batch)
            except torch.OutOfMemoryError as error:
                yield f"{way}, batch {batch}: NOT MEASURED: {str(error).splitlines()[0]}"
            gc.collect()
            if bench.settings.device.type == "cuda":
                torch.cuda.empty_cache()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "small"], help="[XL; small with --quick]")
    parser.add_argument("--ids", type=int, help="of an image, a square [256]")
    parser.add_argument("--batches", type=lambda text: tuple(map(int, text.split(","))), help="prompts at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="[bf16 on a GPU, fp32 on the CPU]")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile too [on a GPU only]")
    parser.add_argument("--threads", type=int, help="of torch on the CPU [its own choice]")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each figure is timed [5]")
    parser.add_argument("--quick", action="store_true", help="small and once: figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures here too")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    gpu = device.type == "cuda"
    compiled = gpu if args.compile is None else args.compile
    seconds = 0.0 if args.quick else args.seconds
    settings = Settings(device, args.precision or ("bf16" if gpu else "fp32"), compiled, args.quick, seconds)
    size = args.size or ("small" if args.quick else "XL")
    config = (QUICK if args.quick else SMALL) if size == "small" else GPTConfig(**SIZES[size])
    if args.ids:
        config = dataclasses.replace(config, block_size=args.ids)
    rates = Rates(matrix_rate(settings), copy_rate(settings)[1])
    facts = machine(settings, rates.matrix)
    bench = Bench(f"GPT-{size}", config, settings, rates)
    console, rows, failures = Console(), [], []
    for found in all_rows(bench, args.batches or (QUICK_BATCHES if args.quick else BATCHES[device.type]), compiled):
        if isinstance(found, str):
            failures.append(found)
        else:
            rows.append(found)
    show(console, facts, rows, rates)
    for failure in failures:
        console.print(failure, soft_wrap=True)
    if args.json:
        record = {"machine": facts | {"copy_bytes_per_second": rates.copy}, "not_measured": failures}
        args.json.write_text(json.dumps(record | {"rows": [dataclasses.asdict(row) for row in rows]}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
