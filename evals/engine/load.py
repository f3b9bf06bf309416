"""Batches made ready ahead of the work: while one is worked on, the next one is loaded and copied to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evals.engine.job import Chunk

if TYPE_CHECKING:
    from evals.tasks.base import Batch, Task


def load_ahead(task: Task, chunks: Iterable[Chunk], device: torch.device) -> Iterator[Batch]:
    """The chunks' batches in order, references on `device`."""

    def load(chunk: Chunk) -> tuple[Batch, Copied | None]:
        batch = task.load(chunk)
        copied = None if batch.references is None else copier.start(batch.references)
        return (batch if copied is None else replace(batch, references=copied.tensor)), copied

    copier = Copier(device)
    pool = ThreadPoolExecutor(1)
    remaining = iter(chunks)

    def start() -> Future[tuple[Batch, Copied | None]] | None:
        chunk = next(remaining, None)
        return None if chunk is None else pool.submit(load, chunk)

    following = start()
    try:
        while following is not None:
            ready, following = following, start()
            batch, copied = ready.result()
            if copied is not None:
                copied.wait()
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Copied:
    """A tensor on its way to the device. done: recorded behind the copy on a GPU, None where there was none to make."""

    tensor: Tensor
    done: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Later work on the current stream starts after the copy; the caller itself does not wait."""
        if self.done is not None:
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.done)
            self.tensor.record_stream(stream)  # its memory is not given away while that stream uses it


class Copier:
    """Copies beside the work: on a GPU from pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensor: Tensor) -> Copied:
        """Begin to copy a CPU tensor."""
        if self.stream is None:
            return Copied(tensor.to(self.device))
        with torch.cuda.stream(self.stream):
            copied = tensor.pin_memory().to(self.device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.stream)
        return Copied(copied, done)
