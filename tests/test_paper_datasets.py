"""The paper's datasets, on tiny twins: one set of ids and pixels whatever holds it, and nothing counted silently."""

import gzip
import json
import math
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.__main__ import main
from evals.cli.data import paper_datasets
from evals.config import ConfigError, compose_config
from evals.datasets import registry
from evals.datasets.base import BadImages, DataError, DatasetError, DatasetRequest, MissingData
from evals.datasets.images import coco, mjhq
from evals.datasets.images.coco import CocoVal2017
from evals.datasets.images.imagenet import ImageNetVal
from evals.datasets.images.mjhq import MJHQ5K
from evals.datasets.images.sources import base, shards, tarred
from evals.datasets.images.sources.shards import ParquetSource
from evals.datasets.images.sources.tarred import TarSource, expand
from evals.datasets.images.sources.zipped import ZipSource
from evals.datasets.registry import dataset_class, dataset_names
from evals.engine import run as engine
from lactok.images import tars
from lactok.images.decode import decode
from tests import twins

PAPER = paper_datasets()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def open_dataset(name, cache, root=None, **options):
    request = DatasetRequest(cache_dir=cache, root=None if root is None else str(root), **options)
    return registry.open_dataset(name, request)


def open_twin(name, root, cache, expect=twins.COUNT, **options):
    return open_dataset(name, cache, root, expect=expect, **options)


# --- one dataset, whatever holds it


@pytest.mark.parametrize("form", ["flat", "classes", "tar", "tar.gz", "parquet"])
def test_imagenet_is_the_same_from_every_container(form, tmp_path, cache):
    dataset = open_twin("imagenet-val", twins.imagenet(tmp_path / "in", form), cache)
    assert [s.id for s in dataset.items] == [f"ILSVRC2012_val_{i + 1:08d}" for i in range(twins.COUNT)]
    for i, item in enumerate(dataset.items):
        assert np.array_equal(dataset.read(item), decode(twins.jpeg(i)).pixels)
    reference = open_twin("imagenet-val", twins.imagenet(tmp_path / "reference", "flat"), cache)
    assert dataset.fingerprint == reference.fingerprint
    assert any("a part of imagenet-val, which has 50,000" in note for note in dataset.notes)


@pytest.mark.parametrize("name", ["coco-val2017", "mjhq-5k"])
def test_zip_and_folder_are_the_same(name, tmp_path, cache):
    make, expect = {"coco-val2017": (twins.coco, 12), "mjhq-5k": (twins.mjhq, 20)}[name]
    both = [open_twin(name, make(tmp_path / form, form), cache, expect) for form in ("zip", "folder")]
    assert len(both[0].items) == expect
    assert both[0].fingerprint == both[1].fingerprint
    for one, other in zip(both[0].items, both[1].items):
        assert np.array_equal(both[0].read(one), both[1].read(other))


def test_the_archive_itself_may_be_the_root(tmp_path, cache):
    root = twins.coco(tmp_path, "zip")
    a, b = (open_twin("coco-val2017", place, cache) for place in (root, root / "val2017.zip"))
    assert a.fingerprint == b.fingerprint


def test_ids_are_of_the_name_alone():
    assert ImageNetVal.item_id("val/n01440764/ILSVRC2012_val_00000293.JPEG") == "ILSVRC2012_val_00000293"
    assert ImageNetVal.item_id("ILSVRC2012_val_00000293_n01440764.JPEG") == "ILSVRC2012_val_00000293"
    assert CocoVal2017.item_id("val2017/000000000139.jpg") == "000000000139"
    assert MJHQ5K.item_id("top/people/0a.jpg") == "people/0a"
    for other in ("train/n01440764_10026.JPEG", "000000000139.txt", ".hidden/000000000139.jpg", "139.jpg", "x/0a.jpg"):
        assert not any(cls.item_id(other) for cls in (ImageNetVal, CocoVal2017, MJHQ5K)), other


def test_one_image_twice_is_refused(tmp_path, cache):
    root = twins.coco(tmp_path, "folder")
    twins.write_folder(root / "val2017" / "copy", {"000000000139.jpg": twins.jpeg(5)})
    with pytest.raises(DataError, match="are the same image 000000000139"):
        open_twin("coco-val2017", root, cache)


def test_a_wrong_number_stops_unless_a_part_is_wanted(tmp_path, cache):
    root = twins.coco(tmp_path, "zip")
    with pytest.raises(DatasetError, match=r"12 images, expected 5,000.*limit=N.*dataset\.expect=N"):
        open_twin("coco-val2017", root, cache, None)
    limited = open_twin("coco-val2017", root, cache, None, limit=4)
    assert len(limited.items) == 4
    assert "not the whole of coco-val2017: 12 images, expected 5,000" in limited.notes
    with pytest.raises(DatasetError, match="expected 13"):
        open_twin("coco-val2017", root, cache, 13)
    with pytest.raises(DatasetError, match="photos has no number"):
        open_dataset("photos", cache, expect=3)


def test_bad_images_are_named_together_or_left_out(tmp_path, cache):
    files = twins.coco_files()
    names = list(files)
    files[names[2]], files[names[5]] = files[names[2]][:300], b""
    twins.write_zip(tmp_path / "val2017.zip", files)
    with pytest.raises(BadImages) as caught:
        open_twin("coco-val2017", tmp_path, cache)
    assert [b.path.rsplit(": ", 1)[1] for b in caught.value.bad] == [names[2], names[5]]
    dataset = open_twin("coco-val2017", tmp_path, cache, on_bad_image="skip")
    assert (len(dataset.items), len(dataset.left_out)) == (10, 2)


def test_a_image_that_changes_during_the_run_is_noticed(tmp_path, cache):
    root = twins.coco(tmp_path, "folder")
    dataset = open_twin("coco-val2017", root, cache)
    (root / "val2017" / "000000000139.jpg").write_bytes(twins.jpeg(7))
    with pytest.raises(DatasetError, match="has changed since the run began"):
        dataset.read(dataset.items[0])


@pytest.mark.parametrize("name", PAPER)
def test_missing_data_say_what_to_place_where(name, tmp_path, cache):
    with pytest.raises(MissingData, match=r"dataset\.root=DIR"):
        open_dataset(name, cache)
    with pytest.raises(MissingData, match=r"looked for .*no such folder") as caught:
        open_dataset(name, cache, tmp_path / "absent")
    assert PAPER[name].obtain in str(caught.value)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MissingData, match="none of them named as its images"):
        open_dataset(name, cache, tmp_path)
    assert name in dataset_names()
    assert f"{PAPER[name].expected:,}" in dataset_class(name).needs().summary


def test_a_file_of_another_kind_is_no_root(tmp_path, cache):
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(DatasetError, match=r"expected a folder, \.zip"):
        open_twin("coco-val2017", tmp_path / "x.rar", cache)


# --- COCO's captions, MJHQ's draw


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_captions(form, tmp_path):
    captions = coco.captions(twins.coco(tmp_path, form))
    assert len(captions) == 24
    assert captions[0] == coco.Caption(0, "000000000139", "A photograph, number 0.")
    assert captions[1].text == "A later caption of 0."
    assert coco.captions(tmp_path / "absent") == []


def test_a_damaged_captions_file_is_named(tmp_path):
    (tmp_path / "captions_val2017.json").write_text('{"annotations": [{"id": 1}]}')
    with pytest.raises(DataError, match=r"captions_val2017\.json is no COCO captions file"):
        coco.captions(tmp_path)


def test_the_draw_depends_on_names_only_and_is_fixed():
    ids = [f"{category}/{i:05d}" for category in mjhq.CATEGORIES for i in range(3000)]
    drawn = mjhq.draw(ids, 500)
    assert drawn == mjhq.draw(reversed(ids), 500) == sorted(drawn)
    assert [sum(i.startswith(f"{c}/") for i in drawn) for c in mjhq.CATEGORIES] == [500] * 10
    assert set(mjhq.draw(ids, 100)) < set(drawn)
    # A changed rule changes every figure on MJHQ-5K; these are the smallest sha256 of "00000" to "02999".
    assert mjhq.draw(ids[:3000], 3) == ["animals/00679", "animals/01870", "animals/02832"]


def test_another_list_of_names_is_not_the_fixed_draw(tmp_path):
    """Of 30,000 names, too: the published file is pinned by its sha256."""
    names = {f"{category}/{i:05d}": {"category": category} for category in mjhq.CATEGORIES for i in range(3000)}
    listed = {name.replace("/", "-"): entry for name, entry in names.items()}
    (tmp_path / mjhq.META).write_text(json.dumps(listed))
    ids = [f"{entry['category']}/{name}" for name, entry in listed.items()]
    assert "meta_data.json has sha256" in MJHQ5K.choose(ids, tmp_path, None).problem
    assert MJHQ5K.choose(ids, tmp_path, 5000).problem == ""


def test_the_draw_is_from_the_listed_names(tmp_path, cache):
    root = twins.mjhq(tmp_path, "zip")
    whole = json.loads((root / mjhq.META).read_bytes())
    drawn = open_twin("mjhq-5k", root, cache, 10).items
    absent = drawn[0].id.split("/")[1]
    files = {n: c for n, c in twins.mjhq_files().items() if absent not in n}
    twins.write_zip(root / "mjhq30k_imgs.zip", files)
    with pytest.raises(DatasetError, match=rf"1 of the drawn images are not there, the first: {drawn[0].id}"):
        open_twin("mjhq-5k", root, cache, 10)
    del whole[absent]
    (root / mjhq.META).write_text(json.dumps(whole))
    assert len(open_twin("mjhq-5k", root, cache, 10).items) == 10
    (root / mjhq.META).write_text("[1]")
    with pytest.raises(DataError, match=r"meta_data\.json is no list of MJHQ-30K"):
        open_twin("mjhq-5k", root, cache, 10)


def test_a_draw_from_another_pool_is_not_passed_off(tmp_path, cache):
    root = twins.mjhq(tmp_path, "zip")
    with pytest.raises(DatasetError, match="drawn from 30 names, expected 30,000: not the fixed draw"):
        open_twin("mjhq-5k", root, cache, None)
    with pytest.raises(DatasetError, match="expected a multiple of 10"):
        open_twin("mjhq-5k", root, cache, 12)


# --- archives that must not be read

LEAVING = ["../out.jpg", "a/../../out.jpg", "/etc/out.jpg", "C:/out.jpg", "..\\out.jpg", "\\\\host\\out.jpg"]


@pytest.mark.parametrize("name", LEAVING)
def test_a_name_that_leaves_the_archive_refuses_it(name, tmp_path, cache):
    files = {**twins.coco_files(), name: twins.jpeg(20)}
    twins.write_zip(tmp_path / "zip" / "val2017.zip", files)
    with pytest.raises(DataError, match=r"val2017\.zip is refused because of .*its path leaves the archive") as caught:
        open_twin("coco-val2017", tmp_path / "zip", cache)
    assert repr(name) in str(caught.value)
    twins.write_tar(tmp_path / "in" / "ILSVRC2012_img_val.tar", files)
    with pytest.raises(DataError, match="its path leaves the archive"):
        open_twin("imagenet-val", tmp_path / "in", cache)
    twins.write_parquet(tmp_path / "pq" / "val.parquet", files)
    with pytest.raises(DataError, match="its path leaves the archive"):
        open_twin("imagenet-val", tmp_path / "pq", cache)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_refuse_it(kind, tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000001\.JPEG.*a link, a device"):
        TarSource(path)


def test_a_header_of_a_tar_is_bounded(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    with pytest.raises(DataError, match=r"x\.tar is cut off or damaged \(a header at byte 512 declares 1,073,741,824"):
        TarSource(tmp_path / "x.tar")


def test_a_link_in_a_zip_refuses_it(tmp_path):
    info = zipfile.ZipInfo("val2017/000000000139.jpg")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"000000000139\.jpg.*a link or a device"):
        ZipSource(tmp_path / "x.zip")


def test_bombs_are_refused_by_what_they_declare(tmp_path, monkeypatch):
    bomb = twins.write_zip(tmp_path / "bomb.zip", {"a.jpg": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"'a\.jpg': .* bytes would become 1,000,000, more than 200 times"):
        ZipSource(bomb)
    monkeypatch.setattr(base, "MAX_MEMBER", 500)
    monkeypatch.setattr(tars, "MAX_MEMBER", 500)
    for source, path in (
        (ZipSource, twins.write_zip(tmp_path / "big.zip", {"a.jpg": twins.jpeg(0)})),
        (TarSource, twins.write_tar(tmp_path / "big.tar", {"a.jpg": twins.jpeg(0)})),
    ):
        with pytest.raises(DataError, match=r"'a\.jpg': it declares .* at most 500 are read"):
            source(path)
    monkeypatch.setattr(shards, "MAX_MEMBER", 500)
    source = ParquetSource([twins.write_parquet(tmp_path / "big.parquet", {"a.jpg": twins.jpeg(0)})], tmp_path)
    with pytest.raises(DataError, match=r"holds an image of .* at most 500"):
        source.read("a.jpg")


def test_a_gzip_bomb_is_refused_while_it_expands(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(tarred, "_READ", 1000)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(DataError, match="expands to more than 200 times its size"):
        expand(path, cache)
    assert list(cache.iterdir()) == [], "nothing is left behind"


def patched(path: Path, before: bytes, after: bytes) -> Path:
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))
    return path


def test_a_zip_that_lies_about_a_size_is_found_out(tmp_path):
    content = twins.jpeg(0)
    size = len(content)
    path = twins.write_zip(tmp_path / "x.zip", {"a.jpg": content, "b.jpg": twins.jpeg(1)}, zipfile.ZIP_DEFLATED)
    patched(path, size.to_bytes(4, "little") + (5).to_bytes(2, "little"), (size - 9).to_bytes(4, "little") + b"\5\0")
    source = ZipSource(path)
    with pytest.raises(DataError, match=r"x\.zip: a\.jpg can't be read"):
        source.read("a.jpg")
    assert source.read("b.jpg") == twins.jpeg(1)


def test_overlapping_double_and_encrypted_members_refuse_a_zip(tmp_path):
    patched(twins.write_zip(tmp_path / "twice.zip", {"a.jpg": b"1", "b.jpg": b"2"}), b"b.jpg", b"a.jpg")
    with pytest.raises(DataError, match=r"'a\.jpg': it is there twice"):
        ZipSource(tmp_path / "twice.zip")
    path = twins.write_zip(tmp_path / "locked.zip", {"a.jpg": b"12"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="it is encrypted"):
        ZipSource(path)
    path = twins.write_zip(tmp_path / "over.zip", {"a.jpg": b"1" * 50, "b.jpg": b"2" * 50})
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = (10).to_bytes(4, "little")  # its local header, inside the first member
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"'b\.jpg': it overlaps with 'a\.jpg'"):
        ZipSource(path)


# --- archives that are cut off


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("form", ["tar", "tar.gz", "parquet", "zip"])
def test_an_archive_that_is_cut_off_is_named(form, share, tmp_path, cache):
    name, root = (
        ("coco-val2017", twins.coco(tmp_path / "data", form))
        if form == "zip"
        else ("imagenet-val", twins.imagenet(tmp_path / "data", form))
    )
    path = next(p for p in sorted(root.rglob("*val*")) if p.is_file() and "annotations" not in p.name)
    data = path.read_bytes()
    end = data.rstrip(b"\0") if form == "tar" else data  # a tar ends in zeros, of which any two blocks will do
    path.write_bytes(data[: int(share * len(end))])
    with pytest.raises(DataError, match="is cut off or damaged") as caught:
        open_twin(name, root, cache)
    assert str(path) in str(caught.value)


def test_a_shard_of_other_columns_is_named(tmp_path):
    pq.write_table(pa.table({"photo": pa.array([b"1"])}), tmp_path / "val.parquet")
    with pytest.raises(DataError, match=r"val\.parquet has the columns photo: binary; expected image: struct"):
        ParquetSource([tmp_path / "val.parquet"], tmp_path)
    twins.write_parquet(tmp_path / "nameless.parquet", {"": b"1"})
    with pytest.raises(DataError, match=r"row 0 of row group 0 has no image\.path"):
        ParquetSource([tmp_path / "nameless.parquet"], tmp_path)


def test_a_source_can_be_sent_to_another_process(tmp_path):
    files = {"a/1.jpg": twins.jpeg(0), "b/2.jpg": twins.jpeg(1)}
    for source in (
        ZipSource(twins.write_zip(tmp_path / "x.zip", files)),
        TarSource(twins.write_tar(tmp_path / "x.tar", files)),
        ParquetSource([twins.write_parquet(tmp_path / "x.parquet", files)], tmp_path),
    ):
        source.read("a/1.jpg")
        other = pickle.loads(pickle.dumps(source))
        assert {name: other.read(name) for name in other.members} == files


# --- verify


def test_verify_counts_decodes_and_fingerprints(tmp_path, cache, capsys):
    root = twins.imagenet(tmp_path / "in", "parquet")
    fingerprint = open_twin("imagenet-val", root, cache).fingerprint
    common = ["data", "verify", "imagenet", f"root={root}", f"out={tmp_path}", "expect=12"]
    for workers in (1, 2):
        assert main([*common, f"workers={workers}"]) == 0
        out = capsys.readouterr().out
        assert "12 images can be read, 0 bad" in out
        assert fingerprint in out
    assert main(common[:-1]) == 1
    assert "not whole: 12 images, expected 50,000" in capsys.readouterr().out


def test_verify_names_every_bad_file(tmp_path, capsys):
    root = twins.coco(tmp_path, "folder")
    names = sorted(p.name for p in (root / "val2017").iterdir())
    (root / "val2017" / names[1]).write_bytes(b"<html>404</html>")
    (root / "val2017" / names[8]).write_bytes(twins.jpeg(8)[:400])
    assert main(["data", "verify", "coco", f"root={root}", f"out={tmp_path}", "expect=12", "workers=1"]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bad: ")]
    assert [n for n in names if any(n in line for line in bad)] == [names[1], names[8]]
    assert len(bad) == 2


def test_verify_exit_status_of_missing_and_untrusted(tmp_path, capsys):
    assert main(["data", "verify", "coco", f"root={tmp_path / 'absent'}", f"out={tmp_path}"]) == 2
    assert "looked for val2017.zip" in capsys.readouterr().err
    (tmp_path / "val2017.zip").write_bytes(b"PK")
    assert main(["data", "verify", "coco", f"root={tmp_path}", f"out={tmp_path}"]) == 1
    assert "val2017.zip is cut off" in capsys.readouterr().err


# --- the command line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["fetch", "coco"], "did you mean"),
        (["get", "cocoo"], "coco-val2017"),
        (["get", "coco", "rot=x"], "root"),
        (["verify", "coco", "expect=0"], "at least 1"),
        (["get"], "expected one name"),
        (["verify", "coco", "root="], "root= is empty"),
        (["get", "imagenet", "root=/x"], "image-net.org"),
        (["get", "mjhq"], "hf download playgroundai/MJHQ-30K"),
        (["get", "flux"], "make-flux prompts=FILE"),
        (["make-flux"], "prompts=FILE"),
        (["make-flux", "prompts=/absent"], "does not exist"),
    ],
)
def test_bad_commands_exit_2_and_teach(command, message, capsys):
    assert main(["data", *command]) == 2
    assert message in capsys.readouterr().err


def test_list_names_all_four(capsys):
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PAPER)


def test_configuration_takes_each_by_name():
    for name in PAPER:
        config = compose_config([f"dataset={name}", "dataset.root=/x", "dataset.expect=7"])
        assert (config.dataset.name, config.dataset.root, config.dataset.expect) == (name, "/x", 7)
    with pytest.raises(ConfigError, match=r"dataset\.expect=0"):
        compose_config(["dataset=flux-5k", "dataset.expect=0"])


def test_a_run_on_the_coco_twin(tmp_path):

    root = twins.coco(tmp_path / "coco", "zip")
    overrides = ["dataset=coco-val2017", f"dataset.root='{root}'", "dataset.expect=12", f"out='{tmp_path / 'out'}'"]
    finished = engine.run(
        compose_config([*overrides, "tokenizers=identity", "calibration=false", "metrics=[psnr,ssim]"]), quiet=True
    )
    assert finished.record.items == 12
    assert finished.record.dataset == "coco-val2017"
    assert any("dataset.expect=12" in note for note in finished.record.notes)
    (row,) = finished.record.rows
    assert row.status == "ok"
    assert row.cells["PSNR"].value == math.inf
    assert row.cells["SSIM"].value == 1
