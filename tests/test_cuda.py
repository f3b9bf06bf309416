"""What only a GPU shows: it gives what the CPU gives, copies run beside the work, memory ends, processes share it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from skimage import data
from torch import Tensor

from baselines.tokenizers.flextok import fsq
from evals.datasets.base import DatasetNeeds, DatasetRequest, ImageDataset
from evals.engine.batches import Batcher
from evals.engine.environment import precision
from evals.engine.job import chunks_of
from evals.engine.load import Copier, load_ahead
from evals.run import main
from evals.tasks.protocol import ReconstructionProtocol
from evals.tasks.reconstruction import Reconstruction
from lactok import registry
from lactok.conformance import GAP_MARGIN
from lactok.interface import Item, Latents
from lactok.models.quantizer import VectorQuantizer
from tests.forked_ranks import free_port
from tests.support import ROOT, environment, pictures, table, the_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MINIATURES = sorted(name for name in registry.entries("tokenizers") if name.endswith("-mini"))
IMAGES_ATOL = 1e-4
"""Of decoded images in [0, 1], float32 without TF32. Two ways of convolving on one CPU differ by 1e-6 at most."""
LATENTS_ATOL = 1e-3
"""Of latents of unit size or so; on one CPU 3e-6."""
TABLE_ATOL = 2e-3
"""Of PSNR in dB, and of SSIM and colour shifts: one step of rounding to uint8 in a few pixels."""


def photographs(side: int) -> Tensor:
    """Two of scikit-image's, float32 (2, 3, side, side) in [0, 1]."""
    cuts = np.stack([data.coffee()[50:306, 80:336], data.chelsea()[20:276, 60:316]])
    images = torch.from_numpy(cuts).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.interpolate(images, size=(side, side), mode="area")


@contextmanager
def near_ties(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Inside, every search for code embeddings notes where it was close: bool, in the order of the ids.

    Of a codebook, the best and the second best distance are closer than GAP_MARGIN (times the distances' mean where
    that is over 1); of scalar levels, a number lies that close to the middle between two.
    """
    noted: list[Tensor] = []
    distances, bound = VectorQuantizer._distances, fsq.bound

    def of_codebook(quantizer: VectorQuantizer, rows: Tensor) -> Tensor:
        found = distances(quantizer, rows)
        best, second = found.topk(2, dim=1, largest=False).values.T
        noted.append(second - best < GAP_MARGIN * max(1.0, found.mean().item()))
        return found

    def of_levels(latents: Tensor, levels: object) -> Tensor:
        found = bound(latents, levels)
        noted.append(((found - found.floor() - 0.5).abs() < GAP_MARGIN).any(-1).flatten())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(VectorQuantizer, "_distances", of_codebook)
        patch.setattr(fsq, "bound", of_levels)
        yield noted


@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_encodes_and_decodes_as_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch):
    cls = registry.load("tokenizers", name)
    here, there = (cls(cls.Options(), device) for device in (CPU, CUDA))
    images = photographs(here.info.input_size or 128)
    with precision("fp32", CPU), near_ties(monkeypatch) as ties:
        encoded = here.encode(images)
        decoded = here.decode(encoded, [1, 2])
    with precision("fp32", CUDA):
        found = there.encode(images.to(CUDA))
        painted = there.decode(encoded.to(CUDA), [1, 2])
    if isinstance(encoded, Latents):
        torch.testing.assert_close(found.values.cpu(), encoded.values, rtol=0, atol=LATENTS_ATOL)
    else:
        differ = found.ids.cpu() != encoded.ids
        close = torch.cat(ties).view_as(differ)
        assert not (differ & ~close).any(), f"{int((differ & ~close).sum())} of {differ.numel()} ids, none near a tie"
    assert painted.device.type == "cuda"
    torch.testing.assert_close(painted.cpu(), decoded, rtol=0, atol=IMAGES_ATOL)


class Numbered(ImageDataset):
    """Images that are their number, large enough that a copy takes a while."""

    name = "numbered"

    def __init__(self, count: int) -> None:
        self.left_out, self.notes = [], []
        self.items = [Item(str(i), str(i), str(i)) for i in range(count)]

    @classmethod
    def open(cls, request: DatasetRequest) -> ImageDataset:
        raise NotImplementedError

    @classmethod
    def needs(cls) -> DatasetNeeds:
        raise NotImplementedError

    def read(self, item: Item) -> np.ndarray:
        return np.full((512, 512, 3), int(item.id), np.uint8)


def test_copies_beside_the_work_arrive_whole():
    """The device is kept busy, so that a chunk that is used before its copy has ended would hold something else."""
    dataset = Numbered(100)
    task = Reconstruction(dataset, ReconstructionProtocol("test", 512, "squash"))
    busy = torch.randn(4096, 4096, device=CUDA)
    sums = []
    for batch in load_ahead(task, chunks_of(dataset.items), CUDA):
        for _ in range(20):
            busy = torch.nn.functional.normalize(busy @ busy)
        assert batch.references is not None
        sums.append(batch.references.float().mean((1, 2, 3)))  # on the device's own stream, not waited for
        del batch  # its memory may be given away, yet not before the sum is done
    assert torch.cat(sums).round().long().tolist() == list(range(100))


def test_a_copy_has_a_stream_of_its_own():
    copier = Copier(CUDA)
    assert copier.stream != torch.cuda.current_stream(CUDA)
    tensor = torch.arange(2**24, dtype=torch.int64)
    copied = copier.start(tensor)
    assert copied.done is not None
    copied.wait()
    assert torch.equal(copied.tensor.cpu(), tensor)


def test_a_batch_is_halved_when_the_device_s_memory_ends():
    """A picture takes 0.3 of what is free, so that two fit and four do not."""
    torch.cuda.empty_cache()
    each = int(0.3 * torch.cuda.mem_get_info(CUDA)[0])
    tried = []

    def call(part: slice) -> list[int]:
        tried.append(part.stop - part.start)
        torch.empty((part.stop - part.start) * each, dtype=torch.uint8, device=CUDA)
        return list(range(part.start, part.stop))

    batcher = Batcher(8, CUDA)
    results, timed = batcher.run(9, call)
    torch.cuda.empty_cache()
    assert [index for part in results for index in part] == list(range(9))
    assert (batcher.size, timed.batch) == (2, 2)
    assert tried == [8, 4, 2, 2, 2, 2, 1]
    assert timed.peak_mib == pytest.approx(2 * each / 2**20, rel=0.1)
    with pytest.raises(torch.OutOfMemoryError):
        Batcher(1, CUDA).run(1, lambda part: torch.empty(8 * each, dtype=torch.uint8, device=CUDA))


def settings(folder: Path, device: str, out: Path) -> list[str]:
    """Three chunks of two rows, one of which draws noise."""
    return [
        "tokenizers=[llamagen-mini,lactok-t-mini]", "calibration=false", "metrics=[psnr,ssim,colour,codes]",
        "dataset=folder", f"dataset.root={folder}", f"device={device}", f"out={out}",
    ]  # fmt: skip


def test_a_run_gives_the_cpu_s_table(tmp_path: Path):
    folder = pictures(tmp_path / "pictures", count=20)
    tables = {}
    for device in ("cpu", "cuda"):
        assert main(settings(folder, device, tmp_path / device)) == 0
        tables[device] = table(tmp_path / device).select_dtypes("number")
    pd.testing.assert_frame_equal(tables["cuda"], tables["cpu"], rtol=0, atol=TABLE_ATOL)


def test_two_processes_on_one_gpu_give_the_table_of_one(tmp_path: Path):
    """Both name themselves the first process of their machine, as two containers with one GPU would."""
    folder = pictures(tmp_path / "pictures", count=40)
    for ranks in (1, 2):
        out, port = tmp_path / str(ranks), free_port()
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "evals.run", *settings(folder, "cuda", out)],
                cwd=ROOT,
                env=environment()
                | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])},
            )
            for rank in range(ranks)
        ]
        assert [process.wait(timeout=300) for process in started] == [0] * ranks
    one, two = (the_run(tmp_path / str(ranks)) for ranks in (1, 2))
    for name in ("table.csv", "table.parquet", "per_image.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
