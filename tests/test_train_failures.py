"""What goes wrong while a run is set up or trains: each is said in one line, and what was finished is kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError

from baselines.tokenizers.llamagen.objective import VQRecipe
from lactok.data.folder import DataError
from lactok.data.pack import open_pack
from lactok.data.sources import FolderFiles
from lactok.data.stream import StreamedImages
from lactok.files import WriteError
from lactok.train.__main__ import main
from lactok.train.checkpoints import CheckpointFolder
from lactok.train.config import TrainConfigError, compose_config
from lactok.train.loop import TrainingDiverged, train
from tests.support import pictures
from tests.test_train import settings
from tests.tiny_lactok import quick_training


@pytest.fixture(autouse=True, scope="module")
def _quick():
    with quick_training():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), count=6)


def full(partial: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_safetensors(partial: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_for_torch(partial: Path) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")


@pytest.mark.parametrize("write", [full, full_for_safetensors, full_for_torch])
def test_a_disk_that_is_full_at_a_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write):
    """torch and safetensors have errors of their own; torch's does not say why it can't write."""
    folder = CheckpointFolder(tmp_path)
    good = folder.save(1, lambda partial: (partial / "a").write_bytes(b"1"))
    monkeypatch.setattr("lactok.train.checkpoints.shutil.disk_usage", lambda path: Free)

    def begin(partial: Path) -> None:
        (partial / "half").write_bytes(b"1" * 100)
        write(partial)

    with pytest.raises(WriteError, match=r"the disk is full: free some space\. Finished work is kept"):
        folder.save(2, begin)
    assert list(folder.root.iterdir()) == [good], "nothing half written takes the room"
    assert folder.damaged() == []


class Free:
    """What `shutil.disk_usage` says of a full disk."""

    free = 0


def test_an_error_of_another_kind_stays_itself(tmp_path: Path):
    def fail(partial: Path) -> None:
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(RuntimeError, match="CUDA error"):
        CheckpointFolder(tmp_path).save(1, fail)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4])
def test_weights_that_no_export_can_hold_are_not_saved(data: Path, tmp_path: Path, value: float):
    """A finite gradient may lead to them in the last step before a checkpoint."""

    class Overflowing(VQRecipe):
        def after_step(self, step: int) -> None:
            if step == 1:
                self.model.quant_conv.bias[0] = value

    with pytest.raises(
        TrainingDiverged, match=r"after step 1 a weight is not within float16's range; .*step-00000001;"
    ):
        train(settings(data, tmp_path / "run", steps=2, checkpoint_every=1), Overflowing)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000001"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("learning_rate=-1e-3", "0 or more"),
        ("learning_rate=nan", "0 or more"),
        ("warmup_steps=-1", "0 or more"),
        ("weight_decay=-0.1", "0 or more"),
        ("beta1=1", "0 or more, below 1"),
        ("beta2=-0.1", "0 or more, below 1"),
        ("ema_decay=1", "0 or more, below 1"),
        ("final_fraction=2", "0 to 1"),
        ("clip_norm=0", "more than 0"),
    ],
)
def test_numbers_with_which_nothing_learns_are_refused(setting: str, expected: str):
    key = setting.partition("=")[0]
    with pytest.raises(TrainConfigError, match=rf"optimizer\.{key}=\S+: expected {expected}"):
        compose_config(["recipe=vq", "dry_run=true", f"optimizer.{setting}"])


@pytest.mark.parametrize("dry", [True, False])
def test_options_that_do_not_fit_one_another_are_an_error_not_a_traceback(
    data: Path, tmp_path: Path, capsys, dry: bool
):
    arguments = ["recipe=ldm", f"data.root='{data}'", f"out='{tmp_path / 'run'}'", "options.model.unet.in_channels=4"]
    assert main([*arguments, "device=cpu", "data.validation=2", *(["dry_run=true"] if dry else [])]) == 2
    assert "error: recipe=ldm: options.model.unet.in_channels=4: the autoencoder has 8" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [False, True])
def test_an_image_that_is_too_large_is_not_told_the_evaluations_key(tmp_path: Path, stream: bool):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    files = [FolderFiles(tmp_path)]
    with pytest.raises(DataError, match=r"large.png: too large: .* pixels; at most \S+ are decoded \(reduce it\)\n"):
        StreamedImages(files, 64, tmp_path).check() if stream else open_pack([tmp_path], tmp_path, 64)
