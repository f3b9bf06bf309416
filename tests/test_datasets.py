"""photos and folder: stable lists, every file name, and all that is wrong with a folder told at once."""

import dataclasses
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals.datasets import registry
from evals.datasets.base import BadImages, ChangedImage, DatasetError, DatasetRequest, spread
from evals.datasets.images import make_photos, photos, preflight
from evals.datasets.images.photos import cut, load_source
from evals.datasets.registry import dataset_class, dataset_names
from lactok.images import decode as rules
from lactok.images import folder as folder_module
from lactok.images.folder import list_folder


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with three real images in two levels, a text file and a hidden file."""
    root = tmp_path / "images"
    source = load_source("coffee.png")
    save(root / "b.png", cut(source, 0, 0))
    save(root / "a" / "one.jpg", cut(source, 128, 0))
    save(root / "a" / "TWO.JPEG", cut(source, 256, 128))
    (root / "notes.txt").write_text("none")
    (root / ".hidden.png").write_bytes(b"")
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def open_dataset(name, cache, root=None, **options):
    request = DatasetRequest(cache_dir=cache, root=None if root is None else str(root), **options)
    return registry.open_dataset(name, request)


def open_folder(root, cache, **options):
    return open_dataset("folder", cache, root, **options)


# --- photos


def test_photos_is_what_the_recorded_list_says(cache):
    dataset = open_dataset("photos", cache)
    assert 160 <= len(dataset.items) <= 208
    assert len({s.id for s in dataset.items}) == len(dataset.items)
    assert {s.cluster for s in dataset.items} == {"astronaut", "chelsea", "coffee", "motorcycle_left", "rocket"}
    for item in dataset.items:
        pixels = dataset.read(item)
        assert pixels.shape == (128, 128, 3)
        assert pixels.dtype == np.uint8
        assert photos.pixel_hash(pixels) == item.content_hash
    assert dataset.items[0].id == "astronaut-s1-x000-y000"
    # A changed list changes every committed figure; it must never happen by accident.
    assert dataset.fingerprint == "e1ba65d4c377b5dbd46b21d7e58c083b251aed7c405a9a070c288270a3324cca"


def test_no_photograph_dominates(cache):
    clusters = [s.cluster for s in open_dataset("photos", cache).items]
    assert max(clusters.count(c) for c in set(clusters)) <= len(clusters) / 4
    assert {tile.scale for tile in photos.listed_tiles()} == {1, 2}


def test_the_list_can_be_made_again():
    committed = Path(photos.__file__).with_name("photos.csv").read_text()
    assert make_photos.as_csv(make_photos.make_tiles()) == committed


def test_tiles_are_cut_where_the_list_says(cache):
    dataset = open_dataset("photos", cache)
    tile = next(t for t in photos.listed_tiles() if t.scale == 1 and t.x and t.y)
    item = next(s for s in dataset.items if s.id == tile.id)
    expected = load_source(tile.source)[tile.y : tile.y + 128, tile.x : tile.x + 128]
    assert np.array_equal(dataset.read(item), expected)
    half = next(t for t in photos.listed_tiles() if t.scale == 2 and t.x and t.y)
    whole = load_source(half.source)[2 * half.y : 2 * half.y + 256, 2 * half.x : 2 * half.x + 256].astype(float)
    means = whole.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    item = next(s for s in dataset.items if s.id == half.id)
    assert np.abs(dataset.read(item) - means).max() <= 0.5


def test_near_empty_tiles_are_left_out():
    assert not make_photos.has_content(np.full((128, 128, 3), 90, np.uint8))
    noise = np.random.default_rng(0).normal(128, [[[11.5]], [[12.5]]], (2, 128, 128)).round().astype(np.uint8)
    grey = np.repeat(noise[..., None], 3, axis=-1)
    assert [make_photos.has_content(tile) for tile in grey] == [False, True]


def test_other_pixels_are_told_with_hashes_and_versions(monkeypatch, cache):
    first, *rest = photos.listed_tiles()
    monkeypatch.setattr(photos, "listed_tiles", lambda: (dataclasses.replace(first, sha256="0" * 64), *rest))
    with pytest.raises(DatasetError) as caught:
        open_dataset("photos", cache)
    text = str(caught.value)
    assert "1 of 200 tiles" in text
    for part in (first.id, first.sha256, "0" * 64, photos.MADE_WITH, "Here: scikit-image"):
        assert part in text


def test_a_missing_photograph_is_named(monkeypatch, cache, tmp_path):
    monkeypatch.setattr(photos, "data_folder", lambda: tmp_path)
    with pytest.raises(DatasetError, match=r"astronaut\.png, which scikit-image .* has not brought"):
        open_dataset("photos", cache)
    assert dataset_class("photos").needs().here is False


def test_photos_takes_no_root(cache, tmp_path):
    with pytest.raises(DatasetError, match="dataset=folder"):
        open_dataset("photos", cache, root=tmp_path)


# --- the registry and limits


def test_unknown_name_gives_the_nearest(cache):
    with pytest.raises(DatasetError, match="did you mean 'photos'"):
        open_dataset("photo", cache)
    with pytest.raises(DatasetError, match="unknown dataset"):
        dataset_class("photo")


def test_every_dataset_says_what_it_needs():
    assert {"photos", "folder"} <= set(dataset_names())
    assert all(dataset_class(name).needs().summary for name in dataset_names())
    assert dataset_class("photos").needs().here is True
    assert dataset_class("folder").needs().here is None


def test_datasets_import_no_torch():
    code = "import sys, evals.datasets.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_limit_spreads_keeps_the_order_and_only_adds():
    ids = [tile.id for tile in photos.listed_tiles()]
    few, more = spread(ids, 16), spread(ids, 64)
    assert len(few) == 16
    assert set(few) <= set(more)
    assert few == [i for i in ids if i in set(few)]
    assert len({i.split("-")[0] for i in few}) == 5
    assert spread(ids, 10**6) == spread(ids, None) == ids
    # What is taken does not depend on the order of the list.
    assert set(spread(ids[::-1], 16)) == set(few)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit, cache):
    with pytest.raises(DatasetError, match=f"limit={limit}: expected"):
        open_dataset("photos", cache, limit=limit)


def test_limited_photos(cache):
    dataset = open_dataset("photos", cache, limit=4)
    assert len(dataset.items) == 4
    assert dataset.fingerprint != open_dataset("photos", cache).fingerprint


# --- folder: what is found


def test_folder_lists_recursively_in_order(images, cache):
    dataset = open_folder(images, cache)
    assert [s.id for s in dataset.items] == ["a/TWO.JPEG", "a/one.jpg", "b.png"]
    assert [s.cluster for s in dataset.items] == [s.id for s in dataset.items]
    assert dataset.notes == ["2 other file(s) in the folder left aside: 1 .txt, 1 hidden"]
    assert np.array_equal(dataset.read(dataset.items[2]), cut(load_source("coffee.png"), 0, 0))


NAMES = [
    "with space.png",
    "brackets [1] {2} (3).png",
    "a=b,c'd\"e.png",
    "日本語 картина.png",
    unicodedata.normalize("NFD", "é") + ".png",
    unicodedata.normalize("NFC", "é") + ".png",
    "-dash.png",
    "two\nlines.png",
    "back\\slash.png",
    "#%20&?*.png",
]


def test_any_file_name(tmp_path, cache):
    root = tmp_path / "images [x=1] ünï"
    for value, name in enumerate(NAMES):
        save(root / name, np.full((2, 3, 3), value, np.uint8))
    dataset = open_folder(root, cache)
    assert [s.id for s in dataset.items] == sorted(NAMES)
    assert [int(dataset.read(s)[0, 0, 0]) for s in dataset.items] == [NAMES.index(n) for n in sorted(NAMES)]


def test_a_name_that_is_no_utf8(images, cache):
    os.rename(images / "b.png", os.path.join(os.fsencode(images), b"caf\xe9.png"))
    for _ in range(2):
        dataset = open_folder(images, cache)
        assert "caf\\xe9.png" in [s.id for s in dataset.items]
        assert dataset.fingerprint
        dataset.read(dataset.items[-1])


def test_names_that_look_alike_when_printed_are_two_images(images, cache):
    """A byte that is no UTF-8 beside a name that spells its escape."""
    folder = os.fsencode(images)
    save(images / "a\\xff.png", np.full((4, 4, 3), 10, np.uint8))
    Image.fromarray(np.full((4, 4, 3), 20, np.uint8)).save(images / "other.png")
    os.rename(os.path.join(folder, b"other.png"), os.path.join(folder, b"a\xff.png"))
    Image.fromarray(np.full((4, 4, 3), 30, np.uint8)).save(images / "a\\\\xff.png")
    Image.fromarray(np.full((4, 4, 3), 40, np.uint8)).save(images / "other.png")
    os.rename(os.path.join(folder, b"other.png"), os.path.join(folder, b"a\\\xff.png"))  # a backslash, then the byte
    dataset = open_folder(images, cache)
    assert len({s.id for s in dataset.items}) == len(dataset.items) == 7
    values = {s.id: int(dataset.read(s)[0, 0, 0]) for s in dataset.items if s.id.startswith("a\\")}
    assert values == {"a\\xff.png": 20, "a\\\\xff.png": 10, "a\\\\\\\\xff.png": 30, "a\\\\\\xff.png": 40}


def test_a_relative_folder(images, cache, monkeypatch):
    monkeypatch.chdir(images.parent)
    assert len(open_folder("images", cache).items) == 3


def test_links(images, cache):
    (images / "loop").symlink_to(images, target_is_directory=True)
    (images / "a" / "self.png").symlink_to("self.png")
    (images / "again").symlink_to(images / "a", target_is_directory=True)
    (images / "linked.png").symlink_to(images / "b.png")
    assert sorted(list_folder(images).images) == ["a/TWO.JPEG", "a/one.jpg", "a/self.png", "b.png", "linked.png"]
    with pytest.raises(BadImages) as caught:
        open_folder(images, cache)
    assert [Path(b.path).name for b in caught.value.bad] == ["self.png"]


def test_a_linked_folder_elsewhere_is_followed(images, cache, tmp_path):
    save(tmp_path / "elsewhere" / "c.png", np.zeros((4, 4, 3), np.uint8))
    (images / "link").symlink_to(tmp_path / "elsewhere")
    assert "link/c.png" in [s.id for s in open_folder(images, cache).items]


def test_a_pipe_is_left_aside(images, cache):
    os.mkfifo(images / "pipe.png")
    assert "1 .png" in open_folder(images, cache).notes[0]


def test_the_fingerprint_follows_the_content(images, cache):
    before = open_folder(images, cache).fingerprint
    os.utime(images / "b.png", ns=(1, 1))
    assert open_folder(images, cache).fingerprint == before
    save(images / "b.png", cut(load_source("coffee.png"), 1, 0))
    assert open_folder(images, cache).fingerprint != before


def test_notes_count_kinds(images, cache):
    frames = [Image.new("L", (8, 8), v) for v in (0, 200)]
    for name in ("x.gif", "y.gif"):
        frames[0].save(images / name, save_all=True, append_images=frames[1:])
    Image.new("RGBA", (8, 8), (1, 2, 3, 40)).save(images / "z.png")
    for _ in range(2):  # looked at, then from the index
        notes = open_folder(images, cache).notes
        assert f"2 image(s): {rules.NOTE_FRAMES}" in notes
        assert f"1 image(s): {rules.NOTE_ALPHA}" in notes


def test_files_that_are_images_of_an_unread_format_are_named(images, cache, monkeypatch):
    read = rules.extensions() - rules.HEIF_ENDINGS
    monkeypatch.setattr(rules, "extensions", lambda: read)
    for i in range(3):
        (images / f"{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    notes = open_folder(images, cache).notes
    assert any("3 .heic" in note and "lactok[heif]" in note for note in notes)
    for path in images.rglob("*"):
        if path.is_file() and path.suffix != ".HEIC":
            path.unlink()
    with pytest.raises(DatasetError, match=r"lactok\[heif\]"):
        open_folder(images, cache)


def test_enlarged_images_are_counted(tmp_path, cache):
    root = tmp_path / "sizes"
    for name, size in {"one": (1, 1), "flat": (300, 20), "whole": (64, 64), "large": (80, 90)}.items():
        save(root / f"{name}.png", np.full((size[1], size[0], 3), 5, np.uint8))
    for _ in range(2):  # looked at, then from the index
        (note,) = [n for n in open_folder(root, cache, eval_size=64).notes if "enlarged" in n]
        assert note == "2 image(s) are enlarged to the evaluation size of 64 px, the smallest from 1 x 1"
    assert not any("enlarged" in n for n in open_folder(root, cache, eval_size=1).notes)


def test_the_limit_of_pixels_is_the_runs(tmp_path, cache):
    root = tmp_path / "sizes"
    save(root / "small.png", np.full((9, 9, 3), 5, np.uint8))
    save(root / "large.png", np.full((10, 11, 3), 5, np.uint8))
    assert len(open_folder(root, cache).items) == 2
    with pytest.raises(BadImages, match="at most 100 are decoded"):
        open_folder(root, cache, max_pixels=100)  # what the index says of another limit does not count
    few = open_folder(root, cache, max_pixels=100, on_bad_image="skip")
    assert [item.id for item in few.items] == ["small.png"]
    (item,) = [item for item in open_folder(root, cache, max_pixels=110).items if item.id == "large.png"]
    assert open_folder(root, cache, max_pixels=110).read(item).shape == (10, 11, 3)
    with pytest.raises(DatasetError, match="max_pixels"):
        open_dataset("photos", cache, max_pixels=100)


def test_sizes_at_both_ends(tmp_path, cache):
    root = tmp_path / "sizes"
    save(root / "one.png", np.full((1, 1, 3), 5, np.uint8))
    save(root / "wide.png", np.full((15, 20_000, 3), 5, np.uint8))
    dataset = open_folder(root, cache)
    assert [dataset.read(s).shape for s in dataset.items] == [(1, 1, 3), (15, 20_000, 3)]


# --- folder: what is wrong


@pytest.fixture
def spoiled(images) -> Path:
    whole = (images / "a" / "one.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "a" / "empty.png").write_bytes(b"")
    (images / "page.png").write_text("<html>404</html>")
    (images / "broken link.png").symlink_to(images / "absent.png")
    return images


def test_all_bad_files_are_listed_at_once(spoiled, cache):
    with pytest.raises(BadImages) as caught:
        open_folder(spoiled, cache)
    found = {str(Path(b.path).relative_to(spoiled)): b.reason for b in caught.value.bad}
    assert list(found) == ["a/empty.png", "broken link.png", "cut.jpg", "page.png"]
    assert found["a/empty.png"] == "the file is empty (0 bytes)"
    assert "No such file" in found["broken link.png"]
    assert "can't be decoded whole: image file is truncated" in found["cut.jpg"]
    assert "not an image in a format" in found["page.png"]
    text = str(caught.value)
    assert text.startswith("4 image(s) can't be read")
    assert all(b.path in text for b in caught.value.bad)
    assert "on_bad_image=skip" in text


def test_skip_leaves_them_out_and_says_which(spoiled, cache):
    dataset = open_folder(spoiled, cache, on_bad_image="skip")
    assert [s.id for s in dataset.items] == ["a/TWO.JPEG", "a/one.jpg", "b.png"]
    assert [Path(b.path).name for b in dataset.left_out] == ["empty.png", "broken link.png", "cut.jpg", "page.png"]


def test_nothing_but_bad_images(tmp_path, cache):
    root = tmp_path / "bad"
    root.mkdir()
    (root / "x.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"none of the 1 images in .*bad can be read; the first: .*x\.png"):
        open_folder(root, cache, on_bad_image="skip")


def test_an_empty_folder(tmp_path, cache):
    root = tmp_path / "nothing"
    root.mkdir()
    with pytest.raises(DatasetError, match=r"no images in .*nothing: found no files at all.*\.png") as caught:
        open_folder(root, cache)
    assert ".jpg" in str(caught.value)


def test_a_folder_without_images_says_what_it_holds(tmp_path, cache):
    for name in ("a.txt", "b.txt", "c.tar.gz", "d"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DatasetError, match=r"4 other file\(s\): 2 \.txt, 1 \.gz, 1 without an ending"):
        open_folder(tmp_path, cache)


def test_no_such_folder(tmp_path, cache):
    with pytest.raises(DatasetError, match=r"dataset\.root=.*absent does not exist"):
        open_folder(tmp_path / "absent", cache)
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="is a file: name the folder"):
        open_folder(tmp_path / "file.png", cache)
    with pytest.raises(DatasetError, match=r"dataset\.root=DIR"):
        open_folder(None, cache)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_permission_denied(images, cache):
    (images / "b.png").chmod(0)
    (images / "a").chmod(0)
    with pytest.raises(BadImages) as caught:
        open_folder(images, cache)
    assert [b.reason.split(":")[0] for b in caught.value.bad] == ["can't be read", "folder can't be listed"]


def test_a_folder_that_cannot_be_listed_is_bad(images, cache, monkeypatch):
    real = os.scandir

    def scandir(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(folder_module.os, "scandir", scandir)
    with pytest.raises(BadImages, match="folder can't be listed: Permission denied"):
        open_folder(images, cache)


def test_a_file_that_changes_during_the_run_is_noticed(images, cache):
    dataset = open_folder(images, cache)
    save(images / "b.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"b\.png has changed"):
        dataset.read(dataset.items[2])
    (images / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"b\.png: can't be read"):
        dataset.read(dataset.items[2])


# --- folder: the index


def checks(monkeypatch) -> list[str]:
    """The names of the files that are looked at from now on."""
    seen: list[str] = []
    real = preflight.check
    monkeypatch.setattr(preflight, "check", lambda path, how: seen.append(path.name) or real(path, how))
    return seen


def test_a_second_run_looks_at_what_changed_only(spoiled, cache, monkeypatch):
    first = open_folder(spoiled, cache, on_bad_image="skip")
    seen = checks(monkeypatch)
    (spoiled / "broken link.png").unlink()  # never kept: it may be there the next time
    second = open_folder(spoiled, cache, on_bad_image="skip")
    assert seen == []
    assert second.fingerprint == first.fingerprint
    assert [b.reason for b in second.left_out] == [b.reason for b in first.left_out if "No such file" not in b.reason]
    save(spoiled / "b.png", np.zeros((4, 4, 3), np.uint8))
    open_folder(spoiled, cache, on_bad_image="skip")
    assert seen == ["b.png"]
    os.utime(spoiled / "a" / "one.jpg", ns=(1, 1))  # the same size, another time of change
    open_folder(spoiled, cache, on_bad_image="skip")
    assert seen == ["b.png", "one.jpg"]


@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_a_file_of_the_same_size_and_time_is_looked_at_again(images, cache, monkeypatch, how):
    """What `cp -p`, `rsync -t` and `tar x` leave behind: other content, the old time of change."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(images / "b.bmp")
    first = open_folder(images, cache)
    stat = (images / "b.bmp").stat()
    time.sleep(0.02)  # beyond the tick of the file system's clock
    if how == "in place":
        Image.fromarray(pixels + 9).save(images / "b.bmp")
    else:
        Image.fromarray(pixels + 9).save(images / "new.bmp")
        os.replace(images / "new.bmp", images / "b.bmp")
    os.utime(images / "b.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (images / "b.bmp").stat().st_size == stat.st_size
    seen = checks(monkeypatch)
    second = open_folder(images, cache)
    assert seen == ["b.bmp"]
    assert second.fingerprint != first.fingerprint
    assert [int(second.read(s)[0, 0, 0]) for s in second.items if s.id == "b.bmp"] == [9]


def test_an_index_that_proves_wrong_is_dropped(images, cache, monkeypatch):
    """A file system whose stamps tell nothing: the content tells, and the next opening has it right."""
    monkeypatch.setattr("evals.datasets.images.preflight.file_stamp", lambda path: (1, 2, 3, 4))
    open_folder(images, cache)
    save(images / "b.png", np.zeros((4, 4, 3), np.uint8))
    stale = open_folder(images, cache)
    (item,) = (s for s in stale.items if s.id == "b.png")
    with pytest.raises(ChangedImage, match=r"b\.png"):
        stale.read(item)
    right = open_folder(images, cache)
    (item,) = (s for s in right.items if s.id == "b.png")
    assert right.read(item).shape == (4, 4, 3)


def test_other_rules_or_another_pillow_look_again(images, cache, monkeypatch):
    open_folder(images, cache)
    seen = checks(monkeypatch)
    monkeypatch.setattr(preflight, "VERSION", rules.VERSION + 1)
    open_folder(images, cache)
    assert len(seen) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"rules": 1}', b"\xff\xfe"])
def test_a_damaged_index_is_made_anew(images, cache, monkeypatch, damage):
    open_folder(images, cache)
    (index,) = cache.iterdir()
    whole = index.read_bytes()
    index.write_bytes(damage)
    open_folder(images, cache)
    assert index.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_note(images, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    dataset = open_folder(images, blocked / "cache")
    assert len(dataset.items) == 3
    assert "index of checked images was not kept" in dataset.notes[-1]


def test_a_limited_run_looks_at_its_own_images_only(images, cache, monkeypatch):
    seen = checks(monkeypatch)
    dataset = open_folder(images, cache, limit=1)
    assert seen == [Path(dataset.items[0].id).name]
    open_folder(images, cache)
    assert len(seen) == 3


def test_ctrl_c_keeps_what_was_checked(images, cache, monkeypatch):
    real = preflight.check

    def check(path, how):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return real(path, how)

    with monkeypatch.context() as patch:
        patch.setattr(preflight, "MAX_THREADS", 1)
        patch.setattr(preflight, "check", check)
        with pytest.raises(KeyboardInterrupt):
            open_folder(images, cache)
    seen = checks(monkeypatch)
    open_folder(images, cache)
    assert "b.png" in seen
    assert len(seen) < 3
