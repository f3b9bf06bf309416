"""Running a model over a chunk in batches, halved when memory runs out."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")

# On the CPU torch reports a failed allocation as a plain RuntimeError with this text.
CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


@dataclass(frozen=True)
class Timed:
    """How a model's calls over a chunk went: wall seconds, the batch size (after any halving), peak memory in MiB.

    peak_mib: of the device's allocations on CUDA; on a CPU the whole process's largest resident size so far.
    """

    seconds: float
    batch: int
    peak_mib: float


class Batcher:
    """Splits work into batches of at most `size`; a size that runs out of memory is halved and stays halved."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.device = device

    def run(self, count: int, call: Callable[[slice], T]) -> tuple[list[T], Timed]:
        """`call` on consecutive slices of range(count), its results in order. Out of memory at batch 1 is raised."""
        results: list[T] = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        done = 0
        while done < count:
            part = slice(done, min(done + self.size, count))
            try:
                results.append(call(part))
            except RuntimeError as error:
                if not is_out_of_memory(error) or part.stop - part.start == 1:
                    raise
                self.size = max(1, (part.stop - part.start) // 2)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            done = part.stop
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return results, Timed(time.perf_counter() - started, self.size, _peak_mib(self.device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or CPU_OUT_OF_MEMORY in str(error)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 2**20 if sys.platform == "darwin" else largest / 2**10
