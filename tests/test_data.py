"""Training data: which files count, how one is decoded, what is refused, and that batches depend on their key alone."""

import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from lactok.data.batches import (
    BLOCK,
    CropRange,
    SampleOrder,
    StepBatches,
    StepPlan,
    ThreadedBatches,
    TrainingImages,
    WorkerBatches,
    by_folder,
    centre_crop,
    image_of,
    noise_seed,
    random_crop,
    rng,
    split,
    to_tensor,
)
from lactok.data.folder import DataError, list_images
from lactok.data.pack import open_pack, shrink
from lactok.images.decode import decode
from lactok.train.data import ImageData
from lactok.train.dry_run import look_at_data
from tests.support import pictures

SKIMAGE = Path(skimage.__file__).parent / "data"
CROPS = CropRange(96, 128)


def test_every_readable_image_is_found_whatever_its_name(tmp_path: Path):
    pictures(tmp_path / "a b" / "c=[d],e", count=2)
    shutil.copy(tmp_path / "a b" / "c=[d],e" / "picture 00.png", tmp_path / "no suffix")
    (tmp_path / "README.md").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    shutil.copy(tmp_path / "no suffix", tmp_path / ".hidden" / "x.png")
    found = list(list_images(tmp_path))
    assert found == ["a b/c=[d],e/picture 00.png", "a b/c=[d],e/picture 01.png", "no suffix"]


def test_missing_and_empty_folders_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no image among the 1 file.*1 \.txt"):
        list_images(tmp_path)


def test_a_process_that_gets_a_new_pack_reads_it(tmp_path: Path):
    """The one that made it, too, has it under its last name, by which the others map it."""
    folder = tmp_path / "data"
    pictures(folder, count=3)
    pack = open_pack([folder], tmp_path / "run", side=64)
    there = pickle.loads(pickle.dumps(pack))
    assert all((there[i] == pack[i]).all() for i in range(len(pack)))


def test_the_pack_is_decoded_as_evaluation_decodes(tmp_path: Path):
    """One decoder: a 16-bit grey sample is scaled, one that is marked transparent is white, and alpha is over white."""
    folder = tmp_path / "data"
    folder.mkdir()
    grey = np.full((4, 4), 65535 // 2, np.uint16)
    grey[0, 0] = 300
    Image.fromarray(grey).save(folder / "a.png", transparency=300)
    Image.fromarray(np.full((4, 4, 4), (9, 9, 9, 0), np.uint8)).save(folder / "b.png")
    pack = open_pack([folder], tmp_path / "run", side=64)
    assert pack.index.names == ["a.png", "b.png"]
    assert pack[0][0, 0].tolist() == [255, 255, 255]
    assert (pack[0][1:] == 127).all()
    assert (pack[1] == 255).all()
    for place, name in enumerate(pack.index.names):
        assert np.array_equal(pack[place], decode(folder / name).pixels)


def test_linked_class_folders_are_searched(tmp_path: Path):
    pictures(tmp_path / "elsewhere", count=2)
    root = tmp_path / "data"
    root.mkdir()
    (root / "cups").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    assert list(list_images(root)) == ["cups/picture 00.png", "cups/picture 01.png"]
    assert len(open_pack([root], tmp_path / "run", side=64)) == 2


def test_a_name_that_is_no_utf8_can_be_trained_on(tmp_path: Path):
    folder = pictures(tmp_path / "data", count=2)
    os.rename(folder / "picture 00.png", os.path.join(os.fsencode(folder), b"caf\xe9.png"))
    for _ in range(2):  # packed, then opened again
        pack = open_pack([folder], tmp_path / "run", side=64)
        assert pack.index.names == ["caf\\xe9.png", "picture 01.png"]
    training, validation = split(pack.index.names, 1)
    assert sorted(training + validation) == [0, 1]
    assert ImageData(pack).fingerprint


def test_float_and_damaged_files_are_named_and_nothing_goes_black(tmp_path: Path):
    folder = pictures(tmp_path / "data", count=1)
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(folder / "float.tif")
    Image.new("P", (8, 8)).save(folder / "whole.blp")
    whole = (folder / "whole.blp").read_bytes()
    (folder / "other.blp").write_bytes(whole[:4] + b"\7" + whole[5:])  # a compression that there is not
    (folder / "broken link.png").symlink_to(folder / "absent.png")
    with pytest.raises(DataError, match=r"image\(s\) can't be read") as caught:
        open_pack([folder], tmp_path / "run", side=64)
    text = str(caught.value)
    (folder / "broken link.png").unlink()
    with pytest.raises(DataError, match=r"2 image\(s\) can't be read") as caught:
        open_pack([folder], tmp_path / "run", side=64)
    lines = str(caught.value).splitlines()
    assert "broken link.png: can't be read: No such file" in text
    assert [Path(line.split(": ")[0]).name for line in lines[1:3]] == ["float.tif", "other.blp"]
    assert "no stated range" in lines[1]
    assert "can't be decoded whole: Unknown BLP compression 7" in lines[2]
    with pytest.raises(DataError, match=r"float\.tif"):
        look_at_data([str(folder)])


def test_images_stand_folder_by_folder(tmp_path: Path):
    """The order of a pack determines what is drawn from it; that of earlier packs was the order of paths."""
    for name in ("a", "a b", "a/b", "b"):
        pictures(tmp_path / name, count=1)
    found = list(list_images(tmp_path))
    assert found == [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*.png"))]
    assert found.index("a/picture 00.png") < found.index("a b/picture 00.png")


def test_a_pack_is_made_anew_when_a_file_is_replaced_with_its_old_time(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / "a.bmp"
    Image.fromarray(np.full((8, 8, 3), 10, np.uint8)).save(file)
    assert open_pack([folder], tmp_path / "run", side=64)[0][0, 0, 0] == 10
    stat = file.stat()
    time.sleep(0.02)  # beyond the tick of the file system's clock
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_pack([folder], tmp_path / "run", side=64)[0][0, 0, 0] == 90


def test_all_unreadable_images_are_listed(tmp_path: Path):
    pictures(tmp_path, count=2)
    whole = (tmp_path / "picture 00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 image\(s\) can't be read") as caught:
        open_pack([tmp_path], tmp_path / "run", side=64)
    assert "cut.png" in str(caught.value)
    assert "empty.jpg" in str(caught.value)
    assert "picture 0" not in str(caught.value)


@pytest.mark.parametrize("name", ["chelsea.png", "rocket.jpg"])
def test_images_of_the_evaluation_set_are_refused(tmp_path: Path, name: str):
    folder = pictures(tmp_path / "data", count=1)
    shutil.copy(SKIMAGE / name, folder / "holiday.dat")  # renamed
    Image.open(SKIMAGE / name).save(folder / "encoded again.webp", lossless=True)
    with pytest.raises(DataError, match="evaluation set") as caught:
        open_pack([folder], tmp_path / "run", side=64)
    assert f"holiday.dat: is {name}" in str(caught.value)
    assert f"encoded again.webp: is {name}" in str(caught.value)
    assert "picture 00" not in str(caught.value)
    assert len(open_pack([folder], tmp_path / "run", side=64, check_held_out=False)) == 3


def test_the_pack_holds_shrunk_images_and_is_made_anew_when_they_change(tmp_path: Path):
    folder = pictures(tmp_path / "data", count=3)
    Image.fromarray(np.full((20, 10, 3), 7, np.uint8)).save(folder / "small.png")
    pack = open_pack([folder], tmp_path / "run", side=96)
    assert [p.shape[:2] for p in pack] == [(96, 122)] * 3 + [(20, 10)]
    assert np.array_equal(pack[1], shrink(decode(folder / "picture 01.png").pixels, 96))
    written = (tmp_path / "run" / "images.bin").stat().st_mtime_ns
    assert len(open_pack([folder], tmp_path / "run", side=96)) == 4
    assert (tmp_path / "run" / "images.bin").stat().st_mtime_ns == written
    (folder / "small.png").unlink()
    assert len(open_pack([folder], tmp_path / "run", side=96)) == 3


def test_a_pack_that_is_made_anew_leaves_the_old_one_to_those_who_have_it_mapped(tmp_path: Path):
    folder = pictures(tmp_path / "data", count=3)
    before = open_pack([folder], tmp_path / "run", side=96)
    pixels = [before[i].copy() for i in range(3)]
    (folder / "picture 00.png").unlink()
    after = open_pack([folder], tmp_path / "run", side=96)
    assert (len(after), len(before)) == (2, 3)
    assert all(np.array_equal(before[i], pixels[i]) for i in range(3))
    assert np.array_equal(after[0], pixels[1])


def test_a_pack_that_cannot_be_made_leaves_the_old_one_whole(tmp_path: Path):
    folder, run = pictures(tmp_path / "data", count=2), tmp_path / "run"
    before = open_pack([folder], run, side=96)
    pixels = before[1].copy()
    (folder / "cut.png").write_bytes((folder / "picture 00.png").read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.png"):
        open_pack([folder], run, side=96)
    (folder / "cut.png").unlink()
    written = (run / "images.bin").stat().st_mtime_ns
    assert np.array_equal(open_pack([folder], run, side=96)[1], pixels)
    assert (run / "images.bin").stat().st_mtime_ns == written, "the old pack still serves"
    assert not list(run.glob("*.tmp"))


def test_a_damaged_pack_is_made_anew(tmp_path: Path):
    folder, run = pictures(tmp_path / "data", count=2), tmp_path / "run"
    pixels = open_pack([folder], run, side=96)[1].copy()
    os.truncate(run / "images.bin", 1000)
    assert np.array_equal(open_pack([folder], run, side=96)[1], pixels)
    (run / "images.json").write_text("{")
    assert np.array_equal(open_pack([folder], run, side=96)[1], pixels)


def test_every_epoch_shows_each_image_once():
    for epoch in range(3):
        assert sorted(image_of(5, epoch * 7 + i, 7) for i in range(7)) == list(range(7))
    assert [image_of(5, i, 7) for i in range(7)] != [image_of(5, 7 + i, 7) for i in range(7)]


def test_a_sample_depends_on_seed_step_and_sample_alone(tmp_path: Path):
    pack = open_pack([pictures(tmp_path / "data", count=5)], tmp_path / "run", side=150)
    made = TrainingImages(pack, SampleOrder([range(5)], 3), CROPS, per_step=4)
    one = made.sample(7, 2, 32)
    made.sample(1, 0, 32)
    again = TrainingImages(pack, SampleOrder([range(5)], 3), CROPS, per_step=4).sample(7, 2, 32)
    assert one.shape == (32, 32, 3)
    assert np.array_equal(one, again)
    others = [made.sample(7, 3, 32), made.sample(8, 2, 32)]
    others.append(TrainingImages(pack, SampleOrder([range(5)], 4), CROPS, per_step=4).sample(7, 2, 32))
    assert not any(np.array_equal(one, other) for other in others)
    assert len({noise_seed(s, t, i) for s in range(3) for t in range(3) for i in range(3)}) == 27


@pytest.mark.parametrize("make", [ThreadedBatches, WorkerBatches])
def test_making_batches_ahead_changes_nothing(tmp_path: Path, make: type[StepBatches]):
    """Two micro-batches a step; images of the third step on are larger; begun in the middle, as a resumed run does."""
    pack = open_pack([pictures(tmp_path / "data", count=5)], tmp_path / "run", side=150)
    images = TrainingImages(pack, SampleOrder([range(5)], 3), CROPS, per_step=4)
    plan = StepPlan((range(0, 2), range(2, 4)), 5, lambda step: 48 if step < 3 else 64)
    ahead = make(images, plan)
    for step in range(1, 5):
        made = ahead.at(step)
        size = plan.size_at(step)
        assert torch.equal(torch.cat(made), to_tensor([images.sample(step, i, size) for i in range(4)]))
        assert [batch.is_contiguous(memory_format=torch.channels_last) for batch in made] == [True, True]
        assert 0 <= made[0].min() < made[0].max() <= 1
    ahead.close()


def test_the_folder_of_a_sample_is_drawn_by_its_weight(tmp_path: Path):
    folders = [pictures(tmp_path / name, count=count) for name, count in (("a", 3), ("b", 6), ("c", 2))]
    pack = open_pack(folders, tmp_path / "run", side=64)
    assert pack.index.counts == [3, 6, 2]
    assert [name.split("/")[0] for name in pack.index.names] == ["0"] * 3 + ["1"] * 6 + ["2"] * 2
    training, held_back = split(pack.index.names, 2)
    indices = by_folder(training, pack.index.counts)
    assert sorted(index for part in indices for index in part) == training
    assert all(set(part) <= set(range(*ends)) for part, ends in zip(indices, ((0, 3), (3, 9), (9, 11))))
    order = SampleOrder(indices, 1, weights=(1, 2, 7))
    chosen = [order.at(position) for position in range(2000)]
    shares = [sum(image in part for image in chosen) / 2000 for part in indices]
    assert shares == pytest.approx([0.1, 0.2, 0.7], abs=0.03)
    assert set(chosen) == set(training), "every image comes, and none that is held back"
    assert not set(chosen) & set(held_back)


def test_no_image_of_a_weighted_folder_comes_again_before_all_have_come():
    folders = [range(1000), range(1000, 1500)]
    order = SampleOrder(folders, 1, weights=(0.8, 0.2))
    chosen = [order.at(position) for position in range(BLOCK)]
    for folder, share in zip(folders, (0.8, 0.2)):
        own = [image for image in chosen if image in folder]
        assert len(own) == share * BLOCK
        for start in range(0, len(own) - len(folder) + 1, len(folder)):
            assert len(set(own[start : start + len(folder)])) == len(folder)
    assert [order.at(position) for position in (7, BLOCK + 3, 7)] == [chosen[7], order.at(BLOCK + 3), chosen[7]]
    rare = SampleOrder([range(5), range(5, 9), range(9, 20)], 1, weights=(1e-9, 1, 3))
    seen = [rare.at(position) for position in range(BLOCK)]
    assert sum(image < 5 for image in seen) == 1, "a folder with a weight is never left out"


def test_crops_stay_inside_and_reach_both_ends():
    height, width = 100, 260
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(width) % 256, np.arange(height)[:, None]
    sides = []
    for i in range(300):
        cut = random_crop(ramp, 64, CropRange(64, 64), rng(i))  # 64 of 64: nothing is resampled
        assert cut.shape == (64, 64, 3)
        steps = np.diff(cut[0, :, 0].astype(int))
        sides.append(steps[0])
        assert cut[0, 0, 1] <= height - 64
    assert 100 < sum(s == 1 for s in sides) < 200, "about half are mirrored"
    assert random_crop(ramp[:5, :9], 64, CROPS, rng(1)).shape == (64, 64, 3)
    assert np.array_equal(centre_crop(ramp, 64, 64), ramp[18:82, 98:162])


def test_validation_images_do_not_depend_on_order():
    names = [f"p{i}" for i in range(50)]
    training, validation = split(names, 10)
    assert sorted(training + validation) == list(range(50))
    _, backwards = split(names[::-1], 10)
    assert {names[i] for i in validation} == {names[::-1][i] for i in backwards}
