"""Training data: which files count, how one is decoded, what is refused, and that batches depend on their key alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from lactok.data.batches import (
    CropRange,
    Prefetcher,
    TrainingPictures,
    centre_crop,
    noise_seed,
    picture_of,
    random_crop,
    rng,
    split,
    to_tensor,
)
from lactok.data.pack import open_pack, shrink
from lactok.data.pictures import DataError, decode, list_pictures
from tests.support import pictures

SKIMAGE = Path(skimage.__file__).parent / "data"
CROPS = CropRange(96, 128)


def test_every_readable_picture_is_found_whatever_its_name(tmp_path: Path):
    pictures(tmp_path / "a b" / "c=[d],e", count=2)
    shutil.copy(tmp_path / "a b" / "c=[d],e" / "picture 00.png", tmp_path / "no suffix")
    (tmp_path / "README.md").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    shutil.copy(tmp_path / "no suffix", tmp_path / ".hidden" / "x.png")
    found = [p.relative_to(tmp_path).as_posix() for p in list_pictures(tmp_path)]
    assert found == ["a b/c=[d],e/picture 00.png", "a b/c=[d],e/picture 01.png", "no suffix"]


def test_missing_and_empty_folders_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        list_pictures(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no picture among the 1 file"):
        list_pictures(tmp_path)


def test_decoding_conventions(tmp_path: Path):
    base = np.zeros((20, 30, 3), np.uint8)
    base[:10, :15] = (200, 100, 50)

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to show it upright
    Image.fromarray(base).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "turned.png"), np.rot90(base, 3))

    clear = np.dstack([base, np.full((20, 30), 0, np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (decode(tmp_path / "clear.png") == 255).all()

    Image.fromarray(np.full((4, 4), 65535 // 2, np.uint16)).save(tmp_path / "deep.png")
    assert (decode(tmp_path / "deep.png") == 127).all()

    for mode in ("L", "CMYK", "P", "1"):
        Image.fromarray(base).convert(mode).save(tmp_path / f"{mode}.tif")
        assert decode(tmp_path / f"{mode}.tif").shape == (20, 30, 3)


def test_all_unreadable_pictures_are_listed(tmp_path: Path):
    pictures(tmp_path, count=2)
    whole = (tmp_path / "picture 00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 picture\(s\) can't be read") as caught:
        open_pack(tmp_path, tmp_path / "run", side=64)
    assert "cut.png" in str(caught.value)
    assert "empty.jpg" in str(caught.value)
    assert "picture 0" not in str(caught.value)


@pytest.mark.parametrize("name", ["chelsea.png", "rocket.jpg"])
def test_pictures_of_the_evaluation_set_are_refused(tmp_path: Path, name: str):
    folder = pictures(tmp_path / "data", count=1)
    shutil.copy(SKIMAGE / name, folder / "holiday.dat")  # renamed
    Image.open(SKIMAGE / name).save(folder / "encoded again.webp", lossless=True)
    with pytest.raises(DataError, match="evaluation set") as caught:
        open_pack(folder, tmp_path / "run", side=64)
    assert f"holiday.dat: is {name}" in str(caught.value)
    assert f"encoded again.webp: is {name}" in str(caught.value)
    assert "picture 00" not in str(caught.value)
    assert len(open_pack(folder, tmp_path / "run", side=64, check_held_out=False)) == 3


def test_the_pack_holds_shrunk_pictures_and_is_made_anew_when_they_change(tmp_path: Path):
    folder = pictures(tmp_path / "data", count=3)
    Image.fromarray(np.full((20, 10, 3), 7, np.uint8)).save(folder / "small.png")
    pack = open_pack(folder, tmp_path / "run", side=96)
    assert [p.shape[:2] for p in pack] == [(96, 122)] * 3 + [(20, 10)]
    assert np.array_equal(pack[1], shrink(decode(folder / "picture 01.png"), 96))
    written = (tmp_path / "run" / "pictures.bin").stat().st_mtime_ns
    assert len(open_pack(folder, tmp_path / "run", side=96)) == 4
    assert (tmp_path / "run" / "pictures.bin").stat().st_mtime_ns == written
    (folder / "small.png").unlink()
    assert len(open_pack(folder, tmp_path / "run", side=96)) == 3


def test_every_epoch_shows_each_picture_once():
    for epoch in range(3):
        assert sorted(picture_of(5, epoch * 7 + i, 7) for i in range(7)) == list(range(7))
    assert [picture_of(5, i, 7) for i in range(7)] != [picture_of(5, 7 + i, 7) for i in range(7)]


def test_a_sample_depends_on_seed_step_and_sample_alone(tmp_path: Path):
    pack = open_pack(pictures(tmp_path / "data", count=5), tmp_path / "run", side=150)
    made = TrainingPictures(pack, range(5), CROPS, seed=3, per_step=4)
    one = made.sample(7, 2, 32)
    made.sample(1, 0, 32)
    again = TrainingPictures(pack, range(5), CROPS, seed=3, per_step=4).sample(7, 2, 32)
    assert one.shape == (32, 32, 3)
    assert np.array_equal(one, again)
    others = [made.sample(7, 3, 32), made.sample(8, 2, 32)]
    others.append(TrainingPictures(pack, range(5), CROPS, seed=4, per_step=4).sample(7, 2, 32))
    assert not any(np.array_equal(one, other) for other in others)
    assert len({noise_seed(s, t, i) for s in range(3) for t in range(3) for i in range(3)}) == 27


def test_prefetching_changes_nothing(tmp_path: Path):
    pack = open_pack(pictures(tmp_path / "data", count=5), tmp_path / "run", side=150)
    made = TrainingPictures(pack, range(5), CROPS, seed=3, per_step=4)
    fetcher = Prefetcher(made, workers=2)
    wanted = to_tensor([made.sample(2, i, 48) for i in range(4)])
    fetcher.request(2, 48, range(4))
    assert torch.equal(fetcher.get(2, 48, range(4)), wanted)
    assert torch.equal(fetcher.get(2, 48, range(4)), wanted)  # not requested: made on the spot
    assert not fetcher.waiting
    fetcher.close()
    assert 0 <= wanted.min() < wanted.max() <= 1


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


def test_validation_pictures_do_not_depend_on_order():
    names = [f"p{i}" for i in range(50)]
    training, validation = split(names, 10)
    assert sorted(training + validation) == list(range(50))
    _, backwards = split(names[::-1], 10)
    assert {names[i] for i in validation} == {names[::-1][i] for i in backwards}
