"""Copies of an image say nothing new, and neither do files that belong together: intervals resample clusters."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals.datasets import duplicates, registry
from evals.datasets.base import Dataset, DatasetError, DatasetRequest
from evals.datasets.duplicates import look_alike, perceptual_hash, share_clusters
from evals.datasets.images.photos import listed_tiles, load_source
from lactok.items import Item
from tests.plugin_runs import given, plugin, rows, run
from tests.support import TOY, pictures


def opened(root: Path, cache: Path, **options) -> Dataset:
    return registry.open_dataset("folder", DatasetRequest(cache_dir=cache, root=str(root), **options))


def clusters(dataset: Dataset) -> dict[str, str]:
    return {item.id: item.cluster for item in dataset.items}


def copied(folder: Path, source: Path, times: int) -> Path:
    folder.mkdir()
    for file in sorted(source.iterdir()):
        for i in range(times):
            (folder / f"{i} {file.name}").write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(("count", "times"), [(6, 3), (1, 4)])
def test_copies_change_no_interval(tmp_path: Path, count: int, times: int):
    once = pictures(tmp_path / "once", count)
    thrice = copied(tmp_path / "thrice", once, times)
    with plugin(tmp_path / "plugin", TOY, {"toy": "Toy"}):
        a, b = (run(data, tmp_path / "out", "tokenizers=toy", "metrics=[psnr]") for data in (once, thrice))
    x, y = (rows(finished)["toy"].cells["PSNR"] for finished in (a, b))
    assert y.value == pytest.approx(x.value, rel=1e-6)
    if count < 3:
        assert (x.low, y.low) == (None, None), "no interval, rather than one of no width"
    else:
        assert y.high - y.low == pytest.approx(x.high - x.low, rel=1e-6)
    assert b.record.clusters == count
    (note,) = [note for note in b.record.notes if "copies" in note]
    assert f"{count * (times - 1)} of {count * times} items" in note


def items(*of: tuple[str, str, str]) -> list[Item]:
    return [Item(i, cluster, content) for i, cluster, content in of]


def test_copies_join_the_clusters_that_they_stand_in():
    joined, notes = share_clusters(
        items(("1", "a", "x"), ("2", "b", "y"), ("3", "c", "z"), ("4", "b", "x"), ("5", "d", "z"), ("6", "e", "w"))
    )
    assert [item.cluster for item in joined] == ["a", "a", "c", "a", "c", "e"]
    assert "2 of 6 items" in notes[0]
    assert "3 clusters" in notes[0]


def test_without_copies_nothing_changes():
    given = items(("1", "a", "x"), ("2", "a", "y"), ("3", "c", "z"))
    assert share_clusters(given) == (given, [])
    tiles = [Item(tile.id, tile.cluster, tile.sha256) for tile in listed_tiles()]
    assert share_clusters(tiles) == (tiles, [])


# --- dataset.cluster


@pytest.fixture
def albums(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    pictures(root / "a", 2), pictures(root / "a" / "b", 3), pictures(root, 4)
    for path in (root / "a").glob("*.png"):  # other content than those of the same name
        Image.open(path).rotate(90).save(path)
    return root


def test_the_cluster_of_a_file_can_be_its_folder(albums: Path, tmp_path: Path):
    for file in (albums / "a" / "b").iterdir():
        Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file)
    found = clusters(opened(albums, tmp_path / "cache", cluster="folder"))
    assert {i: c for i, c in found.items() if "00" in i} == {
        "picture 00.png": ".", "a/picture 00.png": "a", "a/b/picture 00.png": "a/b",
    }  # fmt: skip
    alone = clusters(opened(albums, tmp_path / "cache"))
    assert alone == clusters(opened(albums, tmp_path / "cache", cluster="file")) == {i: i for i in alone}


def test_clusters_of_a_csv_and_copies_across_them(albums: Path, tmp_path: Path):
    lines = [f"{i},{'left' if '00' in i else 'right'}" for i in clusters(opened(albums, tmp_path / "cache"))]
    table = tmp_path / "clusters.csv"
    table.write_text("\n".join(["file,cluster", *lines, "elsewhere.png,left"]), encoding="utf-8-sig")
    found = clusters(opened(albums, tmp_path / "cache", cluster=str(table)))
    assert found["a/picture 00.png"] == found["picture 00.png"] == "left"
    assert found["a/picture 01.png"] == "right"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,cluster\na.png,x\n", "no column 'file'"),
        ("file,cluster\nelsewhere.png,x\n", "no line for 9 of 9 images, the first: 'a/b/picture 00.png'"),
        ("file,cluster\na.png,x\na.png,y\n", "'a.png' has the clusters 'x' and 'y'"),
        ("file,cluster\na.png,\n", "'a.png' has no cluster"),
        (None, "can't be read"),
    ],
)
def test_a_csv_that_can_not_be_used_says_why(albums: Path, tmp_path: Path, text: str | None, message: str):
    table = tmp_path / "clusters.csv"
    if text is not None:
        table.write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.cluster=") as caught:
        opened(albums, tmp_path / "cache", cluster=str(table))
    assert message in str(caught.value)


def test_a_dataset_with_clusters_of_its_own_takes_none(tmp_path: Path):
    with pytest.raises(DatasetError, match="these do: folder"):
        registry.open_dataset("photos", DatasetRequest(cache_dir=tmp_path, cluster="folder"))


def test_the_setting_reaches_the_intervals(albums: Path, tmp_path: Path):
    with plugin(tmp_path / "plugin", TOY, {"toy": "Toy"}):
        usual = ["tokenizers=toy", "metrics=[psnr]"]
        alone = run(albums, tmp_path / "out", *usual)
        by_folder = run(albums, tmp_path / "out", *usual, "dataset.cluster=folder")
    assert by_folder.record.clusters < alone.record.clusters
    assert by_folder.folder != alone.folder
    assert "dataset.cluster=folder" in " ".join(given(albums, tmp_path, "dataset.cluster=folder"))


# --- images that look alike


def photograph(x: int) -> Image.Image:
    return Image.fromarray(load_source("coffee.png")[50:300, x : x + 300])


def jpeg(image: Image.Image, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def distance(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


@pytest.mark.parametrize("change", [lambda i: jpeg(i, 30), lambda i: np.asarray(i.resize((150, 125)))])
def test_another_compression_or_size_looks_alike_and_another_photograph_does_not(change):
    image, other = photograph(0), Image.fromarray(load_source("chelsea.png")[:250, :300])
    hash_of = perceptual_hash(np.asarray(image))
    assert distance(hash_of, perceptual_hash(change(image))) <= duplicates.NEAR
    assert distance(hash_of, perceptual_hash(np.asarray(other))) > 4 * duplicates.NEAR


def test_images_that_look_alike_are_told_of_and_kept_in_the_index(tmp_path: Path, monkeypatch):
    root = pictures(tmp_path / "data", 4)
    (root / "copy.png").write_bytes((root / "picture 02.png").read_bytes())
    Image.open(root / "picture 00.png").save(root / "again.jpg", quality=60)
    first = opened(root, tmp_path / "cache")
    monkeypatch.setattr("evals.datasets.images.preflight.decode", lambda *_: pytest.fail("decoded again"))
    for dataset in (first, opened(root, tmp_path / "cache")):
        (note,) = [note for note in dataset.notes if "look nearly the same" in note]
        assert note.startswith("2 image(s)")
        assert "again.jpg and picture 00.png" in note
        assert "copy" not in note.replace("no copy", "")


def test_what_has_no_edges_or_one_cluster_is_not_told_of():
    flat = {
        "1": perceptual_hash(np.full((9, 9, 3), 7, np.uint8)),
        "2": perceptual_hash(np.full((9, 9, 3), 70, np.uint8)),
    }
    assert look_alike(flat, items(("1", "1", "x"), ("2", "2", "y"))) == []
    same = {"1": "f0f0f0f0f0f0f0f0", "2": "f0f0f0f0f0f0f0f1"}
    assert look_alike(same, items(("1", "a", "x"), ("2", "a", "y"))) == []
    assert look_alike(same, items(("1", "a", "x"), ("2", "b", "y"))) != []
    assert look_alike({}, []) == []


def test_very_many_are_compared_for_equality_alone(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 3)
    hashes = dict(zip("12345", ["0f", "0e", "0f", "ff", "0f"]))
    (note,) = look_alike(hashes, items(*((i, i, i) for i in "12345")))
    assert note.startswith("3 image(s)")
    assert "equal 64-bit dHash" in note


@pytest.mark.parametrize("bits", [[], [5], [0, 63], [1, 20, 40], [15, 16, 47, 48]])
def test_pairs_are_those_at_most_so_many_bits_apart(bits: list[int]):
    values = np.random.default_rng(1).integers(1, 2**63, 200).astype(np.uint64)
    values[150] = values[3] ^ np.uint64(sum(1 << bit for bit in bits))
    assert duplicates._near(values).tolist() == ([[3, 150]] if len(bits) <= duplicates.NEAR else [])


def test_comparing_a_whole_dataset_takes_seconds():
    values = np.random.default_rng(0).integers(1, 2**63, 50_000)
    hashes = {str(i): f"{v:016x}" for i, v in enumerate(values)}
    start = time.perf_counter()
    look_alike(hashes, items(*((i, i, i) for i in hashes)))
    assert time.perf_counter() - start < 5
