"""Part 3: encoding and decoding at published size, weights drawn on the device, and the largest kernels of a decode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.coding import Work
from benchmarks.gpu_session import Job, Session
from benchmarks.measuring import call_times, gib, peak_bytes
from benchmarks.tokenizer_networks import TOKENIZERS
from evals.engine.environment import hold_in_bf16

LACTOK = ("lactok-h", "lactok-t")
OTHERS = ("titok", "llamagen", "seedtok", "flextok")
LARGEST_BATCH, QUICK_LARGEST = 64, 2
KNOWN_ON = "H200"
KNOWN_BATCHES = {
    **{(name, part): batch for name in LACTOK for part, batch in (("decode", 8), ("encode", 32))},
    ("titok", "decode"): 64,
    ("titok", "encode"): 64,
    ("llamagen", "decode"): 32,
    ("llamagen", "encode"): 32,
    ("flextok", "decode"): 16,
    ("flextok", "encode"): 4,
    ("seedtok", "decode"): 1,
}
"""What the search found on an H200 (results/gpu/h200.json), taken on that card alone. 64 and FlexTok's 16 are limits of
the search; it was made in channels-last, for LacTok-T and FlexTok with float32 weights. SeedTok paints one by one."""
REPEATED = ("BasicTransformerBlock", "ResnetBlock2D")
"""diffusers' blocks that torch.compile takes one by one. LacTok decodes by 143 of them, of 20 shapes: minutes less."""
KINDS = 64
"""Compilations of one function, all shapes and dtypes of such a block."""
KERNELS = 10
HELD, BFLOAT16 = "held", "bfloat16"
CHANNELS_LAST, CONTIGUOUS = "channels-last", "contiguous"
QUICK_COMPILED = (LACTOK[0],)
"""Compiling takes seconds a network even without code generation, which --quick leaves out; so one batch is enough."""


@dataclass(frozen=True)
class Coded:
    """One part ("decode") of one tokenizer at one batch.

    layout: of the convolutions' tensors; weights: "held" as a run in bf16 holds them (`hold_in_bf16`), "float32", or
    "bfloat16", where the decoder and its autoencoder are whole and autocast is off.
    first_call: seconds of the first one, compiling included; seconds: of the median of `calls` later ones.
    flops: of one image, a multiply-add being two; share: of the matrix rate; peak_bytes: of a call, weights in it.
    """

    tokenizer: str
    part: str
    compiled: bool
    layout: str
    weights: str
    batch: int
    first_call: float
    calls: int
    seconds: float
    images_per_second: float
    flops: int
    flops_per_second: float
    share: float
    peak_bytes: int | None
    search: str = ""

    def __str__(self) -> str:
        how = f"{'compiled' if self.compiled else 'eager'}, {self.layout}, {self.weights} weights"
        return (
            f"{self.tokenizer} {self.part}, {how}, batch {self.batch}: {self.images_per_second:.4g} images/s, "
            f"{self.flops_per_second / 1e12:.4g} TFLOP/s ({self.share:.1%}), {gib(self.peak_bytes)} GiB, "
            f"first call {self.first_call:.1f} s" + (f"; {self.search}" if self.search else "")
        )


@dataclass(frozen=True)
class Kernel:
    """One of the largest of a decode. seconds: of all its calls; share: of the device's time in the decode."""

    tokenizer: str
    batch: int
    place: int
    name: str
    calls: int
    seconds: float
    share: float

    def __str__(self) -> str:
        where = f"{self.tokenizer} decode, batch {self.batch}"
        return (
            f"kernel {self.place} of {where}: {1e3 * self.seconds:.3g} ms, {self.share:.1%}, {self.calls}x {self.name}"
        )


def measure(session: Session) -> None:
    """In the order of worth, and what takes seconds before what takes minutes."""
    first, second = LACTOK

    def job(what: str, call: Callable[..., Iterator[Coded | Kernel]], *given: object) -> Job:
        return Job(what, lambda: call(session, *given))

    compiled = [name for name in (second, *OTHERS) if not session.quick or name in QUICK_COMPILED]
    session.each(
        [
            job(f"{first} eager", eager, first),
            job(f"{first} decode, channels-last", channels_last, first),
            job(f"{first} decode compiled", compile_and_time, first),
            job(f"{first} decode, bfloat16 weights", all_bfloat16, first),
            job(f"{first} kernels", kernels, first),
            *(job(f"{name} eager", eager, name) for name in (second, *OTHERS)),
            *(job(f"{name} decode compiled", compile_and_time, name) for name in compiled),
        ]
    )


class Built:
    """A tokenizer's calls, its networks' kernels in one layout, its weights held as a run in that precision holds them.

    layout: contiguous as a run has it, or channels-last. flops: of one image by part, counted in float32 before.
    """

    def __init__(self, session: Session, name: str, parts: Sequence[str] = ("decode",), layout: str = CONTIGUOUS):
        subject = TOKENIZERS[name](session.quick, session.device)
        if layout == CHANNELS_LAST:
            for network in subject.networks:
                network.to(memory_format=torch.channels_last)
        self.name, self.layout, self.subject = name, layout, subject
        self.work = Work(subject, session.settings)
        for part in parts:
            if (name, part) not in session.flops:
                session.flops[name, part] = self.work.flops(part)
        self.flops = {part: session.flops[name, part] for part in parts}
        self.weights = "float32"
        if session.settings.precision == "bf16":
            hold_in_bf16(subject.tokenizer)
            self.weights = HELD


def timed(session: Session, built: Built, part: str, batch: int, compiled: bool = False, search: str = "") -> Coded:
    numbers = "fp32" if built.weights == BFLOAT16 else None  # which switches autocast off
    call = built.work.call(part, batch, numbers)
    started = time.perf_counter()
    call_times(call, session.device, 0)
    first = time.perf_counter() - started
    times = call_times(call, session.device, session.settings.seconds)
    seconds, flops = statistics.median(times), built.flops[part]
    speed = batch / seconds
    how = built.name, part, compiled, built.layout, built.weights, batch, first, len(times), seconds, speed
    return Coded(*how, flops, speed * flops, speed * flops / session.rate, peak_bytes(call, session.device), search)


def best_batch(session: Session, built: Built, part: str) -> tuple[int, str]:
    """The batch to time beside one image, and where it comes from."""
    if session.quick:
        return built.work.best_batch(part, QUICK_LARGEST)
    if (known := KNOWN_BATCHES.get((built.name, part))) and KNOWN_ON in torch.cuda.get_device_name():
        return known, f"the batch is the best one on an {KNOWN_ON}"
    return built.work.best_batch(part, LARGEST_BATCH)


def batches(session: Session, name: str, part: str) -> Sequence[int]:
    """The best batch as far as it is known, then a single image."""
    return tuple(dict.fromkeys((session.best.get((name, part), 1), 1)))


def eager(session: Session, name: str) -> Iterator[Coded]:
    built = Built(session, name, ("decode", "encode"))
    for part in built.flops:
        yield timed(session, built, part, 1)
        best, why = best_batch(session, built, part)
        session.best[name, part] = best
        if best > 1:
            yield timed(session, built, part, best, search=why)


def channels_last(session: Session, name: str) -> Iterator[Coded]:
    """What a run would gain or lose by this layout is the difference to this."""
    built = Built(session, name, layout=CHANNELS_LAST)
    for batch in batches(session, name, "decode"):
        yield timed(session, built, "decode", batch)


def all_bfloat16(session: Session, name: str) -> Iterator[Coded]:
    """What autocast and the autoencoder in float32 cost is the difference to this."""
    built = Built(session, name)
    model = built.subject.tokenizer.model
    for network in (model.decoder, model.vae):
        network.to(torch.bfloat16)
    built.weights = BFLOAT16
    for batch in batches(session, name, "decode"):
        yield timed(session, built, "decode", batch)


def compile_and_time(session: Session, name: str) -> Iterator[Coded]:
    """Decoding at the best batch, for shapes that do not change; in miniature traced only."""
    built = Built(session, name)
    for part in compiled_parts(built.subject.networks):
        part.compile(dynamic=False, backend="eager" if session.quick else "inductor")
    try:
        with torch._dynamo.config.patch(recompile_limit=KINDS):
            yield timed(session, built, "decode", batches(session, name, "decode")[0], compiled=True)
    finally:
        torch._dynamo.reset()  # else what is compiled keeps the network, and counts against the limit of one function


def compiled_parts(networks: Sequence[nn.Module]) -> list[nn.Module]:
    """The repeated blocks of each network, which are compiled once for all of one shape; of others the whole."""
    found: list[nn.Module] = []
    for network in networks:
        blocks = [module for module in network.modules() if type(module).__name__ in REPEATED]
        found += blocks or [network]
    return found


def kernels(session: Session, name: str) -> Iterator[Kernel]:
    """The largest of one eager decode, by the device's own clock."""
    batch = batches(session, name, "decode")[0]
    call = Built(session, name).work.call("decode", batch)
    call_times(call, session.device, 0)
    cuda = session.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        call_times(call, session.device, 0)
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    took = [
        (event.self_device_time_total if cuda else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
        if event.device_type == kind
    ]
    total = sum(time for time, _ in took)
    if not total:
        raise RuntimeError("the profiler saw no kernel")
    largest = sorted(took, key=lambda pair: -pair[0])[:KERNELS]
    for place, (microseconds, event) in enumerate(largest, 1):
        yield Kernel(name, batch, place, event.key, event.count, microseconds / 1e6, microseconds / total)
