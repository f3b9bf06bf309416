"""Part 1: what the device is, and its own rates, of which all later figures are shares."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_session import Job, Session
from benchmarks.measuring import call_times, copy_rate, matrix_times
from evals.engine.environment import code_revision, describe_device, package_versions

PACKAGES = ("transformers", "accelerate", "peft", "triton", "torchmetrics")
"""Beside those that every run notes."""
FACTS = "driver_version,power.limit,clocks.max.sm,clocks.max.mem,memory.total"


@dataclass(frozen=True)
class Card:
    """device: its name; driver: what nvidia-smi says of it; memory: bytes; cuda, cudnn: of torch's build."""

    device: str
    driver: str
    memory: int | None
    cuda: str | None
    cudnn: int | None
    packages: dict[str, str]
    code: str

    def __str__(self) -> str:
        return f"{self.device}; {self.driver or 'no driver'}; CUDA {self.cuda}, torch {self.packages['torch']}"


@dataclass(frozen=True)
class MatrixRate:
    """A square matrix product. best, median: FLOPs/s of the fastest call and of the middle one."""

    precision: str
    side: int
    calls: int
    best: float
    median: float

    def __str__(self) -> str:
        return f"matrix {self.side}^2 {self.precision}: {self.best / 1e12:.4g} TFLOP/s, median {self.median / 1e12:.4g}"


@dataclass(frozen=True)
class Bandwidth:
    """Bytes/s of a copy of `bytes`; of one on the device itself reading and writing both count."""

    what: str
    bytes: int
    rate: float

    def __str__(self) -> str:
        return f"copy {self.what}, {self.bytes / 2**20:.0f} MiB: {self.rate / 1e9:.4g} GB/s"


def measure(session: Session) -> None:
    session.each(
        [
            Job("card", lambda: iter([card(session.device)])),
            Job("matrix rates", lambda: rates(session)),
            Job("bandwidth", lambda: bandwidths(session)),
        ]
    )


def card(device: torch.device) -> Card:
    packages = package_versions()
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not here"
    cuda = device.type == "cuda"
    return Card(
        device=describe_device(device),
        driver=driver() if cuda else "",
        memory=torch.cuda.get_device_properties(device).total_memory if cuda else None,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version() if cuda else None,
        packages=packages,
        code=code_revision(),
    )


def driver() -> str:
    """nvidia-smi's line, "" where that is not here."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", f"--query-gpu={FACTS}", "--format=csv"]
    return "; ".join(subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.split("\n")[:2])


def rates(session: Session) -> Iterator[MatrixRate]:
    """In the precision that shares are taken in, then in those of the metrics."""
    for precision in dict.fromkeys((session.settings.precision, "fp32", "tf32")):
        side, times = matrix_times(dataclasses.replace(session.settings, precision=precision))
        flops = 2 * side**3
        yield MatrixRate(precision, side, len(times), flops / min(times), flops / statistics.median(times))


def bandwidths(session: Session) -> Iterator[Bandwidth]:
    device = session.device
    yield Bandwidth("on the device", *copy_rate(session.settings))
    if device.type == "cuda":
        pinned = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
        part = torch.empty_like(pinned, device=device)
        times = call_times(lambda: part.copy_(pinned, non_blocking=True), device, session.settings.seconds)
        yield Bandwidth("from pinned memory", len(pinned), len(pinned) / min(times))
