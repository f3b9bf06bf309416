"""Tars and folders of images as sources of a build: the samples that trainers read; others are counted or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lactok.data.construct import shards, units
from lactok.data.construct.inspection import encoded
from lactok.data.construct.items import Unit, WorkItem
from lactok.data.construct.spec import SpecError
from lactok.data.sources import image_files
from tests.test_data_construction import CAT, items_of, paper, samples, tar_of


def grey(value: int) -> bytes:
    return encoded(np.full((40, 40, 3), value, np.uint8), "png", 100)


def test_the_samples_of_a_tar_are_those_that_trainers_read(tmp_path: Path):
    """KEY.png before KEY.mask.png, wherever they lie; names with dots are images of their own."""
    (tmp_path / "s").mkdir()
    members = [
        ("./000.png", grey(10)),
        ("./000.mask.png", grey(255)),
        ("./000.other.txt", b"no caption"),
        ("./000.txt", b"a cat"),
        ("001.mask.png", grey(255)),
        ("001.jpg", CAT),
        ("d/IMG.2020.01.png", grey(1)),
        ("d/IMG.2020.02.png", grey(2)),
        ("d/IMG.2020.02.txt", b"a dog"),
        ("d/IMG.2020.03.png", grey(3)),
        ("001.txt", b"apart"),
        ("000.seg.png", grey(255)),
    ]
    tar = tar_of(tmp_path / "s" / "a.tar", members)
    items = items_of(paper(tmp_path, images=str(tar)))
    assert [(i.source_id, i.raw_caption, i.reason) for i in items] == [
        ("000", "a cat", ""),
        ("001", "apart", ""),
        ("d/IMG.2020.01", "", ""),
        ("d/IMG.2020.02", "a dog", ""),
        ("d/IMG.2020.03", "", ""),
    ]
    assert [i.image for i in items] == [grey(10), CAT, grey(1), grey(2), grey(3)]
    read = image_files(tar)
    assert [read.read(place) for place in range(len(read))] == [i.image for i in items]


def test_what_no_trainer_could_tell_apart_in_a_tar_is_counted(tmp_path: Path):
    members = [
        *(("1.png", grey(1)), ("1.jpg", CAT), ("1.txt", b"which?")),
        *(("2.png", grey(2)), ("2.png", grey(3))),
        *(("a.b.png", grey(4)), ("a.c.png", grey(5)), ("a.c.png", grey(6)), ("a.d.txt", b"no image")),
        *(("._9.png", b"of a Mac"), ("caf\udce9.png", grey(7)), ("8.json", b"{}")),
    ]
    items = items_of(paper(tmp_path, images=str(tar_of(tmp_path / "a.tar", members))))
    assert {i.source_id: (i.reason, i.detail) for i in items} == {
        "1": ("two images of one key", "'1.png, 1.jpg'"),
        "2": ("two images of one key", "'2.png, 2.png'"),
        "a.b": ("", ""),
        "a.c": ("two images of one key", "'a.c.png, a.c.png'"),
        "a.d": ("sample without an image", ""),
        "._9": ("", ""),
        "caf\\xe9": ("", ""),
        "8": ("sample without an image", ""),
    }
    assert len(items) == 8
    assert [i.image for i in items if not i.reason] == [grey(4), b"of a Mac", grey(7)]


def test_a_tar_that_ends_within_a_caption_gives_no_half_of_it(tmp_path: Path):
    tar = tar_of(tmp_path / "a.tar", [("1.jpg", CAT), ("1.txt", b"a cat on a bench")])
    tar.write_bytes(tar.read_bytes()[: 1024 + -(-len(CAT) // 512) * 512 + 5])
    items = items_of(paper(tmp_path, images=str(tar)))
    assert items
    assert {(i.raw_caption, i.reason) for i in items} == {("", "tar is damaged")}


def test_a_folder_of_img2dataset_is_its_tars(tmp_path: Path):
    folder = tmp_path / "laion"
    folder.mkdir()
    for number in range(2):
        name, text = f"{number:05d}", f"cat {number}"
        tar_of(folder / f"{name}.tar", [(f"{name}0000.jpg", CAT), (f"{name}0000.txt", text.encode())])
        columns = {"key": [f"{name}0000"], "caption": [text], "url": ["https://x"], "status": ["success"]}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        (folder / f"{name}_stats.json").write_text("{}")
    items = items_of(paper(tmp_path, images=str(folder)))
    assert [(i.raw_caption, i.image, i.reason) for i in items] == [("cat 0", CAT, ""), ("cat 1", CAT, "")]
    pq.write_table(pa.table({"image": [CAT], "caption": ["packed"]}), folder / "b.parquet")
    items = items_of(paper(tmp_path / "x", images=str(folder)))
    assert [i.raw_caption for i in items] == ["cat 0", "cat 1", "packed"], "one of another stem is a source"


def test_a_folder_that_a_build_wrote_is_its_shards(tmp_path: Path):
    folder = tmp_path / "built"
    made = [shards.write_shard(folder, n, iter(samples(2)), shards.index_schema(["mps"])) for n in range(2)]
    units.write(folder, Unit(0, [WorkItem(0, "s", "", "", CAT)]))
    with pytest.raises(SpecError, match=r"images=.*built holds shards of an unfinished build"):
        items_of(paper(tmp_path, images=str(folder)))
    said = {"format": "lactok shards", "version": 1, "shards": [asdict(shard) for shard in made]}
    (folder / "build.json").write_text(json.dumps(said))
    items = items_of(paper(tmp_path, images=str(folder)))
    assert [i.raw_caption for i in items] == ["caption 0 é", "caption 1 é"] * 2
    assert {i.source for i in items} == {"shard-00000.tar", "shard-00001.tar"}
    (folder / "build.json").unlink()
    shutil.rmtree(folder / "work")
    assert len(items_of(paper(tmp_path / "x", images=str(folder)))) == 4, "shards that were copied elsewhere"


@pytest.mark.parametrize("packed", ["a.tar", "a.parquet"])
def test_a_folder_of_packed_and_loose_images_is_refused(tmp_path: Path, packed: str):
    folder = tmp_path / "mixed"
    (folder / "d").mkdir(parents=True)
    if packed == "a.tar":
        tar_of(folder / packed, [("1.jpg", CAT)])
    else:
        pq.write_table(pa.table({"image": [CAT]}), folder / packed)
    (folder / "d" / "extra.png").write_bytes(CAT)
    with pytest.raises(SpecError, match=r"images=.*mixed holds 1 tar.* and 1 image file\(s\): expected one"):
        items_of(paper(tmp_path, images=str(folder)))
