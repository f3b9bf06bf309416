"""Running a model over a chunk in batches, halved when memory runs out."""

from __future__ import annotations

import gc
import logging
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")
_log = logging.getLogger("lactok")

# On the CPU torch reports a failed allocation as a plain RuntimeError with this text.
CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


@dataclass(frozen=True)
class Timed:
    """How a model's calls over a chunk went: wall seconds, the largest batch that was run (after any halving, and never
    more than there were items), peak memory in MiB.

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
            restart_peak(self.device)
        started = time.perf_counter()
        done = largest = 0
        while done < count:
            part = slice(done, min(done + self.size, count))
            try:
                results.append(call(part))
                done, largest = part.stop, max(largest, part.stop - part.start)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or part.stop - part.start == 1:
                    raise
                self.size = max(1, (part.stop - part.start) // 2)
                _log.warning("out of memory at batch %d: halved to %d", part.stop - part.start, self.size)
            if done < part.stop:  # the error is gone by now, and with its traceback what the failed batch held
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return results, Timed(time.perf_counter() - started, largest, _peak_mib(self.device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or CPU_OUT_OF_MEMORY in str(error)


# Most bytes that torch held on each GPU up to the last restart of its own count.
_held: dict[int, int] = {}


def restart_peak(device: torch.device) -> None:
    """Count a GPU's peak memory from now on, without losing `most_held_gib`."""
    index = torch.cuda.current_device() if device.index is None else device.index
    _held[index] = max(_held.get(index, 0), torch.cuda.max_memory_allocated(index))
    torch.cuda.reset_peak_memory_stats(index)


def most_held_gib() -> float:
    """Most memory in GiB that torch has had in this process on its current GPU."""
    index = torch.cuda.current_device()
    return max(_held.get(index, 0), torch.cuda.max_memory_allocated(index)) / 2**30


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 2**20 if sys.platform == "darwin" else largest / 2**10
