"""dataset=folder on archives: the table of the folder of the same images, to the last digit, and what is refused."""

from __future__ import annotations

import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.config import compose_config
from evals.datasets import registry
from evals.datasets.base import BadImages, DataError, Dataset, DatasetError, DatasetRequest
from evals.engine import run as engine
from evals.report.table import raw_frame
from tests import twins
from tests.support import ROOT


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


FILES = {name: twins.jpeg(i) for i, name in enumerate(["b/2.x.jpg", "a/1.jpg", "a/10.jpg", "c d.jpg", "e/é.jpg"])}
BESIDE = {"a/1.txt": b"a caption", "a/1.json": b"{}", "a/.hid.jpg": b"x"}


def opened(root: Path | str, cache: Path, **options: object) -> Dataset:
    return registry.open_dataset("folder", DatasetRequest(cache_dir=cache, root=str(root), **options))  # type: ignore[arg-type]


def packed(root: Path, form: str) -> Path | str:
    """What dataset.root names: the images of `FILES` in one form or another."""
    halves = [dict(list(FILES.items())[:2]), dict(list(FILES.items())[2:])]
    if form == "folder":
        return twins.write_folder(root, FILES | BESIDE)
    if form in ("tar", "tar.gz"):
        return twins.write_tar(root / f"x.{form}", FILES | BESIDE, "w" if form == "tar" else "w:gz")
    if form == "zip":
        return twins.write_zip(root / "x.zip", FILES | BESIDE)
    if form == "parquet":
        return twins.write_parquet(root / "x.parquet", FILES)
    for number, half in enumerate(halves):
        if form == "parquet shards":
            twins.write_parquet(root / "data" / f"test-{number:05d}-of-00002.parquet", half)
        else:
            twins.write_tar(root / f"s-{number:03d}.tar", half)
            twins.write_parquet(root / f"s-{number:03d}.parquet", {})  # a build's index: it holds no images
    return f"{root}/s-{{000..001}}.tar" if form == "braces" else root


FORMS = ["tar", "tar.gz", "zip", "parquet", "parquet shards", "tars", "braces"]


@pytest.mark.parametrize("form", FORMS)
def test_items_are_those_of_the_folder(form: str, tmp_path: Path, cache: Path):
    wanted = opened(packed(tmp_path / "folder", "folder"), cache)
    found = opened(packed(tmp_path / "packed", form), cache)
    assert found.items == wanted.items
    assert found.fingerprint == wanted.fingerprint
    assert [item.id for item in found.items] == sorted(FILES)
    for item in found.items:
        assert np.array_equal(found.read(item), wanted.read(item))  # type: ignore[attr-defined]
    if form == "tar":
        assert found.notes == ["3 other member(s) left aside: 1 .json, 1 .txt, 1 hidden"]
    several = opened(packed(tmp_path / "packed", form), cache, limit=2, cluster="folder")
    assert several.items == opened(tmp_path / "folder", cache, limit=2, cluster="folder").items


def test_the_table_is_the_folders_to_the_last_digit(tmp_path: Path):
    tables = {}
    for form in ("folder", "tar", "parquet"):
        root, out = packed(tmp_path / form, form), tmp_path / f"out {form}"
        overrides = ["dataset=folder", f"dataset.root='{root}'", f"out='{out}'", "tokenizers=[mean-colour,resize-64]"]
        finished = engine.run(
            compose_config([*overrides, "calibration=false", "metrics=[psnr,ssim]", "workers=1"]), quiet=True
        )
        tables[form] = raw_frame(finished.record), finished.per_image
    for form in ("tar", "parquet"):
        pd.testing.assert_frame_equal(tables[form][0], tables["folder"][0], check_exact=True)
        for label, found in tables[form][1].items():
            wanted = tables["folder"][1][label].values
            assert found.values.keys() == wanted.keys() >= {"PSNR", "SSIM"}
            assert all(np.array_equal(found.values[name], wanted[name], equal_nan=True) for name in wanted)
    assert len(tables["tar"][0]) == 2


def test_names_that_several_archives_have_begin_with_theirs(tmp_path: Path, cache: Path):
    for number in range(2):
        twins.write_tar(tmp_path / f"s-{number}.tar", {"000.jpg": twins.jpeg(number), "000.txt": b"x"})
    found = opened(tmp_path, cache)
    assert [item.id for item in found.items] == ["s-0/000.jpg", "s-1/000.jpg"]


def test_rows_without_a_path_go_by_shard_and_number(tmp_path: Path, cache: Path):
    """The hub's sets of class folders keep only the last part of a path; some keep none."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, paths in enumerate((["1.jpg", "2.jpg"], ["1.jpg", None])):
        rows = [{"bytes": twins.jpeg(2 * number + i), "path": path} for i, path in enumerate(paths)]
        table = pa.table({"image": pa.array(rows, kind), "text": pa.array(["a", "b"])})
        pq.write_table(table, tmp_path / f"test-{number}.parquet", row_group_size=1)
    found = opened(tmp_path, cache)
    assert [item.id for item in found.items] == [f"test-{n}/{i:08d}" for n in range(2) for i in range(2)]
    pq.write_table(pa.table({"photo": pa.array([b"1"])}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"has the columns photo: binary; expected image: struct"):
        opened(tmp_path / "other.parquet", cache)


@pytest.mark.parametrize("name", ["../out.jpg", "/etc/out.jpg"])
def test_a_hostile_name_refuses_the_archive(name: str, tmp_path: Path, cache: Path):
    for path in (
        twins.write_tar(tmp_path / "x.tar", FILES | {name: twins.jpeg(9)}),
        twins.write_zip(tmp_path / "x.zip", FILES | {name: twins.jpeg(9)}),
        twins.write_parquet(tmp_path / "x.parquet", FILES | {name: twins.jpeg(9)}),
    ):
        with pytest.raises(DataError, match="its path leaves the archive"):
            opened(path, cache)


def test_bad_members_and_archives_are_named(tmp_path: Path, cache: Path):
    path = twins.write_tar(tmp_path / "x.tar", FILES | {"z.jpg": b"text", "y.jpg": twins.jpeg(7)[:300]})
    with pytest.raises(BadImages, match=r"2 image\(s\) can't be read") as caught:
        opened(path, cache)
    assert [bad.path for bad in caught.value.bad] == [f"{path}: y.jpg", f"{path}: z.jpg"]
    skipped = opened(path, cache, on_bad_image="skip")
    assert [item.id for item in skipped.items] == sorted(FILES)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(whole[: last.offset_data + 50])
    with pytest.raises(
        DataError, match=rf"'y\.jpg' has 300 bytes from byte {last.offset_data:,} on, and the file ends"
    ):
        opened(path, cache)
    with pytest.raises(DatasetError, match=r"no images in .*empty\.tar: found no files at all"):
        opened(twins.write_tar(tmp_path / "empty.tar", {}), cache)
    with pytest.raises(DatasetError, match="is an address: copy the files here, or mount the bucket"):
        opened("s3://bucket/x.tar", cache)
    with pytest.raises(DatasetError, match=r"stands for 2 files, of which 2 are missing"):
        opened(f"{tmp_path}/no-{{0..1}}.tar", cache)
    (tmp_path / "x.rar").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"x\.rar is a file: name the folder that holds it, or a file that ends in"):
        opened(tmp_path / "x.rar", cache)


# --- prompts


def prompts(path: Path) -> Dataset:
    return registry.open_dataset("prompts", DatasetRequest(cache_dir=Path("unused"), root=str(path)))


def test_prompts_of_parquet_and_tar_are_those_of_a_file(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a cat", "id": "a", "n": 1}\n{"prompt": "a dög", "id": "b", "n": 2}\n'
    )
    wanted = prompts(tmp_path / "p.jsonl").items
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": b"x", "path": "1.jpg"}] * 2, kind)
    table = pa.table({"image": image, "text": ["a cat", "a dög"], "id": ["a", "b"], "n": [1, 2]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert prompts(tmp_path / "p.parquet").items == wanted
    twins.write_tar(tmp_path / "p.tar", {"a.txt": b"a cat", "a.jpg": b"x", "b.txt": "a dög\n".encode()})
    assert [(i.id, i.payload, i.content_hash) for i in prompts(tmp_path / "p.tar").items] == [
        (i.id, i.payload, i.content_hash) for i in wanted
    ]


def test_bad_prompts_of_parquet_and_tar_are_told_together(tmp_path: Path):
    pq.write_table(pa.table({"text": ["a", None, " "]}), tmp_path / "p.parquet")
    with pytest.raises(DatasetError, match=r"2 bad line\(s\) .*\n  line 2: prompt is None.*\n  line 3: prompt is ' '"):
        prompts(tmp_path / "p.parquet")
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(DatasetError, match="has the columns words: string: expected `prompt`, `text` or `caption`"):
        prompts(tmp_path / "p.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:50])
    with pytest.raises(DataError, match=r"cut\.parquet is cut off or damaged"):
        prompts(tmp_path / "cut.parquet")
    twins.write_tar(tmp_path / "p.tar", {"a.txt": b"\xff", "b.txt": b"x" * (2**20 + 1), "c.txt": b"good"})
    with pytest.raises(DatasetError, match=r"line 1: 'a\.txt' is not UTF-8 .*\n  line 2: 'b\.txt' has 1,048,577 bytes"):
        prompts(tmp_path / "p.tar")
    with pytest.raises(DatasetError, match=r"expected members KEY\.txt"):
        prompts(twins.write_tar(tmp_path / "none.tar", {"a.jpg": b"x"}))


def test_the_commands_of_the_docs_open_what_they_name(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    twins.write_tar(tmp_path / "set.tar", FILES)
    twins.write_parquet(tmp_path / "test.parquet", FILES)
    packed(tmp_path / "shards", "braces")
    (tmp_path / "shards" / "s-000.tar").rename(tmp_path / "shards" / "set-000.tar")
    (tmp_path / "shards" / "s-001.tar").rename(tmp_path / "shards" / "set-001.tar")
    commands = re.findall(
        r"^    python -m evals\.run (dataset=folder .*)$", (ROOT / "docs/datasets.md").read_text(), re.M
    )
    assert len(commands) == 3
    for command in commands:
        config = compose_config(shlex.split(command))
        root = config.dataset.root
        assert [item.id for item in opened(str(root), cache).items] == sorted(FILES)
