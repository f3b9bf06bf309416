"""Tars as training data: read in place, the same samples as from the folder, resumed bit by bit; what is refused."""

from __future__ import annotations

import io
import json
import pickle
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage
import torch

from lactok.data.batches import CropRange, SampleOrder, StepPlan, TrainingImages, WorkerBatches, to_tensor
from lactok.data.folder import DataError
from lactok.data.pack import open_pack
from lactok.data.sources import TarFiles, all_files, image_files
from lactok.data.stream import BAD, StreamedImages
from lactok.data.tar_index import ABOUT, open_tar_index
from lactok.data.tar_roots import find_tars
from lactok.images.tars import expanded
from lactok.train.config import compose_config
from lactok.train.data import ImageData
from lactok.train.dry_run import look_at_data
from lactok.train.run_folder import RunFolderError
from lactok.train.tokens import TokenExtraction
from tests.support import ROOT, pictures
from tests.test_train import assert_same_run, train_tiny
from tests.tiny_generator import extracted, quick, write_captioned

SKIMAGE = Path(skimage.__file__).parent / "data"
CROPS = CropRange(96, 128)


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_build(folder: Path, images: Path, each: int) -> Path:
    """Shards as `python -m lactok.data build` writes them: `each` samples a tar, a Parquet index, build.json."""
    paths, shards = sorted(images.glob("*.png")), []
    for number, start in enumerate(range(0, len(paths), each)):
        stem, members, keys = f"shard-{number:05d}", {}, []
        for key, path in enumerate(paths[start : start + each], start):
            keys.append(f"{key:09d}")
            members[f"{key:09d}.png"] = path.read_bytes()
            members[f"{key:09d}.txt"] = f"caption {key} of a build".encode()
            members[f"{key:09d}.json"] = b"{}"
        tar = write_tar(folder / f"{stem}.tar", members)
        with tarfile.open(tar) as opened:
            found = [opened.getmember(f"{key}.png") for key in keys]
        table = {
            "key": keys, "image_name": [m.name for m in found], "image_offset": [m.offset_data for m in found],
            "image_size": [m.size for m in found], "caption": [members[f"{key}.txt"].decode() for key in keys],
        }  # fmt: skip
        pq.write_table(pa.table(table), folder / f"{stem}.parquet")
        about = {"name": tar.name, "samples": len(keys), "bytes": tar.stat().st_size, "index": f"{stem}.parquet"}
        shards.append(about | {"sha256": sha256(tar.read_bytes()).hexdigest()})
    said = {"format": "lactok shards", "version": 1, "samples": len(paths), "shards": shards}
    (folder / "build.json").write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("images") / "folder", count=10)


@pytest.fixture(scope="module")
def tar(images: Path) -> Path:
    return write_tar(images.parent / "set.tar", files_of(images))


def streamed(root: Path | str, folder: Path, **more: object) -> StreamedImages:
    return StreamedImages(all_files([root], folder), 96, folder, **more)  # type: ignore[arg-type]


# --- the same samples


def test_a_tar_gives_the_packs_images_one_by_one(images: Path, tar: Path, tmp_path: Path):
    pack = open_pack([images], tmp_path / "pack", side=96)
    for root, name in ((tar, "tar"), (images, "folder")):
        found = streamed(root, tmp_path / name)
        found.check()
        assert (len(found), found.counts) == (len(pack), pack.counts)
        assert np.array_equal(found.ranks, pack.ranks), "the same images are held back"
        there = pickle.loads(pickle.dumps(found))
        assert all(np.array_equal(there[i], pack[i]) for i in range(len(pack)))
    packed = open_pack([tar], tmp_path / "packed", side=96)
    assert packed.index.pixels == pack.index.pixels
    assert packed.fingerprint == pack.fingerprint


def test_a_sample_is_no_matter_of_processes_and_ranks(tar: Path, tmp_path: Path):
    """Each image once an epoch over all ranks; a worker process makes what this one makes."""
    found = streamed(tar, tmp_path)
    made = TrainingImages(found, SampleOrder([range(10)], 3), CROPS, per_step=4)
    ranks = [(range(0, 2),), (range(2, 4),)]
    plan = [StepPlan(rows, 4, lambda step: 32) for rows in ranks]
    ahead = [WorkerBatches(made, one, workers=2) for one in plan]
    for step in range(1, 4):
        whole = to_tensor([made.sample(step, i, 32) for i in range(4)])
        assert torch.equal(torch.cat([part for one in ahead for part in one.at(step)]), whole)
    seen = [made.order.at(step * 4 + i) for step in range(5) for rows in ranks for i in rows[0]]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    for one in ahead:
        one.close()


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the folder that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lactok.train.loop.plot", lambda logs, target: None)
        assert train_tiny(str(images), str(out), steps=6).finished
    return out


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lactok.train.loop.plot", lambda logs, target: None)


@pytest.mark.usefixtures("_quick")
def test_a_run_on_tars_that_stops_in_an_epoch_goes_on_bit_by_bit(images: Path, whole: Path, tmp_path: Path):
    """Two tars of the same images: the weights of the folder's run, though this one stopped after 3 of 6 steps."""
    members = list(files_of(images).items())
    for number in range(2):
        write_tar(tmp_path / f"set-{number}.tar", dict(members[number * 5 : number * 5 + 5]))
    root, out = f"{tmp_path}/set-{{0..1}}.tar", tmp_path / "run"
    assert not train_tiny(root, str(out), steps=6, stop_after_minutes=1e-9).finished
    outcome = train_tiny(root, str(out), steps=6)
    assert outcome.finished
    assert not (out / "images.bin").exists(), "nothing is decoded ahead"
    assert_same_run(whole, out)
    write_tar(tmp_path / "set-1.tar", dict(members[6:]))
    with pytest.raises(RunFolderError, match=r"data .sha256 of the images' names and sizes in bytes, and of some of"):
        train_tiny(root, str(out), steps=6)


# --- the index


def test_the_index_is_kept_and_made_anew_when_a_tar_changes(images: Path, tmp_path: Path):
    files = files_of(images)
    path = write_tar(tmp_path / "a.tar", dict(list(files.items())[:4]))
    root = find_tars(path)
    assert root is not None
    before = open_tar_index(root, tmp_path / "run")
    written = (tmp_path / "run" / ABOUT).stat().st_mtime_ns
    assert len(open_tar_index(root, tmp_path / "run")) == 4
    assert (tmp_path / "run" / ABOUT).stat().st_mtime_ns == written
    (tmp_path / "run" / "tars.arrow").write_bytes(b"cut")
    assert open_tar_index(root, tmp_path / "run").about == before.about
    reader = TarFiles(root, before)
    write_tar(path, dict(list(files.items())[:5]))
    with pytest.raises(DataError, match=r"a\.tar has changed since it was indexed"):
        reader.read(0)
    after = open_tar_index(root, tmp_path / "run")
    assert len(after) == 5
    assert after.about.fingerprint != before.about.fingerprint
    moved = find_tars(shutil.copy(path, tmp_path / "b.tar"))
    assert moved is not None
    assert open_tar_index(moved, None).about.fingerprint == after.about.fingerprint, "a copy is the same data"


def test_what_a_sample_of_a_tar_is(tmp_path: Path):
    png = pictures(tmp_path / "one", count=1).joinpath("picture 00.png").read_bytes()
    path = write_tar(
        tmp_path / "x.tar",
        {
            "d/1.txt": b"first", "d/1.png": png, "d/1.mask.png": png, "2.v1.png": png, "2.v1.txt": b"second",
            "3.json": b"{}", ".hid.png": png, "__MACOSX/1.png": png, "4.cls": b"7",
        },
    )  # fmt: skip
    root = find_tars(path)
    assert root is not None
    index = open_tar_index(root, None)
    read = TarFiles(root, index)
    places = [index[i] for i in range(len(index))]
    assert [place.name for place in places] == ["d/1.png", "2.v1.png"]
    assert [read.member(0, place.text) for place in places if place.text] == [b"first", b"second"]
    assert read.label(1) == f"{path}: 2.v1.png"
    assert index.about.aside == {".png": 3, ".json": 1, ".cls": 1}


def test_brace_patterns():
    assert expanded("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert expanded("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]
    assert expanded("a{b}.tar") == ["a{b}.tar"]
    for pattern, said in (("{9..1}", "runs backwards"), ("{0..9999999}", "at most 1,000,000")):
        with pytest.raises(ValueError, match=said):
            expanded(pattern)


# --- a build's shards


def test_shards_of_a_build_are_read_by_their_index(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_build(tmp_path / "built", images, each=4)
    monkeypatch.setattr("lactok.data.tar_index.tar_members", None)  # no header is read
    monkeypatch.setattr("lactok.data.stream._look_through", None)  # a build has decoded all of them
    found = streamed(folder, tmp_path / "run")
    found.check()
    pack = open_pack([images], tmp_path / "pack", side=96)
    assert len(found) == 10
    assert all(np.array_equal(found[i], pack[i]) for i in range(10))
    assert look_at_data([str(folder)]).images == 10


def test_shards_that_are_not_as_the_build_says_are_refused(images: Path, tmp_path: Path):
    folder = write_build(tmp_path / "built", images, each=5)
    whole = (folder / "build.json").read_text()
    (folder / "build.json").unlink()
    with pytest.raises(DataError, match=r"shards of an unfinished build \(there is no build\.json\)"):
        image_files(folder)
    for change, said in (
        (whole.replace('"version": 1', '"version": 2'), "of version 2, expected 1"),
        (whole.replace('"shard-00001.tar"', '"../shard-00001.tar"'), "is no name of a file in the folder"),
        (whole.replace('"samples": 5', '"samples": 6'), r"its index 5 samples; build\.json says .* and 6"),
        (whole.replace('"shard-00001.tar"', '"shard-00009.tar"'), r"shard-00009\.tar is missing"),
        (whole[:-5], r"build\.json can't be understood"),
    ):
        (folder / "build.json").write_text(change)
        with pytest.raises(DataError, match=said):
            image_files(folder)
    (folder / "build.json").write_text(whole)
    table = pq.read_table(folder / "shard-00000.parquet").to_pydict()
    pq.write_table(pa.table(table | {"image_offset": [2**40] * 5}), folder / "shard-00000.parquet")
    with pytest.raises(DataError, match=r"'000000000\.png' at byte 1099511627776 .* does not lie in shard-00000\.tar"):
        image_files(folder)


# --- what is refused


def refusal(root: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        image_files(root)
    return str(caught.value)


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../b.png", "C:\\out.png"])
def test_a_name_that_leaves_the_tar_refuses_it(tmp_path: Path, name: str):
    said = refusal(write_tar(tmp_path / "x.tar", {"1.png": b"1", name: b"2"}))
    assert f"x.tar is refused because of {name!r}: its path leaves the archive" in said


def test_tars_that_cannot_be_read_in_place_are_named(images: Path, tar: Path, tmp_path: Path):
    """Truncated, empty, repeated names, joined, compressed, absent, among images."""
    data = tar.read_bytes()
    with tarfile.open(tar) as opened:
        third = opened.getmembers()[2]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(data[: third.offset_data + 100])
    expected = f"'picture 02.png' has {third.size:,} bytes from byte {third.offset_data:,} on, and the file ends"
    assert expected in refusal(cut)
    (tmp_path / "empty.tar").write_bytes(b"")
    assert "empty.tar is cut off or damaged" in refusal(tmp_path / "empty.tar")
    assert "no members at all" in refusal(write_tar(tmp_path / "none.tar", {}))
    assert "other members: 1 .txt" in refusal(write_tar(tmp_path / "texts.tar", {"1.txt": b"x"}))
    with tarfile.open(tmp_path / "twice.tar", "w") as twice:
        for _ in range(2):
            twice.add(images / "picture 00.png", "1.png")
    assert "because of '1.png': it is there twice" in refusal(tmp_path / "twice.tar")
    said = refusal(write_tar(tmp_path / "key.tar", {"1.png": b"x", "1.jpg": b"x"}))
    assert "the key '1' has two images, '1.png' and '1.jpg' (at bytes 512 and 1,536)" in said
    (tmp_path / "joined.tar").write_bytes(data + data)
    assert "goes on after its end-of-archive mark" in refusal(tmp_path / "joined.tar")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as packed:
        packed.add(images / "picture 00.png", "1.png")
    assert "compressed as a whole (gzip)" in refusal(tmp_path / "x.tar.gz")
    (tmp_path / "renamed.tar").write_bytes((tmp_path / "x.tar.gz").read_bytes())
    assert f"`gunzip -k {tmp_path}/renamed.tar`" in refusal(tmp_path / "renamed.tar")
    assert "stands for 3 files, of which 3 are missing" in refusal(f"{tmp_path}/no-{{0..2}}.tar")
    assert "is an address" in refusal("s3://bucket/{000..099}.tar")
    shutil.copy(images / "picture 00.png", tmp_path / "1.png")
    assert "tar(s) and 1 image file(s): expected one or the other" in refusal(tmp_path)


def test_a_folder_in_a_tar_and_a_name_that_is_no_utf8(images: Path, tmp_path: Path):
    png = (images / "picture 00.png").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as made:
        for name in ("./", "./d/"):
            made.addfile(_directory(name))
        info = tarfile.TarInfo("./d/caf\udce9.png")
        info.size = len(png)
        made.addfile(info, io.BytesIO(png))
    found = image_files(tmp_path / "x.tar")
    assert [found.name(i) for i in range(len(found))] == ["d/caf\\xe9.png"]
    assert found.read(0) == png


def _directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def test_broken_and_held_out_images_are_listed_before_training(images: Path, tmp_path: Path):
    files = files_of(images)
    files["bad.png"] = files["picture 00.png"][:500]
    path = write_tar(tmp_path / "x.tar", files | {"no.jpg": b"text"})
    with pytest.raises(DataError, match=r"2 image\(s\) can't be read") as caught:
        streamed(path, tmp_path / "run").check()
    assert f"{path}: bad.png: can't be decoded whole" in str(caught.value)
    assert f"{path}: no.jpg: not an image" in str(caught.value)
    assert "data.on_bad_image=skip" in str(caught.value)
    write_tar(path, {"holiday.png": (SKIMAGE / "chelsea.png").read_bytes()})
    with pytest.raises(DataError, match=r"x\.tar: holiday\.png: is chelsea\.png of scikit-image"):
        streamed(path, tmp_path / "run").check()
    with pytest.raises(DataError, match=r"holiday\.png: is chelsea\.png"):
        streamed(path, tmp_path / "run", on_bad="skip")[0]


def test_with_skip_another_image_takes_the_place_of_a_broken_one(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    files = files_of(images)
    files["picture 03.png"] = b"broken"
    found = streamed(write_tar(tmp_path / "x.tar", files), tmp_path, on_bad="skip")
    made = TrainingImages(found, SampleOrder([range(10)], 3), CROPS, per_step=10)
    (hit,) = [i for i in range(10) if made.order.at(i) == 3]
    again = TrainingImages(pickle.loads(pickle.dumps(found)), made.order, CROPS, per_step=10)
    assert np.array_equal(made.sample(0, hit, 32), again.sample(0, hit, 32)), "by a rule, so a resumed run repeats it"
    listed = [json.loads(line) for line in (tmp_path / BAD).read_text().splitlines()]
    assert {line["image"] for line in listed} == {f"{tmp_path}/x.tar: picture 03.png"}
    assert "picture 03.png: not an image" in capsys.readouterr().err
    monkeypatch.setattr("lactok.data.stream._FEW", 0)
    with pytest.raises(DataError, match="images that this process read can't be read"):
        streamed(tmp_path / "x.tar", tmp_path, on_bad="skip")[3]


# --- captions


@pytest.fixture
def _small() -> Iterator[None]:
    with quick():
        yield


@pytest.mark.usefixtures("_small")
def test_ids_and_captions_of_tars_are_those_of_the_folder(tmp_path: Path):
    """From KEY.txt and from KEY.json; what is bad is left out, counted and named."""
    captions = ["a red cat", "🦊 قطة", "the sofa " * 12_000 + ".", "zero\x00 and \x1b[31m", "one more"]
    folder = write_captioned(tmp_path / "folder", captions)
    files = {name: data for name, data in files_of(folder).items() if name.endswith(".png")}
    members: dict[str, bytes] = {}
    for number, (name, data) in enumerate(files.items()):
        key = name.removesuffix(".png")
        in_json = json.dumps({"caption": captions[number], "width": 3}).encode()
        said = (
            {f"{key}.json": in_json} if number % 2 else {f"{key}.txt": captions[number].encode(), f"{key}.json": b"{"}
        )
        members |= {name: data, **said}
    png = files["000.png"]
    bad = {
        "5.png": png, "5.txt": b"\xff\xfe", "6.png": png, "7.png": png, "7.txt": b" \n", "8.png": png, "8.json": b"[1]",
        "9.png": b"broken", "9.txt": b"good", "10.png": png, "10.json": b"[" * 10**5, "11.png": png,
        "11.txt": b"x" * (2**20 + 1),
    }  # fmt: skip
    wanted = extracted(folder, tmp_path / "wanted")
    found = extracted(write_tar(tmp_path / "x.tar", members | bad), tmp_path / "found")
    assert [sample.caption for sample in found] == captions
    assert torch.equal(torch.stack([s.ids for s in found]), torch.stack([s.ids for s in wanted]))
    assert sum(found.index.left_out.values()) == 7
    for reason in (
        "its text is not UTF-8", "no KEY.txt and no KEY.json beside it", "the caption is '': expected text",
        "its metadata has no caption or text", "its metadata is no JSON", "its text has 1,048,577 bytes; at most 1,048",
    ):  # fmt: skip
        assert any(line.startswith(reason) for line in found.index.left_out), reason


@pytest.mark.usefixtures("_small")
def test_captions_of_a_build_come_from_its_index(images: Path, tmp_path: Path):
    folder = write_build(tmp_path / "built", images, each=4)
    found = extracted(folder, tmp_path / "tokens")
    assert [sample.caption for sample in found] == [f"caption {i} of a build" for i in range(10)]
    table = pq.read_table(folder / "shard-00001.parquet").to_pydict()
    pq.write_table(pa.table({k: v for k, v in table.items() if k != "caption"}), folder / "shard-00001.parquet")
    with pytest.raises(DataError, match=r"shard-00001\.parquet can't be read"):
        extracted(folder, tmp_path / "other")


# --- the documentation


def test_the_commands_of_the_docs_open_what_they_name(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As written, in a folder that has such files; what they then do is tested above."""
    files = files_of(images)
    write_tar(tmp_path / "set.tar", files)
    for number in range(2):
        write_tar(tmp_path / "shards" / f"set-00{number}.tar", dict(list(files.items())[number * 5 : number * 5 + 5]))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "training.md").read_text().split("### Tars and shards")[1].split("\n## ")[0]
    commands = re.findall(r"^    python -m lactok\.train (.*)$", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        config, recipe = compose_config([*shlex.split(command), "device=cpu"])
        if recipe is TokenExtraction:
            assert len(TokenExtraction(config).images) == 10
        else:
            assert len(ImageData.open(config)) == 10
