"""What all speed scripts share: timing a call, its peak memory, the device's own matrix rate, facts of the machine."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from evals.engine.environment import describe_device, package_versions, precision

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
MATRIX = {"cuda": 8192, "cpu": 4096}
"""Side of the square matrix product that shares are taken of."""
QUICK_MATRIX = 512
COPY, QUICK_COPY = {"cuda": 2**32, "cpu": 2**28}, 2**24
"""Bytes of the copy that bandwidth is taken of."""
MOST_CALLS = 50
"""Timed calls, however short."""


@dataclass(frozen=True)
class Settings:
    """What all rows share. seconds: how long each part is timed, at least one call."""

    device: torch.device
    precision: str
    compile: bool
    quick: bool
    seconds: float


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


def matrix_times(settings: Settings) -> tuple[int, list[float]]:
    """Side of a square matrix product in the settings' precision, and seconds of its calls after a warm-up."""
    side = QUICK_MATRIX if settings.quick else MATRIX[settings.device.type]
    a, b = (torch.randn(side, side, device=settings.device, dtype=DTYPES[settings.precision]) for _ in range(2))
    with precision(settings.precision, settings.device):
        call_times(lambda: a @ b, settings.device, 0)
        return side, call_times(lambda: a @ b, settings.device, settings.seconds)


def matrix_rate(settings: Settings) -> float:
    """FLOPs/s of the fastest product: what the device gives at best, in practice."""
    side, times = matrix_times(settings)
    return 2 * side**3 / min(times)


def copy_rate(settings: Settings) -> tuple[int, float]:
    """Bytes of a copy on the device itself, and bytes/s of the fastest one: reading and writing both count."""
    size = QUICK_COPY if settings.quick else COPY[settings.device.type]
    source, target = (torch.empty(size, dtype=torch.uint8, device=settings.device) for _ in range(2))
    call_times(lambda: target.copy_(source), settings.device, 0)
    return size, 2 * size / min(call_times(lambda: target.copy_(source), settings.device, settings.seconds))


def machine(settings: Settings, rate: float) -> dict[str, object]:
    """What figures were measured on, as it is written beside them."""
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


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Parses "a,b" for argparse, refusing what is not known."""

    def parse(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} not known; known: {', '.join(known)}")
        return text.split(",")

    return parse
