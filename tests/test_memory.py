"""What is done, remembered and recorded when memory runs out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from evals.engine.batches import Batcher
from evals.engine.progress import State
from evals.engine.store import Cache
from evals.metrics.image.psnr import Psnr
from lactok.interface import Item
from tests.plugin_runs import plugin, run
from tests.support import TOY, pictures

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_a_size_that_is_too_large_for_a_metric_is_tried_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, sizes, embed = pictures(tmp_path / "data", 40), [], Psnr.embed

    def limited(self: Psnr, images: torch.Tensor, items: Sequence[Item]) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(self, images, items)

    monkeypatch.setattr(Psnr, "embed", limited)
    with plugin(tmp_path / "plugin", TOY, {"toy": "Toy"}):
        finished = run(data, tmp_path / "out", "tokenizers=toy", "metrics=[psnr]")
    assert [s for s in sizes if s > 5] == [16, 8], "each size that fails is tried in one chunk alone"
    (row,), job, cache = finished.job.runs, finished.job, Cache(tmp_path / "out" / "cache")
    entries = [cache.read(job.scores(row, chunk, 0, job.metrics.image[0])) for chunk in job.chunks]
    assert [entry.meta["batch"] for entry in entries] == [4, 4, 4]


class FakeCuda:
    """Torch's memory statistics of a device: `use` holds bytes for a moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak, self.emptied = 0, []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.emptied.append(self.look()))
        self.look = lambda: None

    def reset(self, device: torch.device | None = None) -> None:
        self.peak = 0

    def use(self, mib: float) -> None:
        self.peak = max(self.peak, int(mib * 2**20))


def test_the_failed_batch_is_gone_before_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch):
    cuda, held = FakeCuda(monkeypatch), []

    class Activations:
        pass

    def call(part: slice) -> int:
        activations = Activations()
        if part.stop - part.start > 2:
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return part.stop - part.start

    gc.disable()
    try:
        cuda.look = lambda: [ref() is not None for ref in held]
        assert Batcher(8, CUDA).run(8, call)[0] == [2, 2, 2, 2]
    finally:
        gc.enable()
    assert cuda.emptied == [[False], [False, False]]


def test_the_most_memory_of_a_run_is_not_that_of_its_last_batch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evals.engine.batches._held", {})
    cuda, batcher, state = FakeCuda(monkeypatch), Batcher(4, CUDA), State(total=9)
    for mib in (1024, 3072, 512):
        _, timed = batcher.run(4, lambda part, mib=mib: cuda.use(mib))
        assert timed.peak_mib == mib, "a chunk's own"
        if mib != 3072:  # a batch's peak counts though the row's chunk ends batches later
            state.advance("row", 4, worked=True)
    assert state.gpu_gib == 3
