"""Training data by construction: settings, sources, stages, duplicates, shards and books, without a cluster."""

from __future__ import annotations

import errno
import io
import json
import re
import tarfile
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from lactok.data.__main__ import main
from lactok.data.construct import cluster, duplicates, inspection, listing, needs, shards, units
from lactok.data.construct.books import Books, BooksDoNotBalance
from lactok.data.construct.captioner import QwenCaptioner, checked
from lactok.data.construct.inspection import EvaluationSet, Inspection, encoded, previews
from lactok.data.construct.items import Unit, WorkItem, packed, unpacked
from lactok.data.construct.judges import Judges
from lactok.data.construct.miniature import COPIES, copied
from lactok.data.construct.prints import NEAR, distance, print_of, same_picture
from lactok.data.construct.spec import Spec, SpecError, parse
from lactok.data.construct.stages import StageBroken, StageWork, run
from lactok.data.construct.synthesiser import GeneratorSynthesiser, seed_of
from lactok.data.held_out import pixels_sha256
from lactok.data.scenes import scene
from lactok.files import WriteError
from lactok.images.decode import decode

PAPER = ["recipe=paper", "captions=list.txt", "out=out"]
CAT = encoded(data.chelsea(), "jpg", 95)


def paper(tmp_path: Path, **sources: str) -> Spec:
    return parse(["recipe=paper", f"out={tmp_path / 'out'}", *(f"{key}={value}" for key, value in sources.items())])


def items_of(spec: Spec) -> list[WorkItem]:
    made = listing.make(spec, spec.out)
    return [item for n in range(made.units) for item in listing.read_unit(spec.out, n, spec.unit).items]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_papers_thresholds_and_what_a_user_sets():
    spec = parse(PAPER)
    assert spec.judges == {"imagereward": 0.9, "mps": 12.0}
    assert (spec.generator, spec.captioner, spec.words, spec.tries) == ("flux.1-dev", "72b", 20, 3)
    other = parse([*PAPER, "judges=[mps>11.5]", "stages.caption.gpus=1", "stages.judge.actors=2:6", "options.steps=28"])
    assert other.judges == {"mps": 11.5}
    assert (other.stages.caption.gpus, other.stages.judge.actors, other.options) == (1.0, (2, 6), {"steps": "28"})
    assert other.sha256() != spec.sha256()
    assert parse([*PAPER, "stages.judge.actors=3", "cpus=4"]).sha256() == spec.sha256(), "how fast changes no shard"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe=papr", "out=x"], "expected paper or mini"),
        (["recipe=paper", "out=x"], "no source"),
        (["recipe=mini", "out=x"], "items=N"),
        (["recipe=mini", "items=5"], "out is missing"),
        ([*PAPER, "judges=[mps]"], "NAME>SCORE"),
        ([*PAPER, "unit=0"], "unit=0"),
        ([*PAPER, "colour=red"], "colour: no such key"),
        ([*PAPER, "stages.judge.actors=4:2"], "LEAST:MOST"),
        ([*PAPER, "size=64", "size=32"], "given twice"),
        ([*PAPER, "oops"], "KEY=VALUE"),
    ],
)
def test_wrong_settings_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture):
    assert main(["build", *words]) == 2
    assert said in capsys.readouterr().err


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    assert main(["build", "recipe=mini", "items=5", f"out={tmp_path}"]) == 2
    assert "pip install 'lactok[cluster]'" in capsys.readouterr().err


def test_what_the_papers_recipe_lacks_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("ray")
    (tmp_path / "c.txt").write_text("a cat\n")
    assert main(["build", "recipe=paper", f"captions={tmp_path / 'c.txt'}", f"out={tmp_path / 'o'}"]) == 2
    said = capsys.readouterr().err
    for part in (
        "hf download black-forest-labs/FLUX.1-dev",
        "hf download Qwen/Qwen2.5-VL-72B",
        "ImageReward.pt",
        "convert-mps",
    ):
        assert part in said
    assert not (tmp_path / "o").exists(), "nothing was begun"


def test_images_that_exist_ask_for_no_gpu_to_synthesise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What Ray is asked for is what is told to be lacking: one that is asked for in vain is waited for without end."""
    ray_data = pytest.importorskip("ray.data")
    from lactok.data.construct import build as building

    asked: list[float] = []

    class Graph:
        """Stands for Ray's dataset: writes down the GPUs of each stage. For tests alone."""

        def map_batches(self, made: object, **given: object) -> Graph:
            if made is building.StageActor:
                asked.append(given.get("num_gpus", 0) * given["compute"].min_size)
            return self

        def write_datasink(self, *_: object, **__: object) -> None:
            pass

    monkeypatch.setattr(ray_data, "from_items", lambda *_, **__: Graph())
    halves = {"stages.caption.gpus": "0.5", "stages.judge.gpus": "0.5", "judges": "[]", "captioner": "7b"}
    listed = listing.Listing(1, 1, 64, {})
    for sources, gpus in (({"images": str(tmp_path)}, 1.0), ({"captions": "x.txt", "images": str(tmp_path)}, 2.0)):
        spec = paper(tmp_path, **sources, **halves)
        asked.clear()
        building._make_units(spec, [0], listed)
        assert sum(asked) == gpus
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        assert bool(needs._gpus(spec)) == (gpus > 1)
    idle = GeneratorSynthesiser(paper(tmp_path, images=str(tmp_path)))
    monkeypatch.undo()
    assert idle.device() == "cpu", "its process sees no GPU"


# --- sources ----------------------------------------------------------------------------------------------------------


def test_caption_lists_of_all_kinds_give_the_same_items(tmp_path: Path):
    texts = ["a red cat", "two dogs", "a boat"]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"caption": t}) + "\n" for t in texts))
    pq.write_table(pa.table({"TEXT": texts, "URL": ["u0", "u1", "u2"]}), tmp_path / "c.parquet")
    spec = paper(tmp_path, captions=f"{tmp_path / 'a.txt'},{tmp_path / 'b.jsonl'},{tmp_path / 'c.parquet'}", unit="2")
    items = items_of(spec)
    assert [i.raw_caption for i in items] == texts * 3
    assert [i.index for i in items] == list(range(9))
    assert items[-1].source_id == "u2"
    assert items_of(paper(tmp_path / "x", captions=str(tmp_path / "a.txt"), items="2"))[-1].raw_caption == "two dogs"


def test_hostile_captions_are_counted_with_their_reasons(tmp_path: Path):
    lines = [b"x" * 100_000, b"a cat\x00\x1b[2J", b"\xff\xfe", b"a \t good   one", b'{"caption": "\\ud800"}', b"{"]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines[:4]) + b"\n")
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(lines[4:]) + b"\n")
    items = items_of(paper(tmp_path, captions=f"{tmp_path / 'a.txt'},{tmp_path / 'b.jsonl'}"))
    assert [i.reason for i in items] == [
        "caption too long",
        "caption has control characters",
        "caption is not UTF-8",
        "",
        "caption is no text",
        "caption is no text",
    ]
    assert items[3].raw_caption == "a good one"
    assert len((tmp_path / "out" / "work" / "listing" / "000000.parquet").read_bytes()) < 20_000


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_tars_folders_and_parquet_give_images_and_nothing_is_unpacked(tmp_path: Path):
    tar = tar_of(
        tmp_path / "a.tar",
        [
            ("0001.jpg", CAT),
            ("0001.txt", b"a cat"),
            ("../../evil.jpg", CAT),
            ("/etc/evil.png", CAT),
            ("0002.txt", b"no image"),
            ("0003.jpg", b"broken"),
        ],
    )
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.jpg").write_bytes(CAT)
    (tmp_path / "images" / "cat.txt").write_text("my cat")
    pq.write_table(pa.table({"image": [CAT], "caption": ["cat in a table"]}), tmp_path / "b.parquet")
    spec = paper(tmp_path, images=f"{tar},{tmp_path / 'images'},{tmp_path / 'b.parquet'}")
    items = items_of(spec)
    assert [(i.raw_caption, i.reason) for i in items] == [
        ("", "unsafe name in a tar"),
        ("", "unsafe name in a tar"),
        ("a cat", ""),
        ("no image", "sample without an image"),
        ("", ""),
        ("my cat", ""),
        ("cat in a table", ""),
    ]
    assert [i.image for i in items if not i.reason] == [CAT, b"broken", CAT, CAT]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "b.parquet", "images", "out"]


def test_a_tar_that_ends_early_gives_what_is_whole(tmp_path: Path):
    tar = tar_of(tmp_path / "a.tar", [("1.jpg", CAT), ("2.jpg", CAT)])
    tar.write_bytes(tar.read_bytes()[: len(CAT) + 3000])
    items = items_of(paper(tmp_path, images=str(tar)))
    assert [i.reason for i in items if i.image] == [""]
    assert "tar is damaged" in {i.reason for i in items}


def test_sources_that_are_missing_or_changed_are_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="no such file"):
        items_of(paper(tmp_path, captions=str(tmp_path / "none.txt")))
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(SpecError, match="a caption a line"):
        items_of(paper(tmp_path, captions=str(tmp_path / "a.md")))
    (tmp_path / "a.txt").write_text("a cat\n")
    spec = paper(tmp_path, captions=str(tmp_path / "a.txt"))
    items_of(spec)
    (tmp_path / "a.txt").write_text("a cat\na dog\n")
    with pytest.raises(SpecError, match="sources changed"):
        items_of(spec)


# --- stages -----------------------------------------------------------------------------------------------------------


class Failing(StageWork):
    """Fails on items whose caption says so, whatever stands beside them."""

    name, batch = "failing", 4

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error or ValueError("this one")

    def work(self, items):
        if any(i.raw_caption == "bad" for i in items):
            raise self.error


def test_a_bad_item_is_dropped_and_the_others_pass():
    unit = Unit(0, [WorkItem(i, "s", "", "bad" if i in (1, 6) else "good") for i in range(8)])
    run(Failing(), unit)
    assert [i.reason for i in unit.items if i.index in (1, 6)] == ["failing failed"] * 2
    assert len(unit.alive()) == 6
    assert (unit.works[0].items_in, unit.works[0].items_out) == (8, 6)
    assert unpacked(packed(unit)).items == unit.items


def test_a_stage_that_always_fails_and_a_full_disk_stop_the_run():
    unit = Unit(3, [WorkItem(i, "s", "", "bad") for i in range(5)])
    with pytest.raises(StageBroken, match=r"stage failing fails on every item of unit 3: ValueError: this one"):
        run(Failing(), unit)
    unit = Unit(3, [WorkItem(0, "s", "", "bad"), WorkItem(1, "s", "")])
    with pytest.raises(OSError, match="full"):
        run(Failing(OSError(errno.ENOSPC, "full")), unit)


@pytest.mark.parametrize(
    ("answer", "caption", "reason"),
    [
        ("A red cat sits left of a blue box.", "A red cat sits left of a blue box.", ""),
        ('Caption: "A red cat\non a box."', "A red cat on a box.", ""),
        ("Here is a caption: A dog.", "A dog.", ""),
        ("", "", "empty"),
        (" \n ** ", "", "empty"),
        ("I'm sorry, but I can't help with that.", "", "refusal"),
        ("As an AI I see a cat", "", "refusal"),
        ("word " * 20, " ".join(["word"] * 20), ""),
        ("word " * 21, "", "too long"),
        ("a cat\x07", "", "control characters"),
    ],
)
def test_answers_are_checked(answer: str, caption: str, reason: str):
    assert checked(answer, 20) == (caption, reason)


class FakeQwen(QwenCaptioner):
    """Stands for the network: answers come from a list an attempt. For tests alone."""

    def __init__(self, spec: Spec, answers: list[dict[int, str]]) -> None:
        self.spec, self.batch, self.given, self.prompts = spec, 16, answers, []

    def device(self) -> str:
        return "none"

    def answers(self, pictures, prompts, attempt):
        self.prompts.append(list(prompts))
        return [self.given[attempt][int(re.search(r"raw(\d)", p)[1])] for p in prompts]


def test_captions_are_asked_for_again_and_dropped_with_the_reason():
    answers = [{0: "a cat", 1: "x " * 30, 2: ""}, {1: "a short dog", 2: "I cannot do this"}, {2: "y " * 40}]
    stage = FakeQwen(parse(PAPER), answers)
    items = [WorkItem(i, "s", "", f"raw{i}", CAT) for i in range(3)] + [WorkItem(3, "s", "", "raw3", b"broken")]
    run(stage, Unit(0, items))
    assert [i.caption for i in items] == ["a cat", "a short dog", "", ""]
    assert [i.reason for i in items] == ["", "", "caption: too long", "image can't be decoded"]
    assert [len(p) for p in stage.prompts] == [3, 2, 1]
    assert "at most 20 words" in stage.prompts[0][0]
    assert "spatial relations" in stage.prompts[0][0]


class FakeJudge:
    """Stands for a preference network: an image's mean. For tests alone."""

    version = 1

    def rate(self, pictures, prompts, batch):
        import torch

        return torch.stack([picture.double().mean() for picture in pictures])


def test_scores_are_kept_and_must_exceed_the_threshold():
    stage = Judges.__new__(Judges)
    stage.batch, stage.thresholds, stage.judges = (
        4,
        {"mean": 100.0, "same": 150.0},
        {"mean": FakeJudge(), "same": FakeJudge()},
    )
    stage.at = __import__("torch").device("cpu")
    grey = [encoded(np.full((40, 40, 3), v, np.uint8), "png", 100) for v in (50, 120, 151, 100)]
    unit = Unit(0, [WorkItem(i, "s", "", "c", image) for i, image in enumerate(grey)])
    run(stage, unit)
    assert [i.reason for i in unit.items] == ["score: mean", "score: same", "", "score: mean"]
    assert unit.items[2].scores == {"mean": 151.0, "same": 151.0}
    assert unit.items[0].scores == {"mean": 50.0}, "what a judge drops, later judges are spared"


def test_a_registered_generator_synthesises_with_the_captions_own_noise(tmp_path: Path):
    spec = paper(tmp_path, captions="x.txt", generator="rendered", keep_format="png", size="64")
    stage = GeneratorSynthesiser.__new__(GeneratorSynthesiser)
    stage.batch, stage.spec, stage.at = 4, spec, None

    class FakeGenerator:
        """Stands for FLUX.1-dev: one grey an image, of its seed. For tests alone."""

        def generate(self, items, seed_indices, seeds):
            import torch

            return [torch.full((3, 64, 64), (seed % 256) / 255) for seed in seeds]

    stage.generator = FakeGenerator()
    items = [WorkItem(0, "s", "", "a cat"), WorkItem(1, "s", "", "a dog"), WorkItem(2, "s", "", "", CAT)]
    stage.work(items)
    assert [i.seed for i in items] == [seed_of("a cat"), seed_of("a dog"), None]
    assert np.asarray(Image.open(io.BytesIO(items[0].image)))[0, 0, 0] == seed_of("a cat") % 256
    assert items[2].image == CAT, "an image that exists passes"


# --- duplicates and leaks ---------------------------------------------------------------------------------------------


def photographs() -> list[np.ndarray]:
    return [image[:200, :240] for image in (data.chelsea(), data.coffee(), data.astronaut(), data.rocket())]


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_the_same_picture_and_others_are_not(how: str):
    images = [*photographs(), *(scene(3, i, 64).image for i in range(60))]
    prints = [print_of(image) for image in images]
    hashes = np.array([np.frombuffer(p.signature, np.uint8) for p in prints])
    for place, image in enumerate(images):
        copy = print_of(copied(image, how))
        apart = distance(hashes, np.frombuffer(copy.signature, np.uint8))
        alike = [i for i in np.flatnonzero(apart <= NEAR) if same_picture(prints[i].thumbnail, copy.thumbnail)]
        assert alike == [place]


def inspected(spec: Spec, images: list[bytes]) -> Unit:
    unit = Unit(0, [WorkItem(i, "s", str(i), "", image, caption="c") for i, image in enumerate(images)])
    run(Inspection(spec), unit)
    return unit


def test_leaks_broken_and_small_images_are_dropped_and_told(tmp_path: Path):
    (tmp_path / "eval").mkdir()
    Image.fromarray(data.coffee()).save(tmp_path / "eval" / "coffee.png")
    spec = paper(tmp_path, captions="x", leakage=f"[photos,{tmp_path / 'eval'}]", leak_cosine="1")
    crop = data.coffee()[:100, :100]
    images = [
        encoded(copied(data.coffee(), "jpeg of a resized one"), "png", 100),
        encoded(data.chelsea(), "png", 100),
        encoded(data.rocket(), "jpg", 60),
        encoded(crop, "png", 100),
        CAT[:500],
        encoded(crop[:20, :20], "png", 100),
    ]
    unit = inspected(spec, images)
    assert [i.reason for i in unit.items] == [
        "leak: perceptual hash",
        "leak: content",
        "leak: perceptual hash",
        "",
        "image can't be decoded",
        "image too small",
    ]
    assert "coffee.png" in unit.items[0].detail
    previews(unit.items)
    assert unit.items[0].preview[:2] == b"\xff\xd8"
    with pytest.raises(SpecError, match="no folder of images"):
        Inspection(paper(tmp_path, captions="x", leakage=str(tmp_path / "none")))


def test_of_an_evaluation_set_no_pixels_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ImageNet's 50,000 would take 28 GB in each process. Found is what is found among all of them at once."""
    named = [(f"eval/{place}.png", image) for place, image in enumerate(photographs())]
    (tmp_path / "eval").mkdir()
    for name, image in named:
        Image.fromarray(image).save(tmp_path / name)
    read: list[weakref.ref] = []
    alive: list[int] = []

    def watched(path: Path):
        found = decode(path)
        read.append(weakref.ref(found.pixels))
        alive.append(sum(one() is not None for one in read))
        return found

    monkeypatch.setattr(inspection, "decode", watched)
    held = Inspection(paper(tmp_path, captions="x", leakage=str(tmp_path / "eval"), leak_cosine="1")).held
    assert len(read) == len(named)
    assert max(alive) <= 2, "one and the next"
    assert sum(one() is not None for one in read) == 0
    for name, image in named:
        assert held.by_picture(copied(image, "jpeg"), "") == name
        assert held.by_picture(image, pixels_sha256(image)) == name
    assert EvaluationSet([]).by_picture(named[0][1], "") == ""


def test_features_find_a_crop_that_the_hash_does_not():
    from lactok.data.construct.inspection import features
    from lactok.feature_extractors.effnet import load_lite0

    network = load_lite0()
    held = EvaluationSet([("cat", data.chelsea()), ("coffee", data.coffee())], network)
    cut = np.ascontiguousarray(data.chelsea()[48:300, 0:420])
    assert held.by_picture(cut, pixels_sha256(cut)) == ""
    name, cosine = held.by_features(features(network, cut)[0], 0.9)
    assert name == "cat"
    assert held.by_features(features(network, data.rocket())[0], 0.9)[0] == ""
    assert cosine < 1


def find(spec: Spec, tables: list[dict[str, object]]) -> dict[int, tuple[str, int]]:
    """`duplicates.find` with its functions called in turn, as Ray calls them."""
    with_buckets = {"rules": list(spec.duplicates), "copies": spec.copies, "buckets": 3}
    shared = duplicates._shared({"id": np.arange(len(tables))}, str(spec.out), **with_buckets)
    edges: dict[str, set[tuple[int, int]]] = {reason: set() for reason in duplicates.RULES.values()}
    for bucket in range(3):
        mine = shared["bucket"] == bucket
        pairs = duplicates._alike({key: values[mine] for key, values in shared.items()}, spec.copies)
        same = duplicates._confirmed(pairs, str(spec.out), spec.unit)
        for rule, later, first in zip(same["rule"], same["later"], same["first"], strict=True):
            edges[duplicates.RULES[rule]].add((int(later), int(first)))
    return duplicates._resolved(edges, spec.copies)


def test_the_lowest_index_stays_and_each_rule_has_its_turn(tmp_path: Path):
    spec = paper(tmp_path, captions="x", unit="5", leakage="[]", leak_cosine="1", copies="2")
    cat, cup = data.chelsea(), data.coffee()
    images = [cup, cat, cat, copied(cat, "jpeg"), data.rocket(), data.astronaut(), data.page(), data.camera()]
    images = [np.stack([i] * 3, axis=-1) if i.ndim == 2 else i for i in images]
    unit = [WorkItem(i, "s", "", "", encoded(image, "png", 100), caption=f"c{i}") for i, image in enumerate(images)]
    for item, caption in zip(unit[4:], ("A dog!", "a  dog", "A DOG.", "a cat"), strict=True):
        item.caption = caption
    stage = Inspection(spec)
    for number in range(2):
        one = Unit(number, unit[number * 5 : number * 5 + 5])
        one.items = [i for i in one.items]
        run(stage, one)
        for item in one.items:
            item.reason = ""  # scikit-image's photographs are the benchmark's own
        units.write(spec.out, one)
    found = find(spec, [{}, {}])
    assert found == {2: (duplicates.CONTENT, 1), 3: (duplicates.PERCEPTUAL, 1), 6: (duplicates.CAPTION, 4)}


def test_a_copy_of_a_dropped_copy_stays():
    edges = {duplicates.CONTENT: set(), duplicates.PERCEPTUAL: {(2, 1), (3, 2)}, duplicates.CAPTION: set()}
    assert duplicates._resolved(edges, 1) == {2: (duplicates.PERCEPTUAL, 1)}


# --- shards and books -------------------------------------------------------------------------------------------------


def samples(count: int) -> list[shards.Sample]:
    facts = {"width": 4, "height": 3, "source": "s", "source_id": "i", "source_index": 0, "score_mps": 12.5}
    return [shards.Sample(f"{i:09d}", bytes([i]) * (700 + i), "png", f"caption {i} é", facts) for i in range(count)]


def test_a_shard_is_read_back_by_place_and_has_the_same_bytes_again(tmp_path: Path):
    made = shards.write_shard(tmp_path, 3, iter(samples(3)), shards.index_schema(["mps"]))
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(first) == ["shard-00003.parquet", "shard-00003.tar"]
    assert shards.standing(tmp_path, 3) == made
    with tarfile.open(tmp_path / made.name) as tar:
        assert tar.getnames()[:3] == ["000000000.png", "000000000.txt", "000000000.json"]
        assert json.loads(tar.extractfile("000000001.json").read())["caption"] == "caption 1 é"
        assert {(m.mtime, m.uid, m.uname) for m in tar} == {(0, 0, "")}
    for row, sample in zip(pq.read_table(tmp_path / made.index).to_pylist(), samples(3), strict=True):
        place = row["image_offset"]
        assert first[made.name][place : place + row["image_size"]] == sample.image
        assert row["score_mps"] == 12.5
    shards.write_shard(tmp_path, 3, iter(samples(3)), shards.index_schema(["mps"]))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first
    (tmp_path / made.name).write_bytes(first[made.name][:-1])
    assert shards.standing(tmp_path, 3) is None


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(WriteError, match="the disk is full"):
        shards.write_shard(tmp_path, 0, iter(samples(2)), shards.index_schema([]))
    with pytest.raises(WriteError, match="the disk is full"):
        units.write(tmp_path, Unit(0, [WorkItem(0, "s", "")]))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_books_that_do_not_balance_stop_the_build():
    books = Books(10, 7)
    books.dropped.update(["score"] * 2)
    with pytest.raises(BooksDoNotBalance, match="1 are not accounted for"):
        books.require_balance()
    books.dropped["leak"] += 1
    books.require_balance()
    assert books.as_json() == {"in": 10, "kept": 7, "dropped": {"leak": 1, "score": 2}}


def test_a_damaged_unit_is_set_aside(tmp_path: Path):
    for number in range(2):
        units.write(tmp_path, Unit(number, [WorkItem(number, "s", "")]))
    path = units.path_of(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-9])
    assert units.finished(tmp_path, 2) == {1}
    assert not path.exists()
