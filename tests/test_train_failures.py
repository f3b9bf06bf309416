"""What goes wrong while a run is set up or trains: each is said in one line, and what was finished is kept."""

from __future__ import annotations

import errno
import io
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from baselines.tokenizers.llamagen.objective import VQRecipe
from lactok.data import pack
from lactok.data.folder import DataError
from lactok.data.pack import open_pack
from lactok.data.sources import FolderFiles
from lactok.data.stream import StreamedImages
from lactok.files import WriteError
from lactok.train.__main__ import main
from lactok.train.checkpoints import CheckpointFolder
from lactok.train.config import TrainConfigError, compose_config
from lactok.train.data import ImageData
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


def test_a_signal_while_a_run_saves_does_not_end_the_save(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save = CheckpointFolder.save

    def interrupted(self, step, write):
        os.kill(os.getpid(), signal.SIGINT)
        return save(self, step, write)

    monkeypatch.setattr(CheckpointFolder, "save", interrupted)
    outcome = train(settings(data, tmp_path / "run", steps=2, stop_after_minutes=0.0), VQRecipe)
    assert (outcome.finished, outcome.step, outcome.reason) == (False, 1, "stop_after_minutes=0")
    assert outcome.export is not None
    assert outcome.export.is_file()
    outcome = train(settings(data, tmp_path / "run", steps=2), VQRecipe)
    assert (outcome.finished, outcome.step, outcome.reason) == (True, 2, "SIGINT")


def test_what_others_put_among_the_checkpoints_is_left_alone(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    good = folder.save(1, lambda partial: (partial / "a").write_bytes(b"1"))
    for name in (".DS_Store", ".nfs000000000001", ".partial-note"):
        (folder.root / name).write_bytes(b"x")
    for name in (".partial-00000002", ".removed-step-00000000", ".joint", ".snapshot"):
        (folder.root / name).mkdir()
        (folder.root / name / "a").write_bytes(b"1")
    folder.clean()
    left = sorted(path.name for path in folder.root.iterdir())
    assert left == [".DS_Store", ".nfs000000000001", ".partial-note", ".snapshot", good.name]
    assert (folder.all(), folder.damaged()) == ([good], [])


@pytest.mark.parametrize("recipe", ["vq", "titok", "seed"])
def test_a_look_at_the_codebook_every_zero_steps_is_refused(recipe: str):
    with pytest.raises(TrainConfigError, match="options: revive_every=0: expected a whole number of at least 1"):
        compose_config([f"recipe={recipe}", "dry_run=true", "options.revive_every=0"])


class Decoded:
    """Counts what is decoded for a pack."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self._prepare = 0, pack._prepare
        patch.setattr(pack, "_prepare", self)

    def __call__(self, *given):
        prepared = self._prepare(*given)
        self.count += 1
        return prepared


def copies(folder: Path, count: int) -> Path:
    """So many small images; each tenth is smaller."""
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (9 if i % 10 else 8, 8), (i, 255 - i, 7)).save(folder / f"{i:03}.png")
    return folder


def test_a_disk_that_is_full_stops_the_decoding_of_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, decoded = copies(tmp_path / "images", 200), Decoded(monkeypatch)

    class Full(io.BytesIO):
        def write(self, data) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pack, "open", lambda path, mode: Full(), raising=False)
    monkeypatch.setattr(pack, "_BLOCK", 20, raising=False)
    with pytest.raises(WriteError, match="the disk is full"):
        open_pack([images], tmp_path / "run", 64, workers=1)
    assert decoded.count <= 20


def test_a_pack_is_the_same_whatever_is_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = copies(tmp_path / "images", 23)
    content = []
    for block in (256, 23, 5):
        monkeypatch.setattr(pack, "_BLOCK", block)
        open_pack([images], tmp_path / f"run {block}", 64)
        content.append([(tmp_path / f"run {block}" / name).read_bytes() for name in (pack.DATA, pack.INDEX)])
    assert content[0] == content[1] == content[2]
    pixels = [np.asarray(Image.open(path)).tobytes() for path in sorted(images.iterdir())]
    assert content[0][0] == b"".join(pixels)


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_what_leaves_out_images_of_a_folder_is_named_to_who_asked_for_it(tmp_path: Path, on_bad: str):
    images = copies(tmp_path / "images", 3)
    (images / "001.png").write_bytes(b"no")
    config = settings(images, tmp_path / "run")
    config = replace(config, data=replace(config.data, on_bad_image=on_bad))
    with pytest.raises(DataError, match=r"001\.png: .*\nRepair or remove them") as caught:
        ImageData.open(config)
    assert ("train without them by data.stream=true" in str(caught.value)) == (on_bad == "skip")
    skipping = replace(config, data=replace(config.data, on_bad_image="skip", stream=True))
    assert len(ImageData.open(skipping)) == 3
