"""Originals, decoded and copied to the device ahead of the work: the evaluation pictures of one chunk after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evals.datasets.base import Dataset, Sample
from evals.engine.work import Chunk
from evals.protocol import Protocol, evaluation_picture, to_tensor

# Pillow's decoding and resizing release the interpreter's lock.
THREADS = 4


@dataclass(frozen=True)
class Originals:
    """A chunk's pictures. evaluation: uint8 (B, 3, E, E) on the run's device; sources: the decoded originals, only
    where the protocol makes native pictures from them, else []."""

    chunk: Chunk
    evaluation: Tensor
    sources: list[np.ndarray]


def read_chunks(
    dataset: Dataset, chunks: Iterable[Chunk], protocol: Protocol, device: torch.device
) -> Iterator[Originals]:
    """The chunks in order; while one is worked on the next one is taken, decoded and copied to `device`."""

    def read(sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
        source = dataset.read(sample)
        return evaluation_picture(source, protocol), source if protocol.native_from == "source" else None

    def gather(chunk: Chunk, pictures: list[Future]) -> tuple[Originals, Copied]:
        read = [picture.result() for picture in pictures]
        copied = copier.start(to_tensor([evaluation for evaluation, _ in read]))
        return Originals(chunk, copied.tensor, [source for _, source in read if source is not None]), copied

    copier = Copier(device)
    # a thread of its own gathers, or it would wait for readers that wait for it
    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(1) as gatherer:

        def start(chunk: Chunk) -> Future:
            return gatherer.submit(gather, chunk, [pool.submit(read, sample) for sample in chunk.samples])

        started = map(start, chunks)
        following = next(started, None)
        try:
            while following is not None:
                ready, following = following, next(started, None)
                originals, copied = ready.result()
                copied.wait()
                yield originals
        finally:
            for executor in (pool, gatherer):
                executor.shutdown(wait=False, cancel_futures=True)


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
