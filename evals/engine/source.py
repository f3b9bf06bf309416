"""Originals, decoded ahead of the work by threads: the evaluation pictures of one chunk after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from evals.datasets.base import Dataset, Sample
from evals.engine.work import Chunk
from evals.protocol import Protocol, evaluation_picture, to_tensor

# Pillow's decoding and resizing release the interpreter's lock.
THREADS = 4


@dataclass(frozen=True)
class Originals:
    """A chunk's pictures. evaluation: uint8 (B, 3, E, E) on the CPU; sources: the decoded originals, only where the
    protocol makes native pictures from them, else []."""

    chunk: Chunk
    evaluation: Tensor
    sources: list[np.ndarray]


def read_chunks(dataset: Dataset, chunks: Iterable[Chunk], protocol: Protocol) -> Iterator[Originals]:
    """The chunks in order; while one is worked on the next one is taken and decoded."""

    def read(sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
        source = dataset.read(sample)
        return evaluation_picture(source, protocol), source if protocol.native_from == "source" else None

    with ThreadPoolExecutor(THREADS) as pool:

        def start(chunk: Chunk) -> tuple[Chunk, list[Future]]:
            return chunk, [pool.submit(read, sample) for sample in chunk.samples]

        started = map(start, chunks)
        following = next(started, None)
        try:
            while following is not None:
                (chunk, futures), following = following, next(started, None)
                pictures = [future.result() for future in futures]
                sources = [source for _, source in pictures if source is not None]
                yield Originals(chunk, to_tensor([evaluation for evaluation, _ in pictures]), sources)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
